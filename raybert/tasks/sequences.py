"""Sequences for an encoder made of parts: special tokens, a cut of one text, a window of another."""

from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from raybert.tasks.examples import IGNORED, Lists
from raybert.tasks.words import offsets_of


@dataclass(frozen=True)
class Frame:
    """The special tokens that a tokenizer puts before, between and after one text, or two.

    `first` is how many of `between` have token type 0; None where the second text has token type 0 too (RoBERTa).
    """

    before: list[int]
    between: list[int]
    after: list[int]
    first: int | None

    @property
    def size(self) -> int:
        """How many special tokens there are."""
        return len(self.before) + len(self.between) + len(self.after)

    @property
    def ids(self) -> np.ndarray:
        """int32, all of them in order."""
        return np.array([*self.before, *self.between, *self.after], np.int32)


def frame(tokenizer: Tokenizer, *, pair: bool = False) -> Frame:
    """How the tokenizer frames a text, or a pair of texts. Its own truncation and padding are switched off.

    Raises ValueError for one that does more than put special tokens before, between and after them.
    """
    tokenizer.no_truncation()
    tokenizer.no_padding()  # else the padding of a folder's tokenizer.json would be taken for special tokens
    probe = ("a", "a") if pair else ("a",)
    encoding = tokenizer.encode(*probe)
    text = np.array([-1 if which is None else which for which in encoding.sequence_ids])
    assert (text == 0).any(), "the letter 'a' must have a token"
    starts = [int(np.flatnonzero(text == k)[0]) for k in range(len(probe))]
    stops = [int(np.flatnonzero(text == k)[-1]) + 1 for k in range(len(probe))]
    ids, types = encoding.ids, np.array(encoding.type_ids)
    between = ids[stops[0] : starts[-1]] if pair else []
    if any((text[a:b] != k).any() for k, (a, b) in enumerate(zip(starts, stops, strict=True))):
        raise ValueError("this tokenizer's post-processor puts special tokens inside of a text")
    first = int((types[stops[0] : starts[-1]] == 0).sum()) if pair and types[starts[-1]] else None
    return Frame(ids[: starts[0]], between, ids[stops[-1] :], first)


@dataclass(frozen=True)
class Layout:
    """Sequences as parts of a pool of values: `places` of every value in the pool, and offsets int64 [n + 1]."""

    places: np.ndarray
    offsets: np.ndarray

    def lists(self, pool: np.ndarray) -> Lists:
        """The sequences of another pool that is laid out alike."""
        return Lists(pool[self.places], self.offsets)

    @property
    def within(self) -> np.ndarray:
        """int64, the position of every value in its sequence."""
        return np.arange(len(self.places)) - np.repeat(self.offsets[:-1], np.diff(self.offsets))


def lay_out(starts: np.ndarray, lengths: np.ndarray) -> Layout:
    """Sequences of k parts each: [n, k] starts in the pool and lengths."""
    inner = offsets_of(lengths.ravel())
    places = np.arange(inner[-1]) + np.repeat(starts.ravel() - inner[:-1], lengths.ravel())
    return Layout(places, inner[:: lengths.shape[1]].copy())


def with_specials(frame: Frame, values: np.ndarray, *, fill: int = IGNORED) -> np.ndarray:
    """A pool: as many `fill` as the frame has special tokens, then the values."""
    return np.concatenate([np.full(frame.size, fill, values.dtype), values])


@dataclass(frozen=True)
class Windows:
    """Windows [start, stop) of texts, in order. A window owns the tokens [own_start, own_stop): each token of a text
    is owned by one window, that where it has most context."""

    row: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    own_start: np.ndarray
    own_stop: np.ndarray


def windows(lengths: np.ndarray, room: np.ndarray, overlap: int) -> Windows:
    """Cut texts of `lengths` tokens in windows of at most `room` [n] tokens; neighbours share `overlap`, at most half.

    The last window is moved back until it is full. The context of a token is the smaller of its distances to the two
    ends of the window, so the border between neighbours lies in the middle of what they share. Texts without tokens
    have no window.
    """
    assert (room >= 1).all(), "a window needs room"
    step = room - np.minimum(overlap, room // 2)
    counts = np.where(lengths > room, 1 + -(-(lengths - room) // step), np.minimum(lengths, 1))
    row = np.repeat(np.arange(len(lengths)), counts)
    number = np.arange(len(row)) - np.repeat(offsets_of(counts)[:-1], counts)
    start = np.minimum(number * step[row], np.maximum(lengths - room, 0)[row])
    stop = np.minimum(start + room[row], lengths[row])
    border = np.zeros(len(row), np.int64)
    border[1:] = (start[:-1] + start[1:] + room[row][1:] - 1) // 2 + 1
    own_start = np.where(number == 0, 0, border)
    own_stop = np.where(number == counts[row] - 1, lengths[row], np.append(border[1:], 0))
    return Windows(row, start, stop, own_start, own_stop)
