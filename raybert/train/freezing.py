"""Which part of a transformers encoder a parameter belongs to, and leaving the lower parts as they are."""

from collections.abc import Callable
from typing import Any, Literal

from torch import nn

# after the layers, but made for a task: random in many a checkpoint
_OF_THE_HEAD = ("pooler",)


def freeze(model: nn.Module, layers: int | Literal["all"], embeddings: bool) -> None:
    """Let the lowest parts of a transformers model be without gradients.

    Call it before an optimizer is made.

    Args:
        layers: so many of the lowest layers; "all" is everything but the head (with the pooler).
        embeddings: word, position and type embeddings with their norm. Always with "all".

    Raises:
        ValueError: the model has fewer layers, or shares its weights between layers.
    """
    if layers == "all":
        kept = {id(p) for p in head_parameters(model)}
        for parameter in model.parameters():
            if id(parameter) not in kept:
                parameter.requires_grad_(False)
        return
    count, depth = depths(model) if layers else (0, _embedding_depths(model))
    if not 0 <= layers <= count:
        raise ValueError(
            f'freeze.layers={layers}, but the model has {count} layers; take 0 to {count}, or "all"'
        )
    for parameter in model.parameters():
        at = depth.get(id(parameter))
        if at is not None and (embeddings if at == 0 else at <= layers):
            parameter.requires_grad_(False)


def unfreeze_schedule(model: nn.Module, steps: int) -> Callable[[int, int], float]:
    """Gradual unfreezing (Howard and Ruder 2018, section 3.3): the head first, then a layer more every `steps` steps.

    DeepSpeed takes note of `requires_grad` once, so nothing is frozen: what is not yet trained has the learning rate 0.
    Its weights stay as they are to the bit (weight decay is multiplied by the rate, too); Adam's moments are kept up
    meanwhile, and gradients are computed: it saves no time.

    Args:
        steps: of a stage; the paper takes an epoch.

    Returns:
        (depth, step) -> the factor 0 or 1 of the rate of that depth (`raybert.train.layer_decay` tells depths; the head is
        trained from step 0, layer L - 1 from `steps`, the embeddings from (L + 1) * `steps`).
    """
    assert steps > 0
    count = depths(model)[0]

    def factor(depth: int, step: int) -> float:
        # a norm after the last layer (depth L + 1) belongs to that layer
        stage = 0 if depth == count + 2 else count + 1 - min(depth, count)
        return float(step >= stage * steps)

    return factor


def trainable_parameters(model: nn.Module) -> tuple[int, int]:
    """(numbers that are trained, all numbers) of a model; what is tied counts once, what ZeRO 3 cut up counts whole."""
    sizes = [(p.requires_grad, getattr(p, "ds_numel", p.numel())) for p in model.parameters()]
    return sum(size for trained, size in sizes if trained), sum(size for _, size in sizes)


def depths(model: nn.Module) -> tuple[int, dict[int, int]]:
    """The number of layers L, and by the `id` of a parameter how deep it is.

    0 embeddings, i + 1 layer i, L + 1 a norm after the last layer, L + 2 the head: the pooler and what lies outside of the
    encoder. Works on a model with adapters in its layers: they are as deep as these.

    Raises:
        ValueError: layers share their weights (ALBERT), or cannot be found.
    """
    body = encoder_of(model)
    layers = _layers(body)
    count = len(layers)
    found = {id(p): count + 2 for p in model.parameters()}
    found |= {id(p): count + 1 for p in body.parameters()}
    found |= {id(p): count + 2 for p in head_parameters(model)}
    found |= _embedding_depths(model)
    for i, layer in enumerate(layers):
        found |= {id(p): i + 1 for p in layer.parameters()}
    return count, found


def head_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The parameters outside of the encoder, and its pooler."""
    body = encoder_of(model)
    poolers = [child for name, child in body.named_children() if name in _OF_THE_HEAD]
    pooler = {id(p) for child in poolers for p in child.parameters()}
    inside = {id(p) for p in body.parameters()} - pooler
    return [p for p in model.parameters() if id(p) not in inside]


def encoder_of(model: Any) -> Any:
    """The encoder of a transformers model with a head, also inside of peft's wrapper. A decoder is a head."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    return plain.encoder if plain.config.is_encoder_decoder else plain.base_model


def _layers(body: Any) -> nn.ModuleList:
    """The list of layers: the outermost one that is as long as the configuration says."""
    config = body.config
    if hasattr(config, "num_hidden_groups"):
        raise ValueError(
            f"the layers of {config.model_type} models share their weights; "
            'set freeze.layers=0 or "all" and train.layer_decay=1, or take another model'
        )
    for module in body.modules():
        if isinstance(module, nn.ModuleList) and len(module) == config.num_hidden_layers:
            return module
    raise ValueError(f'the layers of {config.model_type} models are not known; set freeze.layers=0 or "all"')


def _embedding_depths(model: nn.Module) -> dict[int, int]:
    """0 for what comes before the layers: the module with the word embedding, projections of it, position biases."""
    body = encoder_of(model)
    words = body.get_input_embeddings()
    layers = [m for m in body.modules() if isinstance(m, nn.ModuleList)]
    inside = {id(m) for found in layers for m in found.modules()}
    chosen: list[nn.Module] = [
        child
        for name, child in body.named_children()
        if any(m is words for m in child.modules()) or name.startswith("embeddings")
    ]
    chosen += [m for m in body.modules() if isinstance(m, nn.Embedding) and id(m) not in inside]
    return {id(p): 0 for module in chosen for p in module.parameters()}
