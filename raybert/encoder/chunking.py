"""Long documents: overlapping windows of tokens as character spans, and one vector from many. No torch."""

from collections.abc import Iterator

import numpy as np

from raybert.encoder.tokenizing import SlowTokenizer, TextTokenizer, TokenSpans

Span = tuple[int, int]


def chunk(tokenizer: TextTokenizer | SlowTokenizer, text: str, size: int, overlap: int) -> list[Span]:
    """Character spans (start, end) of windows of at most `size` content tokens; special tokens and prompt not counted.

    Neighbours share about `overlap` tokens; together the windows cover every token. They are cut at word starts
    where possible, so that tokenizing `text[start:end]` gives at most `size` tokens again; this is checked, and a
    window that fails is shortened, inside a token if need be. Only a single character that alone takes more than
    `size` tokens stays too long. A text that fits is one window, a text without tokens none.
    Time is linear in the length of the text. Raises ValueError unless 0 <= overlap < size.
    """
    if not 0 <= overlap < size:
        raise ValueError(f"chunk.overlap is {overlap} and chunk.size {size}; 0 <= overlap < size must hold")
    spans = tokenizer.windows(text)
    if len(spans) == 0:
        return []
    if len(spans) <= size:
        return [(0, len(text))]
    wide = (
        spans.ends > spans.starts
    )  # some tokenizers give a token (of spaces, mostly) no characters of its own
    spans = TokenSpans(spans.starts[wide], spans.ends[wide], spans.word_start[wide])
    return list(_windows(tokenizer, text, _Cuts(spans), size, overlap))


def combine(vectors: np.ndarray, weights: np.ndarray, mode: str = "mean") -> np.ndarray:
    """One float32 vector [d] from those of k windows [k, d].

    "mean" weighs each by `weights` [k] (its number of tokens), "max" takes the largest of each number. Not
    normalised: the caller does that where its vectors are.
    """
    if len(vectors) == 0 or len(vectors) != len(weights):
        raise ValueError(f"{len(vectors)} vectors cannot be combined with {len(weights)} weights")
    if mode == "max":
        return vectors.max(axis=0).astype(np.float32)
    if mode != "mean":
        raise ValueError(f"chunk.combine is {mode!r}; use mean or max")
    weights = np.asarray(weights, np.float64)
    if not weights.sum() > 0 or weights.min() < 0:
        raise ValueError("weights must be numbers of tokens: not negative, and not all 0")
    return (weights @ vectors / weights.sum()).astype(np.float32)


class _Cuts:
    """Where windows may begin and end, by token number. `starts` and `ends` never decrease."""

    def __init__(self, spans: TokenSpans):
        self.ends = np.maximum.accumulate(spans.ends)
        self.starts = np.maximum.accumulate(spans.starts)
        numbers = np.arange(len(spans))
        # the last word start at or before each token
        self.word = np.maximum.accumulate(np.where(spans.word_start, numbers, 0))

    def __len__(self) -> int:
        return len(self.ends)

    def after(self, token: int) -> int:
        """The first token behind the characters of `token` (a character can be several tokens)."""
        return int(np.searchsorted(self.ends, self.ends[token], side="right"))

    def end(self, first: int, least: int, size: int) -> int:
        """Where a window from token `first` ends, exclusive: a word start if one lies beyond `least`."""
        hard = first + size
        if hard >= len(self):
            return len(self)
        word = int(self.word[hard])
        return word if word > max(first, least) else hard

    def begin(self, done: int, last: int, size: int, overlap: int) -> int:
        """The first token of the next window, when tokens before `done` are covered and the last window began at
        `last`: a word start if the window from there still gets beyond `done`."""
        wanted = max(done - overlap, last + 1)
        word = int(self.word[wanted]) if wanted < len(self) else wanted
        if word > last and word + size > done and self.end(word, done, size) > done:
            return word
        return min(wanted, done)


def _windows(
    tokenizer: TextTokenizer | SlowTokenizer, text: str, cuts: _Cuts, size: int, overlap: int
) -> Iterator[Span]:
    done, begin = 0, 0  # tokens before `done` are covered; the next window begins at token `begin`
    while done < len(cuts):
        end = _fitting_end(tokenizer, text, cuts, begin, done, size)
        if end is None and begin < done:
            begin = done  # what overlaps leaves no room for anything new: do without it
            continue
        if end is None:
            covered = int(cuts.ends[done - 1]) if done else 0  # neighbouring tokens may share characters
            start = max(int(cuts.starts[done]), covered)
            yield from _pieces(tokenizer, text, start, int(cuts.ends[done]), size)
            end = cuts.after(done)
        else:
            yield int(cuts.starts[begin]), int(cuts.ends[end - 1])
        last, done = begin, end
        if done < len(cuts):
            begin = cuts.begin(done, last, size, overlap)


def _fitting_end(
    tokenizer: TextTokenizer | SlowTokenizer, text: str, cuts: _Cuts, begin: int, done: int, size: int
) -> int | None:
    """The token where a window from `begin` ends so that its text has at most `size` tokens; None if it would not
    get beyond `done`."""
    end = cuts.end(begin, done, size)
    while end > done:
        end = cuts.after(end - 1)
        surplus = tokenizer.count(text[cuts.starts[begin] : cuts.ends[end - 1]]) - size
        if surplus <= 0:
            return end
        end = _shorter(cuts, end, surplus, done)
    return None


def _shorter(cuts: _Cuts, end: int, surplus: int, done: int) -> int:
    """An earlier end: at least `surplus` tokens earlier, and before the whole of a character in several tokens."""
    whole = int(np.searchsorted(cuts.ends, cuts.ends[end - 1], side="left"))
    target = min(end - surplus, whole)
    word = int(cuts.word[target]) if target > 0 else 0
    return word if word > done else target


def _pieces(
    tokenizer: TextTokenizer | SlowTokenizer, text: str, start: int, end: int, size: int
) -> Iterator[Span]:
    """A single token that is more than `size` tokens when it stands alone, halved until every piece fits."""
    if end - start <= 1 or tokenizer.count(text[start:end]) <= size:
        yield start, end
        return
    middle = (start + end) // 2
    yield from _pieces(tokenizer, text, start, middle, size)
    yield from _pieces(tokenizer, text, middle, end, size)
