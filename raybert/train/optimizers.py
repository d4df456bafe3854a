"""The optimizer of a run and what is decayed."""

from typing import Any

from torch import nn
from torch.optim import AdamW, Optimizer

from raybert.train.lamb import Lamb


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: matrices, which are decayed, and vectors (biases, LayerNorms), which are not (Devlin et al. 2019, A.2).

    A tied weight appears once.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim > 1], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(
    name: str,
    model: nn.Module,
    *,
    lr: float = 1e-4,
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-6,
    fused: bool = False,
    groups: list[dict[str, Any]] | None = None,
) -> Optimizer:
    """`adamw` (Loshchilov and Hutter 2019, bias correction on) or `lamb`, over `groups` or `parameter_groups`.

    `fused` is one kernel for all tensors, where these are whole and on one device.
    """
    groups = parameter_groups(model, weight_decay) if groups is None else groups
    if name == "lamb":
        return Lamb(groups, lr=lr, betas=betas, eps=eps)
    assert name == "adamw"
    return AdamW(groups, lr=lr, betas=betas, eps=eps, fused=fused)
