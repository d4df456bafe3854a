"""Attention within the sequences of a packed batch, with gradients, by products over groups of about one length.

Neighbouring sequences that differ little in length are padded to the longest of them for the products alone: a call a
length would cost more than it computes. The backward pass is written out, so that nothing is as large as the batch but
the three gradients.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raybert.encoder.attention import Rows, to_device
from raybert.train.dropout import keep_mask

# A group takes in shorter sequences until so many scores of padding, over all heads, would be computed: they take about
# as long as the calls of a group of their own.
_WASTE = 2**17


@dataclass(frozen=True)
class Group:
    """Sequences that are attended to together: tokens `start` to `end` of the batch.

    Attributes:
        length: tokens of the longest of them.
        places: int64 [end - start], where a token lies in [count * length]; None where all have one length.
        hidden: bool [count, 1, 1, length], which places are padding; None likewise.
    """

    start: int
    end: int
    length: int
    places: Tensor | None
    hidden: Tensor | None

    def spread(self, x: Tensor) -> Tensor:
        """[tokens, heads, d] of the batch -> [count * heads, length, d], zero where padded."""
        own = x[self.start : self.end]
        if self.places is not None:
            assert self.hidden is not None
            wide = x.new_zeros(len(self.hidden) * self.length, *x.shape[1:])
            own = wide.index_copy_(0, self.places, own)
        return own.unflatten(0, (-1, self.length)).transpose(1, 2).flatten(0, 1)

    def gather(self, x: Tensor, heads: int, into: Tensor) -> None:
        """[count * heads, length, d] -> these tokens of `into` [tokens, heads, d]."""
        found = x.unflatten(0, (-1, heads)).transpose(1, 2).flatten(0, 1)
        into[self.start : self.end] = found if self.places is None else found[self.places]


def groups(rows: Rows, heads: int) -> list[Group]:
    """The groups of a batch whose sequences are sorted by length."""
    squares = np.asarray(rows.lengths, np.int64) ** 2
    found: list[Group] = []
    end = len(squares)
    while end:
        # of a group of the last sequence, the last two, ...
        wasted = heads * (squares[end - 1] - squares[:end])[::-1].cumsum()
        start = end - int(np.searchsorted(wasted, _WASTE, side="right"))
        found.insert(0, _group(rows, start, end))
        end = start
    return found


def _group(rows: Rows, first: int, last: int) -> Group:
    lengths, longest = rows.lengths[first:last], int(rows.lengths[last - 1])
    start, end = int(rows.offsets[first]), int(rows.offsets[last])
    if lengths[0] == longest:
        return Group(start, end, longest, None, None)
    places = np.repeat(np.arange(last - first) * longest, lengths) + rows.positions[start:end]
    hidden = np.arange(longest) >= lengths[:, None]
    return Group(
        start,
        end,
        longest,
        to_device(places, rows.device),
        to_device(hidden[:, None, None, :], rows.device),
    )


def attend_grouped(q: Tensor, k: Tensor, v: Tensor, rows: Rows, scale: float, dropout: float) -> Tensor:
    """softmax(q k' * scale) v within every sequence; weights are dropped with probability `dropout`.

    q, k, v: [tokens, heads, d] of sequences sorted by length. Returns [tokens, heads, d]; tokens behind the last sequence
    get zeros.
    """
    found = _Attend.apply(q, k, v, groups(rows, q.shape[1]), scale, dropout)
    assert isinstance(found, Tensor)
    return found


class _Attend(torch.autograd.Function):
    """Vaswani et al. 2017, equation 1, group by group, and its gradient."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, parts: list[Group], scale: float, dropout: float
    ) -> Tensor:
        heads = q.shape[1]
        out, kept = _empty_like(q, parts), []
        for part in parts:
            a, b, c = part.spread(q), part.spread(k), part.spread(v)
            scores = torch.baddbmm(a.new_empty(1), a, b.mT, beta=0, alpha=scale)
            if part.hidden is not None:
                scores.unflatten(0, (-1, heads)).masked_fill_(part.hidden, float("-inf"))
            weights = scores.softmax(-1)
            keep = keep_mask(tuple(weights.shape), dropout, q.device) if dropout else None
            used = weights if keep is None else weights * keep
            part.gather(torch.bmm(used, c).mul_(1 / (1 - dropout)), heads, out)
            kept += [a, b, c, weights, keep]
        ctx.save_for_backward(*kept)
        ctx.parts, ctx.scale, ctx.dropout = parts, scale, dropout
        return out

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        grad, saved = gradients[0], ctx.saved_tensors
        heads = grad.shape[1]
        found = [_empty_like(grad, ctx.parts) for _ in range(3)]
        for i, part in enumerate(ctx.parts):
            a, b, c, weights, keep = saved[5 * i : 5 * i + 5]
            above = part.spread(grad)
            if ctx.dropout:
                above = above / (1 - ctx.dropout)
            used = weights if keep is None else weights * keep
            to_v = torch.bmm(used.mT, above)
            to_weights = torch.bmm(above, c.mT)
            if keep is not None:
                to_weights *= keep
            to_scores = torch.ops.aten._softmax_backward_data(to_weights, weights, -1, weights.dtype)
            to_q = torch.baddbmm(a.new_empty(1), to_scores, b, beta=0, alpha=ctx.scale)
            to_k = torch.baddbmm(a.new_empty(1), to_scores.mT, a, beta=0, alpha=ctx.scale)
            for into, value in zip(found, (to_q, to_k, to_v), strict=True):
                part.gather(value, heads, into)
        return *found, None, None, None


def _empty_like(x: Tensor, parts: list[Group]) -> Tensor:
    """To be filled by the groups; zeros behind the last."""
    found = torch.empty_like(x, memory_format=torch.contiguous_format)
    found[parts[-1].end if parts else 0 :] = 0
    return found
