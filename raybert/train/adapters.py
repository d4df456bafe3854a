"""A few new weights instead of all: LoRA, AdaLoRA and prefixes by peft, bottleneck adapters and BitFit by our own modules.

LoRA and AdaLoRA are merged into a plain model when it is finished; the others are saved beside the name of their base.
Everything but a prefix is put into the plain model in place, so packed batches and its heads work as before.
"""

import hashlib
import json
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from raybert.train.adapter_modules import add_bottlenecks, linears_of, train_biases
from raybert.train.freezing import encoder_of, head_parameters

RECORD, WEIGHTS = "raybert_adapter.json", "adapter_model.safetensors"
_ATTENTION = frozenset({"query", "value", "q_lin", "v_lin", "q", "v", "Wqkv"})
_TASKS = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForQuestionAnswering": "QUESTION_ANS",
}
_FIELDS = ("name", "rank", "alpha", "dropout", "target_rank", "tokens", "width")


class Adapter(Protocol):
    """Settings of an adapter; those that a kind has not are not read.

    Attributes:
        name: lora, adalora, prefix, bottleneck or bitfit.
        rank: of LoRA's matrices, of AdaLoRA's at the start.
        alpha: LoRA's update is B A alpha / rank.
        dropout: of what the new weights see.
        target_rank: AdaLoRA's mean rank at the end.
        tokens: keys and values that a prefix puts in front.
        width: of bottlenecks.
    """

    name: str
    rank: int
    alpha: float
    dropout: float
    target_rank: int
    tokens: int
    width: int


def works_packed(settings: Adapter) -> bool:
    """Whether batches may be packed: a prefix is put in front of every row, and packed rows have no front."""
    return settings.name != "prefix"


def is_merged(settings: Adapter) -> bool:
    """Whether the finished model is a plain one (`merged`); else it is base and adapter (`save_adapter`)."""
    return settings.name in ("lora", "adalora")


def add_adapter(plain: Any, settings: Adapter, *, steps: int | None = None) -> Any:
    """A model to train: the adapter and the head (with the pooler) have gradients, nothing else does.

    LoRA changes the attention's queries and values (Hu et al. 2022, arXiv 2106.09685, section 4.2), AdaLoRA all matrices
    of the layers (Zhang et al. 2023, arXiv 2303.10512). New weights are random, from torch's global generator.

    Args:
        plain: a transformers model with a head; changed in place.
        steps: of the whole training, for AdaLoRA: its ranks fall from a tenth of it to its half.

    Returns:
        peft's model for LoRA, AdaLoRA (`get_base_model()` is `plain`, with the layers exchanged) and prefixes, which are
        at work only in calls of what is returned; `plain` itself for the others. It takes the keywords that `plain` takes.

    Raises:
        ValueError: the family cannot have this adapter, or the settings do not fit.
    """
    record = _record(plain, settings)
    if settings.name == "bottleneck":
        add_bottlenecks(plain, settings.width, settings.dropout)
        model = plain
    elif settings.name == "bitfit":
        train_biases(plain)
        model = plain
    else:
        model = _through_peft(plain, settings, steps)
    model.adapter_record = record
    return model


def merged(model: Any) -> Any:
    """The plain transformers model with a LoRA's or an AdaLoRA's update added to its weights. Changes `model`."""
    plain = model.merge_and_unload()
    return plain.requires_grad_(True)


