"""Training sequences from the tokenized documents of one shard: pairs of segments, full sentences, whole documents."""

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np

from raybert.pretrain.counter import Draws
from raybert.pretrain.pairs import Row, Text, next_sentence_rows, sentence_order_rows


@dataclass(frozen=True)
class Documents:
    """Tokenized documents without special tokens, one after the other.

    `values` int32 [tokens]; `starts` bool [tokens], the token begins a word; `sentences` int64 [s + 1], token offsets
    of the sentences; `documents` int64 [n + 1], sentence offsets of the documents; `keys` uint64 [n], what a
    document's random numbers depend on: the same whatever shard it lies in.
    """

    values: np.ndarray
    starts: np.ndarray
    sentences: np.ndarray
    documents: np.ndarray
    keys: np.ndarray

    def __post_init__(self) -> None:
        assert len(self.values) == len(self.starts), "one start flag a token"
        assert (self.sentences[0], self.sentences[-1]) == (0, len(self.values)), "sentences cover the tokens"
        assert (self.documents[0], self.documents[-1]) == (0, len(self.sentences) - 1), "so do documents"
        assert len(self.keys) == len(self.documents) - 1, "one key a document"


@dataclass(frozen=True)
class Instances:
    """Training sequences with their special tokens, not masked.

    `values` int32 [tokens]; `starts` bool [tokens], special tokens count as starts; `offsets` int64 [n + 1];
    `boundary` int32 [n], tokens of the first segment with its [CLS] and [SEP], all tokens where there is no second;
    `label` int8 [n], 0 in order, 1 random (next sentence) or swapped (sentence order), -1 no pair; `document` int64
    [n], the input's document that the first segment is of (of swapped ones, both).
    """

    values: np.ndarray
    starts: np.ndarray
    offsets: np.ndarray
    boundary: np.ndarray
    label: np.ndarray
    document: np.ndarray

    def __len__(self) -> int:
        return len(self.label)


@dataclass(frozen=True)
class Special:
    """Ids of the tokens at the beginning of a sequence and after every segment."""

    cls: int
    sep: int


def next_sentence_pairs(
    documents: Documents,
    donors: Documents,
    special: Special,
    *,
    max_length: int = 128,
    short_probability: float = 0.1,
    duplicates: int = 1,
    seed: int = 0,
) -> Instances:
    """BERT's pairs (arXiv 1810.04805; growth as in google-research/bert's `create_pretraining_data.py`).

    Per document a target length is drawn, max_length - 3 or, with `short_probability`, less. Sentences are added to a
    chunk until it has that many tokens. A is a random beginning of the chunk; B its rest (label 0) or, with
    probability 1/2 and wherever the chunk is one sentence, sentences of a random donor from a random one on (label
    1), and the rest of the chunk goes to the next one. What does not fit is cut from the longer segment, token by
    token at either end: only so are tokens lost, of sentences longer than max_length too.

    `donors` may be `documents`. A donor never has the document's own key. Where there is no other, pairs are in
    order, and a chunk of one sentence gives `[CLS] A [SEP]` with label -1. All draws are a function of (seed,
    duplicate, key). Raises ValueError if max_length is below 5.
    """
    room = _pair_room(max_length)
    own, other = _text(documents), _text(donors, 0 if donors is documents else len(documents.values))
    rows: list[Row] = []
    for duplicate in range(duplicates):
        for number, key in enumerate(own.keys):
            draws = Draws(seed, duplicate, key)
            rows += next_sentence_rows(own, number, other, room, short_probability, draws)
    if donors is documents:
        return _build(documents.values, documents.starts, rows, special)
    values = np.concatenate([documents.values, donors.values])
    return _build(values, np.concatenate([documents.starts, donors.starts]), rows, special)


def sentence_order_pairs(
    documents: Documents,
    special: Special,
    *,
    max_length: int = 128,
    short_probability: float = 0.1,
    duplicates: int = 1,
    seed: int = 0,
) -> Instances:
    """ALBERT's pairs (arXiv 1909.11942): a chunk cut in two between sentences, swapped with probability 1/2 (label 1).

    Chunks grow and are truncated as in `next_sentence_pairs`. A chunk of one sentence is cut at the word nearest its
    middle (in the middle if it is one word), a chunk of one token gives no instance. All draws are a function of
    (seed, duplicate, key). Raises ValueError if max_length is below 5.
    """
    room = _pair_room(max_length)
    text = _text(documents)
    rows: list[Row] = []
    for duplicate in range(duplicates):
        for number, key in enumerate(text.keys):
            draws = Draws(seed, duplicate, key)
            rows += sentence_order_rows(text, documents.starts, number, room, short_probability, draws)
    return _build(documents.values, documents.starts, rows, special)


