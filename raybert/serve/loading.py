"""From settings to the engine of a replica."""

import json
from typing import Any

from raybert.config import ConfigError
from raybert.config.predicting import HeadModelSettings, HeadTaskSettings
from raybert.config.serving import ServedModelSettings
from raybert.corpus.models import fetch_model
from raybert.encoder.adapter_folder import is_adapter
from raybert.encoder.folders import read_folder, resolve
from raybert.resolve import prepare_process
from raybert.serve.search import SearchIndex
from raybert.tasks.heads import task_of

_VECTORS = ("similarity", "retrieval")  # tasks whose models are encoders


def load_engine(served: ServedModelSettings) -> Any:
    """The engine for a model, whose `workers.cpus` is settled: of an encoder, or of a model with a head.

    Raises ValueError, one line that names the setting, for a model that cannot be loaded or served.
    """
    prepare_process()
    return _load_encoder(served) if _head_task(served) is None else _load_head(served)


def load_index(path: str | None, served: ServedModelSettings, engine: Any) -> SearchIndex | None:
    """The folder to search in; None where none is asked for.

    Raises ValueError, one line that names serve.index, for one that the model cannot search in.
    """
    if path is None:
        return None
    from raybert.serve.encoding import EncoderEngine

    if not isinstance(engine, EncoderEngine):
        raise ValueError(f"serve.index={path} needs a model that makes vectors; this one has a head")
    asked = served.model.prompt is not None or served.model.prompt_name is not None
    return SearchIndex(path, engine.encoder, engine.encoder.prompt if asked else None)


def _head_task(served: ServedModelSettings) -> str | None:
    """The task of a model's head, as its folder says it; None for an encoder. Raises ValueError for one not served."""
    from raybert.serve.head_engine import SERVED_TASKS

    model = served.model
    path, _ = resolve(fetch_model(model.name), model.revision, code=model.trust_remote_code)
    folder = read_folder(path)
    try:
        shape = json.loads((folder.transformer / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"model.name: {folder.transformer / 'config.json'} cannot be read: {error}"
        ) from error
    task = task_of(shape, model.name)
    # an adapter's folder has a pooling where its base has one, whatever the adapter is for
    if task is None or task in _VECTORS or (folder.pooling is not None and not is_adapter(path)):
        return None
    if task not in SERVED_TASKS:
        raise ConfigError(
            f"model.name={model.name} is a model for {task}, which is not served: take an encoder, or a model for "
            f"{', '.join(SERVED_TASKS)}; raybert predict answers for its rows"
        )
    for key in sorted(type(model).model_fields.keys() - HeadModelSettings.model_fields.keys()):
        if getattr(model, key) != type(model).model_fields[key].default:
            raise ConfigError(
                f"model.{key}={getattr(model, key)} means nothing for model.name={model.name}, which has a head for "
                f"{task} and makes no vectors; leave it out"
            )
    return task


def _load_encoder(served: ServedModelSettings) -> Any:
    from raybert.encoder.encoder import Encoder
    from raybert.serve.encoding import EncoderEngine

    threads, model = int(served.workers.cpus), served.model
    encoder = Encoder.load(
        fetch_model(model.name),
        threads=threads,
        batch_tokens=None if served.batch_tokens == "auto" else served.batch_tokens,
        **model.model_dump(exclude={"name"}),
    )
    return EncoderEngine(encoder, threads)


def _load_head(served: ServedModelSettings) -> Any:
    from raybert.resolve_head import load_predictor, open_folder, pick
    from raybert.serve.head_engine import HeadEngine

    model = HeadModelSettings(**served.model.model_dump(include=set(HeadModelSettings.model_fields)))
    folder = open_folder(model, HeadTaskSettings())
    device, dtype, batch_tokens = pick(model.dtype, served.batch_tokens)
    predictor = load_predictor(
        folder.folder.transformer,
        folder.head,
        model,
        device=device,
        dtype=dtype,
        batch_tokens=batch_tokens,
        threads=int(served.workers.cpus),
    )
    return HeadEngine(model.name, folder, predictor, device=device, dtype=dtype, batch_tokens=batch_tokens)