def save_adapter(model: Any, folder: str | Path) -> None:
    """Write the trained weights of a prefix, bottlenecks or biases, the head among them, and what they belong to.

    `adapter_model.safetensors` has their names in the model; `raybert_adapter.json` the settings, the base's name and
    digest, the architecture and the labels. A prefix also gets peft's `adapter_config.json` and names, so that
    `PeftModel.from_pretrained` reads it. Weights must be whole (see `raybert.train.gather`).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if model.adapter_record["settings"]["name"] == "prefix":
        model.save_pretrained(str(folder), safe_serialization=True)
    else:
        save_file(_trained(model), folder / WEIGHTS, metadata={"format": "pt"})
    (folder / RECORD).write_text(json.dumps(model.adapter_record, indent=2), encoding="utf-8")


def read_record(folder: str | Path) -> dict[str, Any]:
    """What an adapter belongs to: `base` (name, digest), `architecture`, `labels`, `settings`, to make its base from.

    Raises:
        ValueError: the folder holds no adapter.
    """
    path = Path(folder) / RECORD
    if not path.is_file():
        raise ValueError(f"{folder} holds no adapter: {RECORD} is missing")
    return json.loads(path.read_text(encoding="utf-8"))


def load_adapter(base: Any, folder: str | Path) -> Any:
    """The base model with an adapter of `save_adapter`, as `add_adapter` returns it. Reads numbers and JSON alone.

    Args:
        base: the plain model, of the architecture and with the labels that `read_record` tells; changed in place.

    Raises:
        ValueError: it is another base, or the weights do not fit.
    """
    record = read_record(folder)
    settings, was = _Settings(**record["settings"]), record["base"]
    if digest(base) != was["digest"]:
        raise ValueError(
            f"the adapter in {folder} was trained on other weights than these; load its base, {was['name']}"
        )
    model = add_adapter(base, settings)
    model.adapter_record = record
    weights, expected = load_file(Path(folder) / WEIGHTS), _trained(model)
    odd = sorted(weights.keys() ^ expected.keys()) or [
        name for name, tensor in expected.items() if tensor.shape != weights[name].shape
    ]
    if odd:
        raise ValueError(f"the adapter in {folder} does not fit the model: {odd[0]} differs between them")
    if settings.name == "prefix":
        from peft import set_peft_model_state_dict

        set_peft_model_state_dict(model, weights)
    else:
        model.load_state_dict(weights, strict=False)
    return model.eval()


def digest(plain: Any) -> str:
    """SHA-256 of the encoder's weights without its pooler, names and shapes included: what an adapter is trained on."""
    head, found = {id(p) for p in head_parameters(plain)}, hashlib.sha256()
    for name, parameter in encoder_of(plain).named_parameters():
        if id(parameter) not in head:
            array = parameter.detach().cpu().float().contiguous().numpy()
            found.update(f"{name} {array.shape}".encode())
            found.update(array.data)
    return found.hexdigest()


class RankAllocation:
    """Lets AdaLoRA's ranks fall, under any engine that leaves parameters whole (ZeRO 0 to 2).

    A step is: backward passes; `before_update()`; the optimizer's update; `after_update(step)`. peft scores weights by the
    gradients of the step, and zeroes what it takes away after the update, for else the optimizer would bring it back.
    DeepSpeed drops gradients in the update, and has those of one rank or none before it: they are added up here, as
    backward passes make them.

    Args:
        model: of `add_adapter`. Its backward passes are counted from here on.

    Raises:
        ValueError: ZeRO 3 has cut up the weights.
    """

    def __init__(self, model: Any) -> None:
        self._model = model
        self._new = {name: p for name, p in model.named_parameters() if "lora_" in name and p.requires_grad}
        if any(hasattr(p, "ds_id") for p in self._new.values()):
            raise ValueError(
                "adapter.name=adalora needs whole matrices, train.zero=3 cuts them up; set train.zero=2"
            )
        self._own: dict[str, Tensor] = {}
        self._gradients: dict[str, Tensor] = {}
        for name, parameter in self._new.items():
            parameter.register_hook(partial(self._add, name))

    def before_update(self) -> None:
        """Add up the gradients of all ranks. Every rank must call this."""
        for name, parameter in self._new.items():
            found = self._own.pop(name, torch.zeros_like(parameter, dtype=torch.float32))
            if dist.is_initialized():
                dist.all_reduce(found)
            # of an update that float16 skips: DeepSpeed tries again with a smaller scale
            self._gradients[name] = found if bool(found.isfinite().all()) else torch.zeros_like(found)

    def after_update(self, step: int) -> None:
        """Score the triplets and zero those beyond the budget b(step). Steps count from 0."""
        for name, parameter in self._new.items():
            parameter.grad = self._gradients.pop(name).to(parameter.dtype)
        self._model.base_model.update_and_allocate(step + 1)
        for name, parameter in self._new.items():
            parameter.grad = None
            if ".lora_E." in name:
                _keep(parameter)

    def _add(self, name: str, gradient: Tensor) -> None:
        known = self._own.get(name)
        found = gradient.detach().float()
        self._own[name] = found.clone() if known is None else known + found

    def ranks(self) -> dict[str, int]:
        """Triplets that are not zero, by the name of the matrix."""
        return {
            name.partition(".lora_E.")[0]: int(p.detach().count_nonzero())
            for name, p in self._new.items()
            if ".lora_E." in name
        }


