"""Dynamic masking: what is predicted is a function of (seed, epoch, instance, position), made when a batch is read."""

from dataclasses import dataclass

import numpy as np

from raybert.pretrain.counter import bits, uniform

STYLES = ("token", "word", "span")
# Shares of the chosen tokens that become [MASK] and a random token (BERT, arXiv 1810.04805, section 3.1); others stay
MASKED, RANDOM = 0.8, 0.1

# Span lengths in words (SpanBERT, arXiv 1907.10529, section 3.1): geometric, of those up to the longest
_SPAN_PROBABILITY, _LONGEST_SPAN = 0.2, 10
_SPAN_CUMULATIVE = 1 - (1 - _SPAN_PROBABILITY) ** np.arange(1, _LONGEST_SPAN + 1)
_SPAN_CUMULATIVE /= _SPAN_CUMULATIVE[-1]

# Names of the independent streams of random numbers
_CHOICE, _REPLACEMENT, _TOKEN, _LENGTH, _PLACE = range(5)


@dataclass(frozen=True)
class Masking:
    """Which share of the tokens is predicted, and what is chosen: single tokens, whole words or spans of words."""

    probability: float = 0.15
    style: str = "token"

    def __post_init__(self) -> None:
        if not 0 < self.probability < 1:
            raise ValueError(f"masking probability is {self.probability}; it must be between 0 and 1")
        if self.style not in STYLES:
            raise ValueError(f"masking style is {self.style!r}; use one of {', '.join(STYLES)}")


@dataclass(frozen=True)
class _Batch:
    """What all styles need: per token its instance, its place there, whether it may be chosen, its unit's number.

    Units (words, or single tokens) are numbered through the batch and hold no special token together with others.
    """

    rows: int
    row: np.ndarray  # int64 [tokens]
    place: np.ndarray  # int64 [tokens]
    maskable: np.ndarray  # bool [tokens]
    unit: np.ndarray  # int64 [tokens]
    heads: np.ndarray  # int64 [units] the first token of every unit
    streams: np.ndarray  # uint64 [rows] begin of the instance's random numbers


