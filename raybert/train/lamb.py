"""LAMB: Adam whose update of every tensor is as long as its weights are (You et al. 2020, arXiv 1904.00962).

Own code, because the kept libraries do something else: timm cannot be imported beside another build of torchvision,
pytorch-optimizer and DeepSpeed leave out the bias correction or clamp the ratio.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Lamb(Optimizer):
    """u = m^ / (sqrt(v^) + eps) + decay w; w <- w - lr |w| / |u| u for every tensor (algorithm 2 of the paper).

    The ratio is 1 where a norm is 0 and, as in NVIDIA's recipe, for tensors without weight decay (biases, norms).
    Needs whole tensors: not for ZeRO, which hands an optimizer flat pieces. Gradients are clipped by the caller.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: decay of the two moments.
        eps: added to the root of the second.
        weight_decay: of the group.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """One update of every parameter that has a gradient."""
        assert closure is None
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self._update(group, params)

    def _update(self, group: dict[str, Any], params: list[Tensor]) -> None:
        updates = self._adam(group, params)
        if not group["weight_decay"]:
            torch._foreach_add_(params, updates, alpha=-group["lr"])
            return
        torch._foreach_add_(updates, params, alpha=group["weight_decay"])
        weights, lengths = torch._foreach_norm(params), torch._foreach_norm(updates)
        ratios = [torch.where((w > 0) & (u > 0), w / u, 1.0) for w, u in zip(weights, lengths, strict=True)]
        torch._foreach_mul_(updates, ratios)
        torch._foreach_add_(params, updates, alpha=-group["lr"])

    def _adam(self, group: dict[str, Any], params: list[Tensor]) -> list[Tensor]:
        """m^ / (sqrt(v^) + eps) of every parameter."""
        beta1, beta2 = group["betas"]
        for p in params:
            if not self.state[p]:
                self.state[p].update(
                    step=torch.zeros(()), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p)
                )
            self.state[p]["step"] += 1
        grads: list[Any] = [p.grad for p in params]
        means = [self.state[p]["exp_avg"] for p in params]
        squares = [self.state[p]["exp_avg_sq"] for p in params]
        count = int(self.state[params[0]]["step"])
        torch._foreach_lerp_(means, grads, 1 - beta1)
        torch._foreach_mul_(squares, beta2)
        torch._foreach_addcmul_(squares, grads, grads, value=1 - beta2)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, (1 - beta2**count) ** 0.5)
        torch._foreach_add_(roots, group["eps"])
        updates = torch._foreach_div(means, 1 - beta1**count)
        torch._foreach_div_(updates, roots)
        return list(updates)
