"""Settings that do not go together. For the driver, without torch."""

import shutil
from collections.abc import Mapping
from typing import Any

from raybert.config.finetune import FinetuneConfig
from raybert.encoder.adapter_folder import BOTTLENECK_PLACES


def refuse_combinations(*, optimizer: str, zero: int, offload: bool, precision: str) -> None:
    """Raise ValueError, before anything starts, for settings that DeepSpeed would compute wrongly or not at all."""
    if optimizer == "lamb" and zero:
        raise ValueError(
            f"train.optimizer=lamb needs the norm of every whole tensor, train.zero={zero} cuts tensors into pieces; "
            "set train.zero=0 or train.optimizer=adamw"
        )
    if precision == "float16" and not zero:
        raise ValueError(
            "train.precision=float16 needs the loss scaling of ZeRO; set train.zero=1 or train.precision=bfloat16"
        )
    if offload and not zero:
        raise ValueError(
            "train.offload=true keeps what ZeRO cuts up; set train.zero=2 or train.offload=false"
        )
    if offload and not (shutil.which("g++") and shutil.which("ninja")):
        raise ValueError(
            "train.offload=true compiles DeepSpeed's CPU Adam and needs g++ and ninja on every node; "
            "install them or set train.offload=false"
        )


KEPT_APART = ("prefix", "bottleneck", "bitfit")
"""Adapters that are saved beside the name of their base; the others are merged into it."""

PREFIX_FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "electra")
"""Families of encoders whose attention takes keys and values from outside, in transformers."""

# tasks whose losses are of rows of logits: what SMART and EWC are defined for
_LOGITS = ("classification", "entities", "relations", "answers", "selection")
_CLASSES = ("classification", "entities", "relations")


def refuse_levers(config: FinetuneConfig) -> None:
    """Raise ValueError for levers that cannot work together, whatever the model is."""
    adapter, freeze, zero = config.adapter, config.freeze, config.train.zero
    if adapter.name != "none" and (freeze.layers or freeze.embeddings or freeze.gradual):
        raise ValueError(
            f"adapter.name={adapter.name} trains nothing but itself and the head; leave the group freeze out"
        )
    if adapter.name in KEPT_APART and config.task.name == "relations":
        raise ValueError(
            f"adapter.name={adapter.name} is saved without the embeddings of task.markers; take lora, adalora or none"
        )
    if adapter.name == "adalora" and zero == 3:
        raise ValueError(
            "adapter.name=adalora needs whole matrices, train.zero=3 cuts them up; set train.zero=2"
        )
    if adapter.name == "lora" and config.task.name == "relations" and zero == 3:
        raise ValueError(
            "adapter.name=lora trains the embeddings of task.markers as whole rows, train.zero=3 cuts them up; set "
            "train.zero=2"
        )
    if adapter.name == "adalora" and adapter.target_rank >= adapter.rank:
        raise ValueError(
            f"adapter.target_rank={adapter.target_rank} must be below adapter.rank={adapter.rank}: AdaLoRA starts there"
        )
    if config.adversarial.name == "smart" and config.task.name not in _LOGITS:
        raise ValueError(
            f"adversarial.name=smart compares the logits of classes, which task.name={config.task.name} has not; take fgm, "
            "pgd or freelb"
        )
    if config.regularize.ewc:
        _refuse_elastic(config)


def _refuse_elastic(config: FinetuneConfig) -> None:
    task = config.task
    if task.name not in _CLASSES or getattr(task, "kind", "single") != "single":
        raise ValueError(
            "regularize.ewc draws a label of the model for every row or token; it is for task.name=classification with "
            "task.kind=single, entities and relations"
        )
    if config.adapter.name != "none":
        raise ValueError(
            f"regularize.ewc holds the weights that adapter.name={config.adapter.name} does not train; leave one of them out"
        )
    if config.train.zero == 3:
        raise ValueError("regularize.ewc needs whole weights, train.zero=3 cuts them up; set train.zero=2")


def refuse_precision(config: FinetuneConfig, precision: str, steps: int) -> None:
    """The same, for what is known when the hardware and the length of the run are."""
    if config.regularize.ewc and config.train.zero and precision != "float32":
        raise ValueError(
            f"regularize.ewc compares weights with what they were, and {precision} is too coarse for that; set "
            "train.zero=0, whose weights are float32"
        )
    if config.adapter.name == "adalora" and steps < 4:
        raise ValueError(
            "adapter.name=adalora needs at least 4 steps, in which its ranks fall; set train.steps"
        )


def refuse_family(config: FinetuneConfig, shape: Mapping[str, Any]) -> None:
    """The same for a model with this config.json."""
    kind, freeze = shape["model_type"], config.freeze
    adapter = config.adapter.name
    if adapter == "prefix" and kind not in PREFIX_FAMILIES:
        raise ValueError(
            f"adapter.name=prefix needs a model that takes keys and values, a {kind} does not; "
            "take a BERT, RoBERTa, XLM-R, CamemBERT or ELECTRA, or another adapter"
        )
    if adapter == "bottleneck" and kind not in BOTTLENECK_PLACES:
        raise ValueError(
            f"adapter.name=bottleneck is not known for a {kind} model; it is for {', '.join(sorted(BOTTLENECK_PLACES))}"
        )
    if adapter == "bitfit" and kind == "modernbert":
        raise ValueError(
            f"adapter.name=bitfit trains biases, and a {kind} model has none; take another adapter"
        )
    layers = shape.get("num_hidden_layers") or shape.get("n_layers")
    by_depth = freeze.gradual or config.train.layer_decay < 1 or freeze.layers not in (0, "all")
    if by_depth and "num_hidden_groups" in shape:
        raise ValueError(
            f'the layers of {kind} models share their weights; set freeze.layers=0 or "all", freeze.gradual=false and '
            "train.layer_decay=1, or take another model"
        )
    if layers and freeze.layers != "all" and freeze.layers > layers:
        raise ValueError(
            f'freeze.layers={freeze.layers}, but the model has {layers} layers; take 0 to {layers}, or "all"'
        )
