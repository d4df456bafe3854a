"""Labelled rows as token ids and targets: what every task makes of a table, without torch."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

IGNORED = -100
"""The target of a token, or of a sequence, that losses and metrics pass over."""

TARGET_IDS = "target_ids"
"""Name of a target [n, k]: token ids that a decoder writes, IGNORED behind the last."""


@dataclass(frozen=True)
class Lists:
    """A list a row: the values of all rows one after the other, and offsets int64 [n + 1]."""

    values: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        """int64 [n]."""
        return np.diff(self.offsets)

    def take(self, rows: np.ndarray) -> "Lists":
        """Some rows, in the given order."""
        lengths = self.lengths[rows]
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        places = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        return Lists(self.values[places], offsets)


@dataclass(frozen=True)
class Examples:
    """n sequences for an encoder, special tokens included, cut to the longest length.

    Attributes:
        ids: int32 lists, token ids.
        boundary: int32 [n], tokens of the first segment ([CLS] A [SEP]); those after it have token type 1. Equal to
            the length where there is one segment.
        row: int64 [n], the row of the table that a sequence comes from. Several sequences may come from one row
            (windows of a long context), and a rejected row has none.
        targets: by name. Arrays [n] (or [n, k]) hold one target a sequence, `Lists` with the offsets of `ids` one a
            token. IGNORED is passed over.
        truth: by name, what scores compare with, and decoding needs, and no model sees: strings or numbers [n], or `Lists` of any length. What
            holds for a row stands at the first of its sequences.
        cut: bool [n], sequences that are less than their text, the rest of which is in no other; None for none.
    """

    ids: Lists
    boundary: np.ndarray
    row: np.ndarray
    targets: Mapping[str, np.ndarray | Lists]
    truth: Mapping[str, np.ndarray | Lists] = field(default_factory=dict)
    cut: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, rows: np.ndarray) -> "Examples":
        """Some sequences, in the given order."""
        targets, truth = (
            {name: x.take(rows) if isinstance(x, Lists) else x[rows] for name, x in values.items()}
            for values in (self.targets, self.truth)
        )
        cut = None if self.cut is None else self.cut[rows]
        return Examples(self.ids.take(rows), self.boundary[rows], self.row[rows], targets, truth, cut)

    @property
    def sizes(self) -> np.ndarray:
        """int64 [n], the tokens that a model computes for a sequence: its own, and those of TARGET_IDS."""
        written = self.targets.get(TARGET_IDS)
        lengths = self.ids.lengths
        return lengths if written is None else lengths + (written != IGNORED).sum(1)

    @property
    def first(self) -> np.ndarray:
        """bool [n]: the first sequence of a row, where those of a row lie together."""
        return np.append(np.ones(min(1, len(self)), bool), self.row[1:] != self.row[:-1])

    @property
    def number(self) -> np.ndarray:
        """int64 [n]: rows counted from 0 in their order, where the sequences of a row lie together."""
        return np.cumsum(self.first) - 1
