"""Layer-wise learning rates: lower layers, which know more of language in general, are trained more gently."""

from typing import Any

from torch import nn

from raybert.train.freezing import depths


def decayed_groups(model: nn.Module, decay: float, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups with `lr_scale` = decay^(L + 2 - depth) (Howard and Ruder 2018; ELECTRA's `optimization.py`).

    Depth 0 are the embeddings, i + 1 layer i, L + 2 the head (see `raybert.train.freezing.depths`). Papers take 0.8
    (ELECTRA), 0.95 (Sun et al. 2019), 1 / 2.6 (ULMFiT); with 1 the updates are those of the plain optimizer.

    Args:
        weight_decay: of matrices; vectors (biases, LayerNorms) have none, as in `optimizers.parameter_groups`.

    Returns:
        `params`, `weight_decay`, `lr_scale` and `depth` each, deepest last, without what is not trained. Whoever sets
        the rate of a step multiplies it by `lr_scale`: torch's optimizers do not know this key.

    Raises:
        ValueError: layers share their weights (ALBERT).
    """
    count, depth = depths(model)
    found: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for parameter in model.parameters():
        if parameter.requires_grad:
            found.setdefault((depth[id(parameter)], parameter.ndim <= 1), []).append(parameter)
    return [
        {
            "params": found[at, vector],
            "weight_decay": 0.0 if vector else weight_decay,
            "lr_scale": decay ** (count + 2 - at),
            "depth": at,
        }
        for at, vector in sorted(found)
    ]
