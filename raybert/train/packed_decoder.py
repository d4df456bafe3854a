"""Attention of a decoder on packed batches: over its own earlier tokens, and over the source of the same row.

Targets lie one after the other without padding, and so do sources. All that a decoder computes for tokens, its layers
and the product with the vocabulary, is then computed for real tokens alone; only the products of attention are padded.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from raybert.encoder.attention import Rows, to_device
from raybert.train.dropout import keep_mask

PACKED_DECODER = "raybert_packed_decoder"


@dataclass(frozen=True)
class Pairs:
    """Where the targets of a batch lie, and the source of each."""

    targets: Rows
    sources: Rows

    @cached_property
    def target_places(self) -> Tensor:
        """int64 [target tokens], where a token lies in [n * longest target]."""
        return _places(self.targets)

    @cached_property
    def source_places(self) -> Tensor:
        """int64 [source tokens], where a token lies in [n * longest source]."""
        return _places(self.sources)

    @cached_property
    def hidden_sources(self) -> Tensor:
        """bool [n, 1, 1, longest source], which places are padding."""
        lengths = to_device(self.sources.lengths, self.sources.device)
        at = torch.arange(self.sources.longest, device=lengths.device)
        return (at >= lengths[:, None])[:, None, None, :]

    @cached_property
    def later(self) -> Tensor:
        """bool [longest target, longest target], true above the diagonal: what a token does not see."""
        longest = self.targets.longest
        return torch.ones(longest, longest, dtype=torch.bool, device=self.targets.device).triu(1)


def attend_decoder(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    pairs: Pairs,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """softmax(q k' * scaling) v (Vaswani et al. 2017, section 3.2): each token over those up to itself in its target, or,
    in a module for cross attention, over its source.

    Args:
        query: [1, heads, target tokens, d]. key, value: the same, or [1, heads, source tokens, d].
        pairs: where they lie.
        attention_mask: must be None; nothing is padded.

    Returns:
        [1, target tokens, heads, d], and no weights.
    """
    assert attention_mask is None
    across = type(module).__name__.endswith("CrossAttention")
    keys, places = (pairs.sources, pairs.source_places) if across else (pairs.targets, pairs.target_places)
    hidden = pairs.hidden_sources if across else pairs.later
    q = _spread(query, pairs.targets, pairs.target_places)
    k, v = _spread(key, keys, places), _spread(value, keys, places)
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    if q.is_cuda:
        found = F.scaled_dot_product_attention(q, k, v, attn_mask=~hidden, dropout_p=dropout, scale=scale)
    else:
        found = _attend(q, k, v, hidden, scale, dropout)
    return found.transpose(1, 2).flatten(0, 1)[pairs.target_places][None], None


def _attend(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor, scale: float, dropout: float) -> Tensor:
    """By products: torch's fused kernel draws the random numbers of dropout slowly on a CPU (see `dropout`)."""
    scores = (q * scale) @ k.mT
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1).to(v.dtype)
    if dropout:
        keep = keep_mask(tuple(weights.shape), dropout)
        weights = weights * keep.to(weights.dtype).div_(1 - dropout)
    return weights @ v


def _spread(x: Tensor, rows: Rows, places: Tensor) -> Tensor:
    """[1, heads, tokens, d] -> [n, heads, longest, d], zero where padded."""
    values = x[0].transpose(0, 1)
    wide = values.new_zeros(len(rows.lengths) * rows.longest, *values.shape[1:])
    return wide.index_copy(0, places, values).unflatten(0, (-1, rows.longest)).transpose(1, 2)


def _places(rows: Rows) -> Tensor:
    first = torch.arange(len(rows.lengths)) * rows.longest
    places = first.repeat_interleave(torch.from_numpy(rows.lengths)) + torch.from_numpy(rows.positions)
    return to_device(places.numpy(), rows.device)


AttentionInterface.register(PACKED_DECODER, attend_decoder)
