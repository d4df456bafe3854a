"""Texts to sentences of token ids, with the starts of words."""

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
import sentencex
from tokenizers import Tokenizer

from raybert.pretrain.instances import Documents

# Sentences handed to the tokenizer at once: bounds the memory of its Encoding objects.
_SENTENCES_PER_CALL = 20_000


def split_lines(text: str) -> list[str]:
    """One sentence a line; empty lines count for nothing."""
    return [line for line in map(str.strip, text.splitlines()) if line]


def split_sentences(text: str, language: str) -> list[str]:
    """Sentences of a text by the rules of its language (a code such as "en" or "zh"; unknown ones go as English)."""
    return [sentence for sentence in map(str.strip, sentencex.segment(language, text)) if sentence]


class DocumentTokenizer:
    """Texts to `Documents`: no special tokens, nothing cut. Picklable.

    `sentences` is "lines" for texts that have one sentence a line, else the code of their language.
    """

    def __init__(self, tokenizer_json: str, sentences: str) -> None:
        self._json, self._sentences = tokenizer_json, sentences
        self._tokenizer = bare_tokenizer(tokenizer_json)

    def __reduce__(self) -> tuple[Any, ...]:
        return DocumentTokenizer, (self._json, self._sentences)

    def __call__(self, texts: Sequence[str], keys: np.ndarray) -> Documents:
        """The documents of n texts; `keys` uint64 [n] tells them apart in the whole corpus.

        A sentence without a token (of control characters, say) is left out; a document may have none at all.
        """
        parts = [self._split(text) for text in texts]
        encodings = self._encode(list(chain.from_iterable(parts)))
        lengths = np.fromiter((len(ids) for ids, _ in encodings), np.int64, len(encodings))
        owner = np.repeat(np.arange(len(texts)), [len(part) for part in parts])
        counts = np.bincount(owner[lengths > 0], minlength=len(texts))
        return Documents(
            values=_flat([ids for ids, _ in encodings], np.int32),
            starts=_flat([starts for _, starts in encodings], np.bool_),
            sentences=_offsets(lengths[lengths > 0]),
            documents=_offsets(counts),
            keys=np.asarray(keys, np.uint64),
        )

    def _split(self, text: str) -> list[str]:
        return split_lines(text) if self._sentences == "lines" else split_sentences(text, self._sentences)

    def _encode(self, sentences: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
        """(ids int32, starts of words bool) of every sentence."""
        found = []
        for at in range(0, len(sentences), _SENTENCES_PER_CALL):
            for encoding in self._tokenizer.encode_batch(sentences[at : at + _SENTENCES_PER_CALL]):
                ids = np.array(encoding.ids, np.int32)
                # None: a token outside any word; it stands alone
                words = np.array([-1 if word is None else word for word in encoding.word_ids], np.int64)
                starts = np.ones(len(words), bool)
                starts[1:] = (words[1:] != words[:-1]) | (words[1:] < 0)
                found.append((ids, starts))
        return found


def bare_tokenizer(tokenizer_json: str) -> Tokenizer:
    """The tokenizer without special tokens, truncation and padding; "[SEP]" in a text is text like any other."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.post_processor = None
    return tokenizer


def tokens_of(tokenizer_json: str) -> list[str]:
    """The vocabulary in the order of its ids."""
    vocabulary = Tokenizer.from_str(tokenizer_json).get_vocab(with_added_tokens=True)
    return sorted(vocabulary, key=vocabulary.__getitem__)


def _flat(arrays: list[np.ndarray], dtype: type) -> np.ndarray:
    return np.concatenate([np.zeros(0, dtype), *arrays]).astype(dtype)


def _offsets(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
