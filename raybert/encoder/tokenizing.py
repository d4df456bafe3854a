"""Texts to token ids, exactly as the model's own tokenizer makes them; needs neither torch nor transformers."""

import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from tokenizers import Tokenizer

# texts handed to the tokenizer at once: enough to keep its threads busy, few enough to bound the memory
# held by its Encoding objects
TEXTS_PER_CALL = 500

# Long texts are cut before tokenization (see TextTokenizer._cut): first guess of characters per token
_CHARS_PER_TOKEN = 6
# Letters and digits that every normalizer below maps to letters and digits, in scripts that write spaces
_LETTER = (
    "[0-9A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u024f\u0388-\u03f5\u0400-\u0481\u048a-\u052f"
    "\u05d0-\u05ea\u0620-\u064a\u0904-\u0939\uac00-\ud7a3]"
)
_BETWEEN_WORDS = f"(?<={_LETTER}) (?={_LETTER})"
_BETWEEN_IDEOGRAPHS = "(?<=[\u4e00-\u9fff])(?=[\u4e00-\u9fff])"
# Parts of a tokenizer for which the first of two words is tokenized the same without the second. A part with
# a regular expression of its own is not among them: it may look across any space.
_WORD_SPLITTERS = {"BertPreTokenizer", "Whitespace", "WhitespaceSplit", "ByteLevel", "Metaspace"}
_PRE_TOKENIZERS = _WORD_SPLITTERS | {"Digits", "Punctuation"}
_NORMALIZERS = {"BertNormalizer", "Lowercase", "Nmt", "NFC", "NFD", "NFKC", "NFKD", "Precompiled", "Prepend"}
_NORMALIZERS |= {"Strip", "StripAccents"}
_REPLACED = (
    {"Regex": " {2,}"},
    {"Regex": "\\s+"},
)  # what Replace may have as its pattern besides punctuation


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
        self._open: Tokenizer | None = None  # with its post-processor; made when windows are asked for
        self._before, self._after = _take_specials(self._tokenizer)
        self._room = max_length - len(self._before) - len(self._after)
        if self._room < 1:
            raise ValueError(
                f"max_length is {max_length}, but this tokenizer needs at least {max_length - self._room + 1}"
            )
        self._cuts = _safe_cuts(self._tokenizer) if truncation_side == "right" else None
        self.prompt_tokens = self._count_prompt_tokens()

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (self._json, self.max_length, self.prompt, self._side)

    def __call__(self, texts: Sequence[str]) -> Tokenized:
        """Tokenize n texts. A lone surrogate in a text raises what `tokenizers` raises."""
        calls = [texts[at : at + TEXTS_PER_CALL] for at in range(0, len(texts), TEXTS_PER_CALL)]
        if len(calls) < 2:
            parts = [self._encode(call) for call in calls]
        else:
            # two: one takes the ids out of its encodings while the other keeps the tokenizer's threads busy
            with ThreadPoolExecutor(2) as pool:
                parts = list(pool.map(self._encode, calls))
        values = np.concatenate([np.zeros(0, np.int32), *(part[0] for part in parts)])
        lengths = np.concatenate([np.zeros(0, np.int64), *(part[1] for part in parts)])
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(np.minimum(lengths, self.max_length))])
        return Tokenized(values, offsets, lengths > self.max_length, self.prompt_tokens)

    def windows(self, text: str) -> TokenSpans:
        """The content tokens of `text` (no special tokens, no prompt, no truncation) as character spans."""
        if self._open is None:
            self._open = _bare(self._json)
        encoding = self._open.encode(text, add_special_tokens=False)
        spans = np.array(encoding.offsets, np.int64).reshape(-1, 2)
        words = np.array([-1 if word is None else word for word in encoding.word_ids], np.int64)
        word_start = np.ones(len(words), bool)
        # tokens outside any word (word -1: added tokens) stand alone
        word_start[1:] = (words[1:] != words[:-1]) | (words[1:] < 0)
        return TokenSpans(spans[:, 0].copy(), spans[:, 1].copy(), word_start)

    def count(self, text: str) -> int:
        """Number of content tokens of `text`: no special tokens, no prompt, no truncation."""
        return len(self._tokenizer.encode_batch_fast([text])[0])

    def _encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids (int32, flat, truncated) and lengths (int64, as if not truncated or just more than max_length)."""
        whole = [self.prompt + text for text in texts] if self.prompt else texts
        encodings = self._encodings(whole, self.max_length * _CHARS_PER_TOKEN)
        lengths = np.fromiter(map(len, encodings), np.int64, len(encodings)) + self.max_length - self._room
        kept = slice(self._room) if self._side == "right" else slice(-self._room, None)
        rows = (self._before + encoding.ids[kept] + self._after for encoding in encodings)
        total = int(np.minimum(lengths, self.max_length).sum())
        return np.fromiter(chain.from_iterable(rows), np.int32, total), lengths

    def _encodings(self, texts: Sequence[str], limit: int) -> list[Any]:
        """One Encoding a text, without special tokens: of the whole text or of a beginning with too many tokens.

        Tokenizing a whole book to keep its first page is most of the cost on long documents.
        """
        given = [text if len(text) <= limit else self._cut(text, limit) for text in texts]
        encodings = self._tokenizer.encode_batch_fast(given)
        again = [
            i
            for i, encoding in enumerate(encodings)
            if len(encoding) <= self._room and len(given[i]) < len(texts[i])
        ]
        if again:
            longer = self._encodings([texts[i] for i in again], limit * 2)
            for i, encoding in zip(again, longer, strict=True):
                encodings[i] = encoding
        return encodings

    def _cut(self, text: str, limit: int) -> str:
        """A beginning of the text, of `limit` characters or some more, whose tokens are the text's first."""
        place = self._cuts.search(text, limit) if self._cuts else None
        return text[: place.start()] if place else text

    def _count_prompt_tokens(self) -> int:
        """Leading tokens that are the prompt, as sentence-transformers counts them: tokens of the prompt alone
        without the trailing special token."""
        if not self.prompt:
            return 0
        tokens = len(self._before) + self.count(self.prompt) + len(self._after)
        return min(tokens, self.max_length) - min(len(self._after), 1)


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


