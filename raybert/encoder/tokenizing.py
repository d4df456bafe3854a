"""Texts to token ids, exactly as the model's own tokenizer makes them; needs neither torch nor transformers."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from tokenizers import Tokenizer

# texts handed to the tokenizer at once: enough to keep its threads busy, few enough to bound the memory
# held by its Encoding objects
TEXTS_PER_CALL = 1000

# Long texts are cut before tokenization (see TextTokenizer._prefix): first guess of characters per token
_CHARS_PER_TOKEN = 8
# pre-tokenizers that never let a token span the space between two words
_WORD_SPLITTERS = frozenset({"BertPreTokenizer", "Whitespace", "WhitespaceSplit", "ByteLevel", "Metaspace"})


@dataclass(frozen=True)
class Tokenized:
    """Token ids of n texts, flat; special tokens included.

    `values` int32 [total], `offsets` int64 [n + 1] (text i is `values[offsets[i]:offsets[i + 1]]`),
    `truncated` bool [n] (the text did not fit in `max_length`). `prompt_tokens` counts the leading tokens that
    are the prompt, special tokens before it included; None means "of the encoder's default prompt".
    """

    values: np.ndarray
    offsets: np.ndarray
    truncated: np.ndarray
    prompt_tokens: int | None = None

    def __post_init__(self) -> None:
        assert len(self.offsets) == len(self.truncated) + 1, "offsets must have one entry more than truncated"
        assert int(self.offsets[-1]) == len(self.values), "the last offset must be the number of values"

    def __len__(self) -> int:
        return len(self.truncated)

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of every text, int64 [n]."""
        return np.diff(self.offsets)

    def ids(self, i: int) -> np.ndarray:
        """The token ids of text i, int32."""
        return self.values[self.offsets[i] : self.offsets[i + 1]]


@dataclass(frozen=True)
class TokenSpans:
    """Where the content tokens of one text lie in it: character offsets `starts`, `ends` int64 [m] (end exclusive)
    and `word_start` bool [m] (the token is the first of its word)."""

    starts: np.ndarray
    ends: np.ndarray
    word_start: np.ndarray

    def __len__(self) -> int:
        return len(self.starts)


class TextTokenizer:
    """Token ids exactly as the model's own tokenizer makes them. Picklable.

    `tokenizer_json` is the text of a tokenizer.json; its own truncation and padding are ignored. `prompt` is
    prepended to every text. Nothing is stripped: sentence-transformers 6 does not strip either. Texts longer
    than `max_length` tokens (special tokens counted) lose their end, or their beginning with
    `truncation_side="left"`.
    """

    def __init__(
        self, tokenizer_json: str, *, max_length: int, prompt: str = "", truncation_side: str = "right"
    ):
        if truncation_side not in ("right", "left"):
            raise ValueError(f"truncation_side is {truncation_side!r}; use 'right' or 'left'")
        self.max_length = max_length
        self.prompt = prompt
        self._json = tokenizer_json
        self._side = truncation_side
        self._tokenizer = _bare(tokenizer_json)
        self._open: Tokenizer | None = None  # without truncation; made when windows are asked for
        self._prefix_specials, self._suffix_specials = _special_counts(self._tokenizer)
        least = self._prefix_specials + self._suffix_specials + 1
        if max_length < least:
            raise ValueError(f"max_length is {max_length}, but this tokenizer needs at least {least}")
        # One token more than allowed tells "did not fit" from "just fits" without building the overflow.
        self._tokenizer.enable_truncation(max_length + 1, direction=truncation_side)
        self._can_cut = truncation_side == "right" and _splits_at_spaces(self._tokenizer)
        self.prompt_tokens = self._count_prompt_tokens()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._json, self.max_length, self.prompt, self._side)

    def __call__(self, texts: Sequence[str]) -> Tokenized:
        """Tokenize n texts. A lone surrogate in a text raises what `tokenizers` raises."""
        parts, lengths = [], [np.zeros(0, np.int64)]
        for start in range(0, len(texts), TEXTS_PER_CALL):
            values, sizes = self._encode(texts[start : start + TEXTS_PER_CALL])
            parts.append(values)
            lengths.append(sizes)
        values = np.concatenate([np.zeros(0, np.int32), *parts])
        sizes = np.concatenate(lengths)
        return _drop_surplus(values, sizes, self.max_length, self._surplus_position, self.prompt_tokens)

    def windows(self, text: str) -> TokenSpans:
        """The content tokens of `text` (no special tokens, no prompt, no truncation) as character spans."""
        encoding = self._untruncated().encode(text, add_special_tokens=False)
        spans = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        words = np.array([-1 if word is None else word for word in encoding.word_ids], np.int64)
        word_start = np.ones(len(words), bool)
        # tokens outside any word (word -1: added tokens) stand alone
        word_start[1:] = (words[1:] != words[:-1]) | (words[1:] < 0)
        return TokenSpans(spans[:, 0].copy(), spans[:, 1].copy(), word_start)

    def count(self, text: str) -> int:
        """Number of content tokens of `text`: no special tokens, no prompt, no truncation."""
        return len(self._untruncated().encode_batch_fast([text], add_special_tokens=False)[0])

    def _untruncated(self) -> Tokenizer:
        if self._open is None:
            self._open = _bare(self._json)
        return self._open

    def _encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids (int32, flat) and lengths (int64) of a few texts, truncated at max_length + 1."""
        limit = self.max_length * _CHARS_PER_TOKEN
        whole = [self.prompt + text for text in texts] if self.prompt else list(texts)
        given = [self._prefix(text, limit) for text in whole]
        encodings = self._tokenizer.encode_batch_fast(given)
        for i, encoding in enumerate(encodings):
            if len(given[i]) < len(whole[i]) and len(encoding) <= self.max_length:
                encodings[i] = self._encode_cut(whole[i], limit)
        sizes = np.fromiter((len(e) for e in encodings), np.int64, len(encodings))
        values = np.fromiter(chain.from_iterable(e.ids for e in encodings), np.int32, int(sizes.sum()))
        return values, sizes

    def _encode_cut(self, text: str, limit: int) -> Any:
        """Tokenize growing beginnings of a text whose first beginning had too few tokens."""
        while True:
            limit *= 4
            given = self._prefix(text, limit)
            encoding = self._tokenizer.encode_batch_fast([given])[0]
            if len(given) == len(text) or len(encoding) > self.max_length:
                return encoding

    def _prefix(self, text: str, limit: int) -> str:
        """The beginning of a long text, enough for max_length tokens in ordinary prose.

        Tokenizing a whole book to keep its first page is most of the cost on long documents. The cut lies at
        a space between two ASCII alphanumeric characters, where no word-splitting tokenizer joins anything, so
        the tokens before it are those of the whole text.
        """
        if not self._can_cut or len(text) <= limit:
            return text
        for at in _spaces(text, limit):
            if _plain(text[at - 1]) and _plain(text[at + 1 : at + 2]):
                return text[:at]
        return text

    def _surplus_position(self, sizes: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Index into the flat ids of the one content token too many, for texts ending at `ends`."""
        if self._side == "right":
            return ends - 1 - self._suffix_specials
        return ends - sizes + self._prefix_specials

    def _count_prompt_tokens(self) -> int:
        """Leading tokens that are the prompt, as sentence-transformers counts them: tokens of the prompt alone
        without the trailing special token."""
        if not self.prompt:
            return 0
        ids = self._tokenizer.encode_batch_fast([self.prompt])[0].ids
        return min(len(ids), self.max_length) - min(self._suffix_specials, 1)


