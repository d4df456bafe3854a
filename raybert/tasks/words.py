"""Texts to token ids that know where they lie: the characters of every token, and the words that it belongs to."""

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from raybert.tasks.examples import Lists

TEXTS_PER_CALL = 500

# A word is a run of letters and digits with their marks, or one character of a script without spaces, or one sign
_SINGLE = "\u0e00-\u0edf\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U000323af"
_MARKS = "\u0300-\u036f\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0900-\u0903\u093a-\u094f\u0951-\u0957\u0981-\u0983\u09bc-\u09d7\u200c\u200d"
_WORD = re.compile(f"[{_SINGLE}]|(?:(?![{_SINGLE}])\\w)(?:(?![{_SINGLE}])[\\w{_MARKS}])*|\\S")


@dataclass(frozen=True)
class Pieces:
    """The tokens of n texts without special tokens, one text after the other.

    Attributes:
        ids: int32 lists.
        starts: int64, the first character of a token in its own text.
        ends: int64, the character after its last. Some tokenizers count the space before a word to the token, some
            do not, and the bytes of one character may be several tokens: compare by overlap, never for equality.
    """

    ids: Lists
    starts: np.ndarray
    ends: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """int64, the text of every token."""
        return np.repeat(np.arange(len(self.ids)), self.ids.lengths)

    def covering(
        self, rows: np.ndarray, starts: np.ndarray, ends: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The tokens [first, stop) that overlap characters [start, end) of texts `rows`, counted within the text.

        first == stop where no token does: the tokenizer dropped these characters.
        """
        return overlapping(self.starts, self.ends, self.ids.offsets, rows, starts, ends)

    def words(self, words: "Words") -> tuple[np.ndarray, np.ndarray]:
        """The words [first, stop) that every token overlaps, counted within the text; first == stop for none."""
        return overlapping(words.starts, words.ends, words.offsets, self.rows, self.starts, self.ends)


@dataclass(frozen=True)
class Words:
    """Words of n texts: characters [start, end) in the text, int64, and offsets int64 [n + 1]."""

    starts: np.ndarray
    ends: np.ndarray
    offsets: np.ndarray


def overlapping(
    starts: np.ndarray,
    ends: np.ndarray,
    offsets: np.ndarray,
    rows: np.ndarray,
    from_: np.ndarray,
    to: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Which of the ordered spans of a text overlap a range of its characters: [first, stop), counted within the text.

    Args:
        starts, ends, offsets: the spans of n texts, text i from offsets[i].
        rows, from_, to: the ranges: a text and its characters [from_, to).
    """
    line = max(int(ends.max(initial=0)), int(to.max(initial=0))) + 2  # all texts one after the other, apart
    shift = line * np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    # tokens of one character may come in any order; the running maximum keeps the search sound
    all_starts, all_ends = np.maximum.accumulate(starts + shift), np.maximum.accumulate(ends + shift)
    first = np.searchsorted(all_ends, from_ + line * rows, "right") - offsets[rows]
    stop = np.searchsorted(all_starts, to + line * rows, "left") - offsets[rows]
    return first, np.maximum(first, stop)


def tokenize(tokenizer: Tokenizer, texts: Sequence[str]) -> Pieces:
    """All tokens of the texts; the tokenizer's own truncation and padding are switched off."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    calls = [texts[at : at + TEXTS_PER_CALL] for at in range(0, len(texts), TEXTS_PER_CALL)]

    def encode(call: Sequence[str]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return _arrays(tokenizer.encode_batch(call, add_special_tokens=False))

    # two: one takes the arrays out of its encodings while the other keeps the tokenizer's threads busy
    with ThreadPoolExecutor(2) as pool:
        parts = list(pool.map(encode, calls))
    ids = np.concatenate([np.zeros(0, np.int32), *(part[0] for part in parts)])
    spans = np.concatenate([np.zeros((0, 2), np.int64), *(part[1] for part in parts)])
    lengths = np.concatenate([np.zeros(0, np.int64), *(part[2] for part in parts)])
    return Pieces(Lists(ids, offsets_of(lengths)), spans[:, 0].copy(), spans[:, 1].copy())


def tokenize_distinct(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[Pieces, np.ndarray]:
    """The tokens of the distinct texts, and which of them each text is: int64 [n]. Contexts come with many questions."""
    numbers: dict[str, int] = {}
    which = np.fromiter((numbers.setdefault(text, len(numbers)) for text in texts), np.int64, len(texts))
    return tokenize(tokenizer, list(numbers)), which


def find_words(texts: Sequence[str]) -> Words:
    """The words of texts: runs of letters and digits, single signs, and single characters of scripts without spaces.

    The same whatever the tokenizer, so that models compare.
    """
    spans = [[match.span() for match in _WORD.finditer(text)] for text in texts]
    flat = np.fromiter(chain.from_iterable(chain.from_iterable(spans)), np.int64).reshape(-1, 2)
    lengths = np.fromiter(map(len, spans), np.int64, len(spans))
    return Words(flat[:, 0].copy(), flat[:, 1].copy(), offsets_of(lengths))


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """0 and the running sums of lengths, int64."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])


def _arrays(encodings: list[Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    lengths = np.fromiter(map(len, encodings), np.int64, len(encodings))
    total = int(lengths.sum())
    ids = np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int32, total)
    spans = chain.from_iterable(chain.from_iterable(encoding.offsets for encoding in encodings))
    return ids, np.fromiter(spans, np.int64, 2 * total).reshape(-1, 2), lengths