def _take_specials(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Stop the tokenizer adding special tokens; return the ids it added before and after every text.

    Adding them ourselves saves the tokenizer a copy of every encoding.
    """
    probes = ("a", "", "a b, c")
    full = [tokenizer.encode(probe) for probe in probes]
    mask = full[0].special_tokens_mask
    assert 0 in mask, "the letter 'a' must have a token"
    first, end = mask.index(0), len(mask) - mask[::-1].index(0)
    before, after = full[0].ids[:first], full[0].ids[end:]
    tokenizer.post_processor = None
    for probe, encoding in zip(probes, full, strict=True):
        if before + tokenizer.encode(probe).ids + after != encoding.ids:
            raise ValueError(
                "this tokenizer's post-processor does more than adding special tokens at both ends"
            )
    return before, after


def _safe_cuts(tokenizer: Tokenizer) -> re.Pattern[str] | None:
    """Where a text may be cut without changing a token before; None if that cannot be told of this tokenizer."""
    normalizers, splitters = _parts(tokenizer.normalizer), _parts(tokenizer.pre_tokenizer)
    kinds = {part["type"] for part in splitters}
    if not all(map(_is_local, normalizers)) or not kinds <= _PRE_TOKENIZERS or not kinds & _WORD_SPLITTERS:
        return None
    normalize = tokenizer.normalizer.normalize_str if normalizers else str
    added = [token.content for token in tokenizer.get_added_tokens_decoder().values()]
    if any(re.search(r"\S\s", text) for content in added for text in (content, normalize(content))):
        return None
    if len(tokenizer.pre_tokenizer.pre_tokenize_str(normalize("ab cd ef"))) != 3:
        return None
    if "BertPreTokenizer" in kinds and any(part.get("handle_chinese_chars") for part in normalizers):
        return re.compile(f"{_BETWEEN_WORDS}|{_BETWEEN_IDEOGRAPHS}")
    return re.compile(_BETWEEN_WORDS)


def _parts(component: Any) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as the steps of the tokenizer.json."""
    if component is None:
        return []
    state = json.loads(component.__getstate__())
    return state.get("normalizers") or state.get("pretokenizers") or [state]


def _is_local(normalizer: dict[str, Any]) -> bool:
    """Does it leave a space between two letters, and what is before it independent of what is behind?"""
    if normalizer["type"] != "Replace":
        return normalizer["type"] in _NORMALIZERS
    pattern = normalizer["pattern"]
    return pattern in _REPLACED or not any(map(str.isalnum, pattern.get("String", "a")))
