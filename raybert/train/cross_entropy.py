"""The cross entropy over a vocabulary, a few rows at a time: logits are read once, and no copy of them is as large."""

from typing import Any

import torch
from torch import Tensor

# Rows are taken so many at a time that their float32 logits stay in a CPU's cache (bytes); a GPU wants more at once.
_CACHED_BYTES, _GPU_BYTES = 2**22, 2**28


def cross_entropy(logits: Tensor, labels: Tensor, smoothing: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
    """Sum of -log softmax(logits)[label] in float32, labels counted, and of these predicted right; each of shape [].

    logits: [m, classes] of any float type; labels: int64 [m], -100 where a row is not counted. The gradient is that of
    the first alone. smoothing: the share of the truth that is spread over all classes (Szegedy et al. 2016, section 7).
    """
    wanted = logits.requires_grad and torch.is_grad_enabled()
    total, right = _CrossEntropy.apply(logits, labels, wanted, smoothing)
    return total, (labels >= 0).sum().float(), right


class _CrossEntropy(torch.autograd.Function):
    """The gradient, softmax - one-hot, is made beside the loss: the rows are in the cache then."""

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, labels: Tensor, wanted: bool, smoothing: float
    ) -> tuple[Tensor, Tensor]:
        total = torch.zeros((), device=logits.device)
        right = torch.zeros((), device=logits.device)
        gradient = torch.empty_like(logits) if wanted else None
        step = max(1, (_GPU_BYTES if logits.is_cuda else _CACHED_BYTES) // (4 * logits.shape[1]))
        for start in range(0, len(logits), step):
            part = slice(start, start + step)
            rows, asked = logits[part].float(), labels[part]
            counted = asked >= 0
            at = asked.clamp(min=0)[:, None]
            chosen = rows.gather(1, at)
            right += _count_right(rows, chosen, at, counted)
            logs = rows.logsumexp(1, keepdim=True)
            truth = chosen
            if smoothing:
                truth = (1 - smoothing) * chosen + smoothing * rows.mean(1, keepdim=True)
            total += torch.where(counted, (logs - truth)[:, 0], 0).sum()
            if gradient is not None:
                slope = (rows - logs).exp_()
                slope.scatter_add_(1, at, torch.full_like(chosen, smoothing - 1))
                if smoothing:
                    slope -= smoothing / logits.shape[1]
                gradient[part] = slope.mul_(counted[:, None])
        ctx.mark_non_differentiable(right)
        ctx.save_for_backward(gradient)
        return total, right

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return gradient * gradients[0].to(gradient.dtype), None, None, None


def _count_right(rows: Tensor, chosen: Tensor, at: Tensor, counted: Tensor) -> Tensor:
    """How many labels are the first among the largest logits of their row.

    On a CPU that is looked up only where nothing is larger: the position of a maximum takes ten times as long as it.
    """
    if rows.is_cuda:
        return ((rows.argmax(1, keepdim=True) == at)[:, 0] & counted).sum()
    best = (chosen >= rows.amax(1, keepdim=True))[:, 0] & counted
    return (rows[best].argmax(1, keepdim=True) == at[best]).sum()