def _trained(model: Any) -> dict[str, Tensor]:
    """What is saved of a model with an adapter, by name."""
    if model.adapter_record["settings"]["name"] == "prefix":
        from peft import get_peft_model_state_dict

        return get_peft_model_state_dict(model)
    return {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}


def _keep(parameter: Any) -> None:
    """Tell ZeRO's own copy of a weight what it is now."""
    if getattr(parameter, "_hp_mapping", None) is not None or hasattr(parameter, "_dp_group"):
        from deepspeed.utils import safe_set_full_fp32_param

        safe_set_full_fp32_param(parameter, parameter.detach().float())


def _through_peft(plain: Any, settings: Adapter, steps: int | None) -> Any:
    makers: dict[str, Callable[[], Any]] = {
        "lora": lambda: _lora(plain, settings),
        "adalora": lambda: _adalora(plain, settings, steps),
        "prefix": lambda: _prefix(plain, settings),
    }
    from peft import get_peft_model

    config = makers[settings.name]()
    head = head_parameters(plain)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(plain, config)
    if settings.name != "prefix":  # of a prefix peft saves the head itself
        for parameter in head:
            parameter.requires_grad_(True)
    return model


def _lora(plain: Any, settings: Adapter) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=linears_of(plain, _ATTENTION),
    )


def _adalora(plain: Any, settings: Adapter, steps: int | None) -> Any:
    from peft import AdaLoraConfig

    if settings.target_rank >= settings.rank:
        raise ValueError(
            f"adapter.target_rank={settings.target_rank} must be below adapter.rank={settings.rank}: AdaLoRA starts there"
        )
    if steps is None or steps < 4:
        raise ValueError(
            "adapter.name=adalora needs at least 4 steps, in which its ranks fall; set train.steps"
        )
    return AdaLoraConfig(
        init_r=settings.rank,
        target_r=settings.target_rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        tinit=steps // 10,
        tfinal=steps // 2,
        total_step=steps,
        target_modules=linears_of(plain),
    )


def _prefix(plain: Any, settings: Adapter) -> Any:
    import inspect

    from peft import PrefixTuningConfig

    if "past_key_values" not in inspect.signature(encoder_of(plain).forward).parameters:
        raise ValueError(
            f"adapter.name=prefix needs a model that takes keys and values, a {plain.config.model_type} does not; "
            "take a BERT, RoBERTa, XLM-R, CamemBERT or ELECTRA, or another adapter"
        )
    name = type(plain).__name__
    task = next((task for end, task in _TASKS.items() if name.endswith(end)), "FEATURE_EXTRACTION")
    return PrefixTuningConfig(task_type=task, num_virtual_tokens=settings.tokens)


def _record(plain: Any, settings: Adapter) -> dict[str, Any]:
    config = plain.config
    return {
        "settings": {field: getattr(settings, field, None) for field in _FIELDS},
        "base": {"name": config.name_or_path, "digest": digest(plain)},
        "architecture": type(plain).__name__,
        "labels": {str(number): label for number, label in config.id2label.items()},
    }


class _Settings:
    """What was saved of an `Adapter`."""

    def __init__(self, **fields: Any) -> None:
        for name in _FIELDS:
            setattr(self, name, fields.get(name))
