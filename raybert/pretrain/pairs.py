"""Which ranges of tokens make the segment pairs of one document: chunks grow, are cut in two and truncated."""

from bisect import bisect_left
from typing import NamedTuple

import numpy as np

from raybert.pretrain.counter import Draws

Span = tuple[int, int]  # tokens from, to


class Row(NamedTuple):
    """One instance as token ranges of the documents; a pair if there is a second range."""

    first: int
    first_end: int
    second: int
    second_end: int
    label: int
    document: int


class Text:
    """Documents as lists, for the loops that take one sentence after the other; without empty sentences.

    `offsets` are those of the sentences, `shift` added; `bounds` are the documents' first sentences.
    """

    def __init__(
        self, sentences: np.ndarray, documents: np.ndarray, keys: np.ndarray, shift: int = 0
    ) -> None:
        filled = np.diff(sentences) > 0
        kept = np.concatenate([sentences[:-1][filled], sentences[-1:]])
        before = np.concatenate([np.zeros(1, np.int64), np.cumsum(filled)])
        self.offsets: list[int] = (kept + shift).tolist()
        self.bounds: list[int] = before[documents].tolist()
        self.keys: list[int] = keys.tolist()
        self._filled = np.flatnonzero(np.diff(self.bounds)).tolist()

    def grow(self, start: int, limit: int, target: int) -> int:
        """End of the run of sentences from `start` that has at least `target` tokens, or `limit`; one at least."""
        return bisect_left(self.offsets, self.offsets[start] + target, start + 1, limit)

    def other(self, key: int, draws: Draws) -> int | None:
        """A random document with another key and with tokens, None if there is none."""
        if self._filled:
            number = self._filled[draws.below(len(self._filled))]
            if self.keys[number] != key:
                return number
        others = [number for number in self._filled if self.keys[number] != key]
        return others[draws.below(len(others))] if others else None


def next_sentence_rows(
    own: Text, number: int, other: Text, room: int, short_probability: float, draws: Draws
) -> list[Row]:
    """BERT's pairs of document `number`: label 0 in order, 1 with B from another document, -1 without a B."""
    target = _draw_target(draws, room, short_probability)
    start, limit = own.bounds[number : number + 2]
    at, rows = own.offsets, []
    while start < limit:
        end = own.grow(start, limit, target)
        alone = end - start == 1
        middle = start + 1 if alone else start + 1 + draws.below(end - start - 1)
        donor = other.other(own.keys[number], draws) if alone or draws.uniform() < 0.5 else None
        if donor is not None:
            first = at[start], at[middle]
            second = _donated(other, donor, target - (first[1] - first[0]), draws)
            rows.append(Row(*_cut_pair(first, second, room, draws), 1, number))
        elif alone:
            first = _cut(at[start], at[end], at[end] - at[start] - room - 1, draws)
            rows.append(Row(*first, 0, 0, -1, number))
        else:
            pair = _cut_pair((at[start], at[middle]), (at[middle], at[end]), room, draws)
            rows.append(Row(*pair, 0, number))
        start = end if donor is None else middle
    return rows


def _draw_target(draws: Draws, room: int, short_probability: float) -> int:
    """All the room, or with `short_probability` a length from 2 to it."""
    return 2 + draws.below(room - 1) if draws.uniform() < short_probability else room


def _donated(text: Text, number: int, target: int, draws: Draws) -> Span:
    """Sentences of a document from a random one on, one at least, until there are `target` tokens."""
    begin, limit = text.bounds[number : number + 2]
    start = begin + draws.below(limit - begin)
    return text.offsets[start], text.offsets[text.grow(start, limit, target)]


def sentence_order_rows(
    text: Text, starts: np.ndarray, number: int, room: int, short_probability: float, draws: Draws
) -> list[Row]:
    """ALBERT's pairs of document `number`: label 0 in order, 1 swapped."""
    target = _draw_target(draws, room, short_probability)
    start, limit = text.bounds[number : number + 2]
    at, rows = text.offsets, []
    while start < limit:
        end = text.grow(start, limit, target)
        if end - start > 1:
            middle = at[start + 1 + draws.below(end - start - 1)]
        else:
            middle = _middle(starts, at[start], at[end])
        if middle > at[start]:
            pair = (at[start], middle), (middle, at[end])
            swapped = int(draws.uniform() < 0.5)
            rows.append(Row(*_cut_pair(pair[swapped], pair[1 - swapped], room, draws), swapped, number))
        start = end
    return rows


def _middle(starts: np.ndarray, begin: int, end: int) -> int:
    """Where to cut a sentence in two: a B that begins inside a word would tell the order. `begin` if it cannot be."""
    middle = (begin + end) // 2
    words = np.flatnonzero(starts[begin + 1 : end]) + begin + 1
    return int(words[np.argmin(np.abs(words - middle))]) if len(words) else middle


def _cut_pair(first: Span, second: Span, room: int, draws: Draws) -> tuple[int, int, int, int]:
    """Both segments, at most `room` tokens together: always a token of the longer goes, of B where they are equal."""
    gap = (first[1] - first[0]) - (second[1] - second[0])
    excess = first[1] - first[0] + second[1] - second[0] - room
    if excess <= 0:
        return *first, *second
    alone = min(excess, abs(gap))
    both = excess - alone
    from_first = both // 2 + (alone if gap > 0 else 0)
    return *_cut(*first, from_first, draws), *_cut(*second, excess - from_first, draws)


def _cut(begin: int, end: int, tokens: int, draws: Draws) -> Span:
    """The range without so many of its tokens: for each a coin says whether it goes from the front or the back."""
    if tokens <= 0:
        return begin, end
    front = draws.heads(tokens)
    return begin + front, end - (tokens - front)