class SlowTokenizer:
    """The same call for the few tokenizers written in Python (no tokenizer.json): wraps a transformers tokenizer."""

    def __init__(self, tokenizer: Any, *, max_length: int, prompt: str = ""):
        self.max_length = max_length
        self.prompt = prompt
        self._tokenizer = tokenizer
        suffix = (
            len(tokenizer("a")["input_ids"]) - len(tokenizer("a", add_special_tokens=False)["input_ids"]) > 1
        )
        self.prompt_tokens = len(tokenizer(prompt)["input_ids"]) - int(suffix) if prompt else 0

    def __call__(self, texts: Sequence[str]) -> Tokenized:
        rows, truncated = [], []
        for text in texts:
            full = len(self._tokenizer(self.prompt + text)["input_ids"])
            rows.append(
                self._tokenizer(self.prompt + text, truncation=True, max_length=self.max_length)["input_ids"]
            )
            truncated.append(full > self.max_length)
        offsets = np.cumsum([0, *map(len, rows)], dtype=np.int64)
        values = np.fromiter(chain.from_iterable(rows), np.int32, int(offsets[-1]))
        return Tokenized(values, offsets, np.array(truncated, bool), self.prompt_tokens)

    def windows(self, text: str) -> TokenSpans:
        raise ValueError(
            "chunk needs a tokenizer.json, and this model's tokenizer has none; set chunk to null"
        )

    count = windows


def _rebuild(tokenizer_json: str, max_length: int, prompt: str, side: str) -> TextTokenizer:
    return TextTokenizer(tokenizer_json, max_length=max_length, prompt=prompt, truncation_side=side)


def _bare(tokenizer_json: str) -> Tokenizer:
    """The tokenizer without the truncation and padding its file may carry (all-MiniLM-L6-v2's says 128)."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _special_counts(tokenizer: Tokenizer) -> tuple[int, int]:
    """Special tokens before and after the content of a single text."""
    mask = tokenizer.encode("a").special_tokens_mask
    content = [i for i, special in enumerate(mask) if not special]
    assert content, "the letter 'a' must have a token"
    return content[0], len(mask) - 1 - content[-1]


def _splits_at_spaces(tokenizer: Tokenizer) -> bool:
    """Does the pre-tokenizer keep every token on one side of a space between words?"""
    if any(" " in token.content.strip() for token in tokenizer.get_added_tokens_decoder().values()):
        return False
    splitter = tokenizer.pre_tokenizer
    if splitter is None:
        return False
    state = json.loads(splitter.__getstate__())  # its part of the tokenizer.json
    kinds = {part["type"] for part in state.get("pretokenizers", [state])}
    return bool(kinds & _WORD_SPLITTERS) and len(splitter.pre_tokenize_str("ab cd ef")) == 3


def _spaces(text: str, limit: int) -> Iterator[int]:
    """Up to 64 positions of a space at or after `limit`; a text without plain spaces there is not cut."""
    at = limit - 1
    for _ in range(64):
        at = text.find(" ", at + 1)
        if at < 0:
            return
        yield at


def _plain(character: str) -> bool:
    return character.isascii() and character.isalnum()


def _drop_surplus(
    values: np.ndarray, sizes: np.ndarray, max_length: int, position: Any, prompt: int
) -> Tokenized:
    """Remove the one token too many from texts of max_length + 1 tokens and mark them truncated."""
    truncated = sizes > max_length
    if truncated.any():
        ends = np.cumsum(sizes)
        values = np.delete(values, position(sizes[truncated], ends[truncated]))
        sizes = sizes - truncated
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes, dtype=np.int64)])
    return Tokenized(values, offsets, truncated, prompt)
