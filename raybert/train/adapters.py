"""A few new weights instead of all: LoRA, AdaLoRA and prefixes by peft, bottleneck adapters and BitFit by our own modules.

LoRA and AdaLoRA are merged into a plain model when it is finished; the others are saved beside the name of their base,
and read by `raybert.encoder.adapted`. Everything but a prefix is put into the plain model in place, so packed batches and
its heads work as before.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import save_file
from torch import Tensor

from raybert.encoder.adapter_folder import RECORD, WEIGHTS
from raybert.train.adapter_modules import add_bottlenecks, linears_of, train_biases
from raybert.train.freezing import head_parameters

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


def is_merged(settings: Adapter) -> bool:
    """Whether the finished model is a plain one (`merged`); else it is base and adapter (`save_adapter`)."""
    return settings.name in ("lora", "adalora")


def add_adapter(
    plain: Any, settings: Adapter, *, steps: int | None = None, new_tokens: Sequence[int] = ()
) -> Any:
    """A model to train: the adapter and the head (with the pooler) have gradients, nothing else does.

    LoRA changes the attention's queries and values (Hu et al. 2022, arXiv 2106.09685, section 4.2), AdaLoRA all matrices
    of the layers (Zhang et al. 2023, arXiv 2303.10512). New weights are random, from torch's global generator.

    Args:
        plain: a transformers model with a head; changed in place.
        steps: of the whole training, for AdaLoRA: its ranks fall from a tenth of it to its half.
        new_tokens: whose word embeddings are random and trained too (LoRA and AdaLoRA).

    Returns:
        peft's model for LoRA, AdaLoRA (`get_base_model()` is `plain`, with the layers exchanged) and prefixes, which are
        at work only in calls of what is returned; `plain` itself for the others. It takes the keywords that `plain` takes.

    Families that cannot have an adapter, and settings that do not fit, are refused by `raybert.train.combinations`.
    """
    record = {
        "settings": {field: getattr(settings, field, None) for field in _FIELDS},
        "architecture": type(plain).__name__,
    }
    if settings.name == "bottleneck":
        add_bottlenecks(plain, settings.width, settings.dropout)
        model = plain
    elif settings.name == "bitfit":
        train_biases(plain)
        model = plain
    else:
        model = _through_peft(plain, settings, steps, new_tokens)
    model.adapter_record = record
    return model


def merged(model: Any) -> Any:
    """The plain transformers model with a LoRA's or an AdaLoRA's update added to its weights. Changes `model`."""
    plain = model.merge_and_unload()
    return plain.requires_grad_(True)


def save_adapter(model: Any, folder: str | Path, base: Mapping[str, Any]) -> None:
    """Write the trained weights of a prefix, bottlenecks or biases, the head among them, and what they belong to.

    `adapter_model.safetensors` has their names in the model, `config.json` is that of the whole, and
    `raybert_adapter.json` tells the settings, the base and the architecture. A prefix also gets peft's
    `adapter_config.json` and names, so that `PeftModel.from_pretrained` reads it. Weights must be whole (see
    `raybert.train.gather`).

    Args:
        base: see `raybert.encoder.adapter_folder.read_record`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    record, plain = model.adapter_record, model
    if record["settings"]["name"] == "prefix":
        model.save_pretrained(str(folder))
        plain = model.get_base_model()
    save_file(_trained(model), folder / WEIGHTS, metadata={"format": "pt"})
    plain.config.architectures = [record["architecture"]]
    plain.config.save_pretrained(folder)
    (folder / RECORD).write_text(json.dumps({**record, "base": dict(base)}, indent=2), encoding="utf-8")


def _trained(model: Any) -> dict[str, Tensor]:
    """What is saved of a model with an adapter, by name: of a prefix by peft's, which leaves the pooler out."""
    found = {name: p.detach().cpu().contiguous() for name, p in model.named_parameters() if p.requires_grad}
    if model.adapter_record["settings"]["name"] != "prefix":
        return found
    from peft import get_peft_model_state_dict

    pooler = {name: p for name, p in found.items() if ".pooler." in name}
    return {
        name: p.detach().cpu().contiguous() for name, p in get_peft_model_state_dict(model).items()
    } | pooler


def _through_peft(plain: Any, settings: Adapter, steps: int | None, new_tokens: Sequence[int]) -> Any:
    from peft import get_peft_model

    head = head_parameters(plain)
    if settings.name == "prefix":
        config = _prefix(plain, settings)
    else:
        config = _lora(plain, settings) if settings.name == "lora" else _adalora(plain, settings, steps)
        if new_tokens:
            config.trainable_token_indices = {_name_of_words(plain): list(new_tokens)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(plain, config)
    copied = {
        id(p)
        for name, p in model.named_parameters()
        if ".original_module." in name  # of a prefix peft trains a copy of the head
    }
    for parameter in head:
        parameter.requires_grad_(id(parameter) not in copied)
    return model


def _name_of_words(plain: Any) -> str:
    words = plain.get_input_embeddings()
    return next(name for name, module in plain.named_modules() if module is words)


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

    assert steps is not None
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
    from peft import PrefixTuningConfig

    name = type(plain).__name__
    task = next((task for end, task in _TASKS.items() if name.endswith(end)), "FEATURE_EXTRACTION")
    return PrefixTuningConfig(task_type=task, num_virtual_tokens=settings.tokens)
