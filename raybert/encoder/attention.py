"""Attention without padding: every text of a packed batch attends to itself alone."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from raybert.encoder.native import attend_native

# Scores of so many bytes are computed at a time on a CPU: they stay in its second-level cache.
_CACHED_BYTES = 2**20


@dataclass(frozen=True)
class Rows:
    """Where the texts of a packed batch lie: text i has `lengths[i]` tokens, right after those of text i - 1."""

    lengths: np.ndarray
    device: str = "cpu"

    @cached_property
    def offsets(self) -> np.ndarray:
        """int64 [n + 1]: text i is tokens offsets[i] to offsets[i + 1]."""
        return np.concatenate([[0], np.cumsum(self.lengths)]).astype(np.int64)

    @cached_property
    def positions(self) -> np.ndarray:
        """int64 [tokens]: the place of every token in its text, from 0."""
        return np.arange(self.offsets[-1]) - np.repeat(self.offsets[:-1], self.lengths)

    @cached_property
    def runs(self) -> list[tuple[int, int, int]]:
        """(first token, end, length) of every run of neighbouring texts of one length."""
        changes = np.flatnonzero(np.diff(self.lengths)) + 1
        bounds = [0, *changes.tolist(), len(self.lengths)]
        return [
            (int(self.offsets[a]), int(self.offsets[b]), int(self.lengths[a]))
            for a, b in pairwise(bounds)
            if a < b and self.lengths[a]
        ]

    @cached_property
    def cumulative(self) -> Tensor:
        """`offsets` as torch's variable-length attention takes them: int32, on the device."""
        return to_device(self.offsets.astype(np.int32), self.device)

    @cached_property
    def longest(self) -> int:
        """Tokens of the longest text."""
        return int(self.lengths.max(initial=1))


def to_device(array: np.ndarray, device: str | torch.device) -> Tensor:
    """A copy there that the host does not wait for: on the CPU the array itself, for a GPU through pinned memory."""
    tensor = torch.from_numpy(array)
    if torch.device(device).type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


def attend(
    qkv: Tensor,
    rows: Rows,
    *,
    bias: Tensor | None = None,
    window: int | None = None,
    native: bool = False,
) -> Tensor:
    """softmax(q k' / sqrt(d) + bias) v within every text (Vaswani et al. 2017, section 3.2.1).

    Args:
        qkv: [tokens, 3, heads, d], queries, keys and values of a packed batch; behind its texts there may be filling.
        bias: [heads, longest, longest], added to the scores.
        window: tokens further apart than this do not see each other (ModernBERT's local layers).
        native: by our own kernel (see native.py); only where `why_not` has nothing against it.

    Returns:
        [tokens, heads * d]; zeros for the filling, but by torch's variable-length kernel anything.
    """
    if bias is None and flash_works(qkv):
        return attend_flash(qkv, rows.cumulative, rows.longest, window=window)
    if native:
        return attend_native(qkv, rows.offsets, bias=bias, window=window)
    out = qkv.new_empty(len(qkv), qkv.shape[2] * qkv.shape[3])
    out[int(rows.offsets[-1]) :] = 0
    for start, end, length in rows.runs:
        part = qkv[start:end].view(-1, length, *qkv.shape[1:]).permute(2, 0, 3, 1, 4)  # [3, b, heads, t, d]
        mask = _mask(qkv, length, bias, window)
        if mask is None and qkv.dtype == torch.bfloat16 and not qkv.is_cuda:
            found = _attend_products(part)
        else:
            found = F.scaled_dot_product_attention(part[0], part[1], part[2], attn_mask=mask)
        out[start:end].view(-1, length, *qkv.shape[2:]).copy_(found.transpose(1, 2))
    return out


def flash_works(like: Tensor) -> bool:
    """Whether torch has a variable-length kernel for tensors like this one: 16-bit ones on a GPU."""
    return like.is_cuda and like.dtype in (torch.bfloat16, torch.float16)


def attend_flash(qkv: Tensor, cumulative: Tensor, longest: int, *, window: int | None = None) -> Tensor:
    """`attend` in one kernel (Dao 2023, arXiv 2307.08691). Tokens beyond the last text get anything."""
    from torch.nn.attention.varlen import varlen_attn

    q, k, v = qkv.unbind(1)
    sides = (-1, -1) if window is None else (window, window)
    return varlen_attn(q, k, v, cumulative, cumulative, longest, longest, window_size=sides).flatten(1)


def _mask(qkv: Tensor, length: int, bias: Tensor | None, window: int | None) -> Tensor | None:
    """What is added to the scores of a text of `length` tokens; None for nothing."""
    mask = None if bias is None else bias[:, :length, :length].to(qkv.dtype)
    if window is not None and length > window + 1:
        at = torch.arange(length, device=qkv.device)
        near = (at[:, None] - at).abs() <= window
        far = torch.zeros(1, length, length, dtype=qkv.dtype, device=qkv.device).masked_fill_(
            ~near, float("-inf")
        )
        mask = far if mask is None else mask + far
    return mask


def _attend_products(qkv: Tensor) -> Tensor:
    """Attention as two batched products, for bfloat16 on a CPU: there torch's fused kernel takes 1.3 to 3 times as long.

    qkv [3, b, heads, t, d] -> [b, heads, t, d].
    """
    _, b, heads, t, d = qkv.shape
    q, k, v = qkv.reshape(3, b * heads, t, d)
    out = torch.empty_like(q)
    step = max(_CACHED_BYTES // (t * t * q.element_size()), 1)
    for i in range(0, b * heads, step):
        scores = torch.baddbmm(q.new_empty(1), q[i : i + step], k[i : i + step].mT, beta=0, alpha=d**-0.5)
        torch.bmm(_softmax(scores), v[i : i + step], out=out[i : i + step])
    return out.view(b, heads, t, d)


def _softmax(scores: Tensor) -> Tensor:
    """Softmax over the last dimension, bfloat16 in and out, in the way that torch's vector code likes best."""
    t = scores.shape[-1]
    if t % 32 == 0:
        return scores.softmax(-1)
    if t < 16:  # rows shorter than a vector register are computed number by number
        return F.pad(scores, (0, 32 - t), value=float("-inf")).softmax(-1)[..., :t]
    return scores.softmax(-1, dtype=torch.float32).to(scores.dtype)
