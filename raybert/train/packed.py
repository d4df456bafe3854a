"""Packed batches for training: no padding, and attention that keeps the sequences of a batch apart.

The model stays a plain transformers model; only its attention function is ours, by transformers' own interface. Where
the sequences lie travels as the keyword `packed` through the model's forward, so that a layer which is computed again
in the backward pass (activation checkpointing) gets the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from raybert.encoder.attention import Rows, flash_works, to_device
from raybert.train.grouped import attend_grouped

PACKED = "raybert_packed"


class Micro(Protocol):
    """One packed forward pass of n sequences, as numpy arrays.

    Attributes:
        ids: [tokens]. lengths: [n]. types: [tokens], token type ids.
        positions: [m], the tokens of which something is asked alone, such as the masked ones of pretraining.
        per_sequence, per_token, per_position: what is to be learnt, by name: [n] or [n, k], [tokens], [m].
        digest: of the content, for comparing runs.
    """

    @property
    def ids(self) -> np.ndarray: ...
    @property
    def lengths(self) -> np.ndarray: ...
    @property
    def types(self) -> np.ndarray: ...
    @property
    def positions(self) -> np.ndarray: ...
    @property
    def per_sequence(self) -> Mapping[str, np.ndarray]: ...
    @property
    def per_token(self) -> Mapping[str, np.ndarray]: ...
    @property
    def per_position(self) -> Mapping[str, np.ndarray]: ...
    @property
    def digest(self) -> int: ...


@dataclass(frozen=True)
class PackedBatch:
    """One forward pass on its device, sequences in the order of their lengths.

    Attributes:
        ids: int64 [1, tokens]. types: int64 [1, tokens].
        places: int64 [1, tokens], the place of every token in its sequence, from 0.
        rows: where the sequences lie.
        starts: int64 [n], the first token of every sequence.
        positions: int64 [m], the tokens of which something is asked alone.
        targets: by name, [n] or [n, k] of sequences, [tokens] of tokens, [m] of positions; whole numbers are int64, others
            float32. -100 (`raybert.tasks.examples.IGNORED`) is passed over.
        member: the task that it is of, where a model learns several at once.
    """

    ids: Tensor
    types: Tensor
    places: Tensor
    rows: Rows
    starts: Tensor
    positions: Tensor
    targets: Mapping[str, Tensor]
    member: str = ""


def pack(micro: Micro, device: str | torch.device = "cpu") -> PackedBatch:
    """The batch on its device. Sequences are sorted by length: those of about one length are attended to together."""
    order = np.argsort(micro.lengths, kind="stable")
    lengths = np.asarray(micro.lengths, dtype=np.int64)[order]
    old_starts = np.concatenate([[0], np.cumsum(micro.lengths)[:-1]])[order]
    rows = Rows(lengths, str(device))
    moved_from = np.repeat(old_starts, lengths) + rows.positions  # old place of every token, in the new order
    new_place = np.empty_like(moved_from)
    new_place[moved_from] = np.arange(len(moved_from))

    def there(array: np.ndarray) -> Tensor:
        kind = np.float32 if np.issubdtype(array.dtype, np.floating) else np.int64
        return to_device(np.ascontiguousarray(array, dtype=kind), device)

    targets = {
        **{name: there(target[order]) for name, target in micro.per_sequence.items()},
        **{name: there(target[moved_from]) for name, target in micro.per_token.items()},
        **{name: there(target) for name, target in micro.per_position.items()},
    }
    return PackedBatch(
        ids=there(micro.ids[moved_from])[None],
        types=there(micro.types[moved_from])[None],
        places=there(rows.positions)[None],
        rows=rows,
        starts=there(rows.offsets[:-1]),
        positions=there(new_place[micro.positions]),
        targets=targets,
        member=getattr(micro, "member", ""),
    )


def attend_packed(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packed: Rows,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """softmax(q k' * scaling) v within every sequence, differentiable, with dropout of the weights.

    Args:
        query: [1, heads, tokens, d]; key and value likewise.
        packed: where the sequences lie.
        attention_mask: must be None; nothing is padded.

    Returns:
        [1, tokens, heads, d], and no weights.
    """
    assert attention_mask is None
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))  # [tokens, heads, d]
    if dropout == 0 and flash_works(q):
        from torch.nn.attention.varlen import varlen_attn

        ends, longest = packed.cumulative, packed.longest
        return varlen_attn(q, k, v, ends, ends, longest, longest, scale=scaling)[None], None
    scale = q.shape[-1] ** -0.5 if scaling is None else scaling
    return attend_grouped(q, k, v, packed, scale, dropout)[None], None


AttentionInterface.register(PACKED, attend_packed)