def mask(
    values: np.ndarray,
    starts: np.ndarray,
    offsets: np.ndarray,
    keys: np.ndarray,
    *,
    masking: Masking,
    seed: int,
    epoch: int,
    vocabulary: int,
    mask_id: int,
    special_ids: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """Mask a batch of n instances: masked ids int32 [tokens] and the predicted positions, int64 [m], ascending.

    The labels are `values[positions]`. `values` int [tokens] with special tokens, `starts` bool [tokens] (the token
    begins a word), `offsets` int64 [n + 1], `keys` uint64 [n].

    "token": every token but the special ones is chosen with the probability. "word": every word is, whole, so that
    the expected share of tokens is the same; a word ends at a start and at a special token. "span": SpanBERT's spans
    of 1 to 10 words (mean 3.8) until round(probability x tokens) are chosen; the last word may exceed that. Of an
    instance with any token to choose at least one unit is. A chosen token (in "span": all of a span) becomes [MASK]
    with probability 0.8, a uniformly random id of the vocabulary with 0.1 and stays with 0.1. An instance's masks
    depend on its own tokens, its key, the seed and the epoch only.
    """
    batch = _describe(values, starts, offsets, keys, masking, seed, epoch, special_ids)
    if masking.style == "span":
        span = _spans(batch, masking.probability)
        positions = np.flatnonzero(span >= 0)
        decider = span[positions]
    else:
        positions = np.flatnonzero(_units(batch, masking.probability))
        decider = batch.place[positions]
    streams = batch.streams[batch.row[positions]]
    fate = uniform(streams, _REPLACEMENT, decider)
    masked = values.astype(np.int32)
    masked[positions[fate < MASKED]] = mask_id
    replaced = (fate >= MASKED) & (fate < MASKED + RANDOM)
    at = positions[replaced]
    draw = uniform(streams[replaced], _TOKEN, batch.place[at])
    masked[at] = (draw * vocabulary).astype(np.int32)
    return masked, positions


def _describe(
    values: np.ndarray,
    starts: np.ndarray,
    offsets: np.ndarray,
    keys: np.ndarray,
    masking: Masking,
    seed: int,
    epoch: int,
    special_ids: np.ndarray,
) -> _Batch:
    assert len(starts) == len(values) == offsets[-1], (
        "one start flag a token, and offsets end with the tokens"
    )
    assert len(keys) == len(offsets) - 1, "one key an instance"
    lengths = np.diff(offsets)
    row = np.repeat(np.arange(len(lengths)), lengths)
    place = np.arange(len(values)) - offsets[row]
    special = np.isin(values, special_ids)
    begins = np.ones(len(values), bool)
    if masking.style != "token":
        begins[1:] = starts[1:] | special[1:] | special[:-1] | (place[1:] == 0)
    return _Batch(
        rows=len(lengths),
        row=row,
        place=place,
        maskable=~special,
        unit=np.cumsum(begins) - 1,
        heads=np.flatnonzero(begins),
        streams=bits(seed, epoch, keys),
    )


def _units(batch: _Batch, probability: float) -> np.ndarray:
    """Tokens of the units that are chosen, each on its own: bool [tokens]."""
    streams = batch.streams[batch.row[batch.heads]]
    draws = uniform(streams, _CHOICE, batch.place[batch.heads])[batch.unit]
    draws[~batch.maskable] = 2.0  # above every draw and every probability
    chosen = draws < probability
    empty = np.bincount(batch.row[chosen], minlength=batch.rows) == 0
    if empty.any():
        least = np.full(batch.rows, 2.0)
        np.minimum.at(least, batch.row, draws)
        chosen |= (empty[batch.row] & batch.maskable) & (draws == least[batch.row])
    return chosen


def _spans(batch: _Batch, probability: float) -> np.ndarray:
    """Which span of its instance every token is in, -1 for none: int64 [tokens].

    All instances draw a span in each round, those whose budget is used up no more. A span ends early before a
    special token, before a word that is chosen already, and with the word that uses up the budget.
    """
    words = batch.heads[batch.maskable[batch.heads]]
    word_row = batch.row[words]
    sizes = np.diff(np.append(batch.heads, len(batch.unit)))[batch.unit[words]]
    # a gap in the numbering of units is a special token between two words
    joined = np.append(np.diff(batch.unit[words]) == 1, False) & np.append(np.diff(word_row) == 0, False)
    counts = np.bincount(word_row, minlength=batch.rows)
    first = np.cumsum(counts) - counts
    maskable = np.bincount(batch.row[batch.maskable], minlength=batch.rows)
    left = np.where(maskable, np.maximum(1, np.rint(probability * maskable)), 0).astype(np.int64)
    span = np.full(len(words), -1)
    round_ = 0
    while (active := np.flatnonzero(left > 0)).size:
        streams = batch.streams[active]
        length = 1 + np.searchsorted(_SPAN_CUMULATIVE, uniform(streams, _LENGTH, round_), side="right")
        word = first[active] + (uniform(streams, _PLACE, round_) * counts[active]).astype(np.int64)
        for taken in range(_LONGEST_SPAN):
            going = (taken < length) & (span[word] < 0) & (left[active] > 0)
            active, length, word = active[going], length[going], word[going]
            span[word] = round_
            left[active] -= sizes[word]
            on = joined[word]
            active, length, word = active[on], length[on], word[on] + 1
        round_ += 1
    return _over_tokens(span, batch, words)


def _over_tokens(span: np.ndarray, batch: _Batch, words: np.ndarray) -> np.ndarray:
    """What is known of words, for their tokens."""
    by_unit = np.full(len(batch.heads), -1)
    by_unit[batch.unit[words]] = span
    return by_unit[batch.unit]
