"""A model with a head: what decides its predictions, found out once on a worker, and loaded so by every other."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from raybert.config.predicting import HeadModelSettings, HeadTaskSettings, PredictConfig
from raybert.corpus.models import fetch_model
from raybert.encoder.adapter_folder import positions_taken
from raybert.encoder.folders import Folder, read_folder, resolve
from raybert.pretrain.tokenizer_folder import read_tokenizer
from raybert.resolve import prepare_process, versions
from raybert.tasks.heads import Head, longest_input, read_head, task_settings
from raybert.tasks.known import data_side


@dataclass(frozen=True)
class HeadFolder:
    """A model folder on this machine: the commit of a hub model, its head, its tokenizer.json, and tokens of a row."""

    folder: Folder
    revision: str | None
    head: Head
    tokenizer: str
    max_length: int


def open_folder(model: HeadModelSettings, task: HeadTaskSettings) -> HeadFolder:
    """What a model's folder says, without torch. `task` are the user's settings, which come before those of the folder.

    Raises ValueError for a model that has no head we know, or another than asked for.
    """
    path, revision = resolve(fetch_model(model.name), model.revision, code=model.trust_remote_code)
    folder = read_folder(path)
    folder.weights()  # says what to do about a folder without safetensors
    at = folder.transformer
    try:
        shape = json.loads((at / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"model.name: {at / 'config.json'} cannot be read: {error}") from error
    head = read_head(shape, model.name, task)
    side = data_side(head.task)
    if hasattr(side, "settle"):  # pooling and prompts, where a folder that raybert did not make says them
        settled = side.settle(head.settings, folder, {})
        head = replace(head, settings=settled, max_length=head.max_length or folder.max_seq_length)
    words = read_tokenizer(at)
    limit = json.loads(words.files.get("tokenizer_config.json", "{}")).get("model_max_length")
    asked, taken = model.max_length or head.max_length, positions_taken(path)
    longest = longest_input(shape, asked, limit, model.name, taken=taken)
    return HeadFolder(folder, revision, head, words.json, longest)


def local_folder(model: HeadModelSettings, revision: str | None) -> Folder:
    """The model's folder on this machine, at the commit that its branch pointed to when the work began."""
    path, _ = resolve(fetch_model(model.name), revision, code=model.trust_remote_code)
    return read_folder(path)


def resolve_head(config: PredictConfig, threads: int) -> tuple[dict[str, Any], str]:
    """In a worker: what the model turned out to be (plain JSON), and the text of its tokenizer."""
    prepare_process()
    found = open_folder(config.model, config.task)
    device, dtype, batch_tokens = pick(config.model.dtype, config.batch_tokens)
    predictor = load_predictor(
        found.folder.transformer,
        found.head,
        config.model,
        device=device,
        dtype=dtype,
        batch_tokens=batch_tokens,
        threads=threads,
    )
    resolved = {
        "task": found.head.task,
        "settings": found.head.settings.model_dump(mode="json", exclude={"name"}),
        "labels": found.head.labels,
        "max_length": found.max_length,
        "device": device,
        "dtype": dtype,
        "batch_tokens": batch_tokens,
        "padded": predictor.padded,
        "threads": threads,
        "digest": found.folder.digest(),
        "revision": found.revision,
        "versions": versions(),
    }
    return resolved, found.tokenizer


def pick(dtype: str, batch_tokens: int | str) -> tuple[str, str, int]:
    """(device, dtype, tokens of a batch) on this machine; imports torch."""
    from raybert.encoder.loading import pick_device, pick_dtype
    from raybert.tasks.predictor_model import BATCH_TOKENS

    device = pick_device("auto")
    tokens = BATCH_TOKENS[device] if isinstance(batch_tokens, str) else batch_tokens
    return device, pick_dtype(dtype, device), tokens


def head_of(resolved: Mapping[str, Any]) -> Head:
    """The head that `resolve_head` found."""
    settings = task_settings(resolved["task"], resolved["settings"])
    return Head(resolved["task"], settings, list(resolved["labels"]), resolved["max_length"])


def load_as_resolved(model: HeadModelSettings, resolved: Mapping[str, Any]) -> Any:
    """The `Predictor` that the plan was made with.

    Raises ValueError when this machine cannot honour the plan: other weights, no GPU, no bfloat16.
    """
    prepare_process()
    import torch

    from raybert.encoder.hardware import cpu_has_bfloat16

    device, dtype = resolved["device"], resolved["dtype"]
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("the plan was made for a GPU, and this worker has none; give workers.gpus")
    if dtype == "bfloat16" and device == "cpu" and model.dtype == "auto" and not cpu_has_bfloat16():
        raise ValueError("the plan computes in bfloat16, which this worker's CPU lacks; set model.dtype")
    folder = local_folder(model, resolved["revision"])
    digest = folder.digest()
    if digest != resolved["digest"]:
        raise ValueError(
            f"the weights of {model.name} on this worker (digest {digest[:12]}) are not those of the plan "
            f"(digest {resolved['digest'][:12]}); put them back or use another output.path"
        )
    return load_predictor(
        folder.transformer,
        head_of(resolved),
        model,
        device=device,
        dtype=dtype,
        batch_tokens=resolved["batch_tokens"],
        threads=resolved["threads"],
    )


def load_predictor(
    path: Path,
    head: Head,
    model: HeadModelSettings,
    *,
    device: str,
    dtype: str,
    batch_tokens: int,
    threads: int,
) -> Any:
    """A `raybert.tasks.predictor_model.Predictor`, or the task's own; sets torch's threads for the whole process."""
    import torch

    from raybert.tasks import predictor_model
    from raybert.tasks.known import model_side

    torch.set_num_threads(threads)
    kind = getattr(model_side(head.task), "Predictor", predictor_model.Predictor)
    return kind(
        path,
        head,
        dtype=dtype,
        device=device,
        batch_tokens=batch_tokens,
        trust_remote_code=model.trust_remote_code,
    )