def full_sentences(documents: Documents, special: Special, *, max_length: int) -> Instances:
    """RoBERTa's FULL-SENTENCES (arXiv 1907.11692): whole sentences in a row while they fit, over document ends too.

    `[CLS] ... [SEP] ... [SEP]` with a [SEP] between documents; label -1. A sentence that is longer than max_length - 2
    is cut into pieces of that length; no token is lost. Raises ValueError if max_length is below 3.
    """
    room = _single_room(max_length)
    text = _text(documents)
    offsets, bounds = np.array(text.offsets), np.array(text.bounds)
    owner = np.repeat(np.arange(len(text.keys)), np.diff(bounds))
    heads = np.flatnonzero(np.diff(owner)) + 1  # first sentences of documents, but for the very first
    values = np.insert(documents.values, offsets[heads], special.sep)
    starts = np.insert(documents.starts, offsets[heads], True)
    shift = np.searchsorted(heads, np.arange(len(owner)), side="right")
    begins, lengths, sentence = _pieces(offsets[:-1] + shift, np.diff(offsets), room)
    ends, rows, at = (begins + lengths).tolist(), [], 0
    while at < len(ends):
        begin = int(begins[at])
        after = bisect_right(ends, begin + room, at)
        rows.append(Row(begin, ends[after - 1], 0, 0, -1, int(owner[sentence[at]])))
        at = after
    return _build(values, starts, rows, special)


def whole_documents(documents: Documents, special: Special, *, max_length: int) -> Instances:
    """One document a row, `[CLS] ... [SEP]`; label -1.

    A document longer than max_length - 2 is cut into consecutive pieces, all but the last of that length; no token
    is lost. An empty document gives no row. Raises ValueError if max_length is below 3.
    """
    room = _single_room(max_length)
    offsets = documents.sentences[documents.documents]
    begins, lengths, owner = _pieces(offsets[:-1], np.diff(offsets), room)
    rows = [
        Row(begin, end, 0, 0, -1, number)
        for begin, end, number in zip(
            begins.tolist(), (begins + lengths).tolist(), owner.tolist(), strict=True
        )
    ]
    return _build(documents.values, documents.starts, rows, special)


def _text(documents: Documents, shift: int = 0) -> Text:
    return Text(documents.sentences, documents.documents, documents.keys, shift)


def _pair_room(max_length: int) -> int:
    if max_length < 5:
        raise ValueError(f"max_length is {max_length}; a pair needs at least 5 tokens, three of them special")
    return max_length - 3


def _single_room(max_length: int) -> int:
    if max_length < 3:
        raise ValueError(f"max_length is {max_length}; it must be at least 3, two tokens are special")
    return max_length - 2


def _pieces(begins: np.ndarray, lengths: np.ndarray, room: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ranges cut into pieces of at most `room`: begins, lengths, and which range each is of."""
    counts = -(-lengths // room)
    owner = np.repeat(np.arange(len(lengths)), counts)
    skipped = (np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)) * room
    return begins[owner] + skipped, np.minimum(lengths[owner] - skipped, room), owner


def _build(values: np.ndarray, starts: np.ndarray, rows: list[Row], special: Special) -> Instances:
    """The rows with their special tokens, gathered in one go."""
    table = np.array(rows, np.int64).reshape(-1, len(Row._fields))
    first, first_end, second, second_end, label, document = table.T
    cls_at, sep_at = np.full_like(first, len(values)), np.full_like(first, len(values) + 1)
    one, pair = np.ones_like(first), (second_end > second).astype(np.int64)
    begins = np.stack([cls_at, first, sep_at, second, sep_at], axis=1).ravel()
    lengths = np.stack([one, first_end - first, one, second_end - second, pair], axis=1)
    ends = np.cumsum(lengths)
    taken = np.arange(ends[-1] if len(ends) else 0)
    taken += np.repeat(begins - (ends - lengths.ravel()), lengths.ravel())
    return Instances(
        values=np.append(values, [special.cls, special.sep]).astype(np.int32)[taken],
        starts=np.append(starts, [True, True]).astype(bool)[taken],
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths.sum(axis=1))]),
        boundary=lengths[:, :3].sum(axis=1).astype(np.int32),
        label=label.astype(np.int8),
        document=document,
    )
