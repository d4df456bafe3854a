"""What `raybert prepare` does with one shard: documents to sentences, token ids, and instances to train on."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers.models import WordPiece

from raybert.config import DataSettings, PrepareSettings
from raybert.corpus.ledger import Source
from raybert.corpus.outcome import Outcome
from raybert.corpus.readers import REASON, Shard, read, reads_anywhere
from raybert.corpus.rejects import count_reasons, rejects_table
from raybert.corpus.sources import File
from raybert.corpus.texts import row_ids, text_columns, texts_and_reasons, wanted_columns
from raybert.pretrain import google, instances
from raybert.pretrain.documents import DocumentTokenizer, bare_tokenizer, tokens_of
from raybert.pretrain.instances import Documents, Instances, Special
from raybert.pretrain.shards import Masks, to_table
from raybert.pretrain.tokenizer_folder import TokenizerFolder

ROW, TEXT = "_row", "_text"
_SOURCE, _SOURCE_ID, _START = b"raybert-source", b"raybert-source-id", b"raybert-start"
# Random next sentences of a shard come from so many shards, from this share of the documents of each: together about
# as much text as half of the pairs need.
_DONORS, _DONOR_SHARE = 4, 0.2


@dataclass(frozen=True)
class PrepareDocuments:
    """Rows of a corpus to `id`, `_text` (null for rejects), `_reason` and `_row`."""

    data: DataSettings
    settings: PrepareSettings
    duplicates: Mapping[str, np.ndarray]  # rows that repeat others, by the id of the file

    def __call__(self, table: pa.Table, source: Source, shard: Shard) -> pa.Table:
        texts, reasons = documents_and_reasons(table, self.data, self.settings)
        repeated = self.duplicates.get(source.id, np.zeros(0, np.int64))
        for row in repeated[(repeated >= shard.start) & (repeated < shard.end)] - shard.start:
            texts[row], reasons[row] = None, reasons[row] or "the text of an earlier document"
        ids = row_ids(table, self.data, shard.start, source.label)
        for row in np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False)):
            texts[row], reasons[row] = None, reasons[row] or f"{self.data.id} (data.id) is null"
        columns = {
            "id": ids.cast(pa.string()),
            TEXT: pa.array(texts, pa.large_string()),
            REASON: pa.array(reasons, pa.string()),
            ROW: pa.array(np.arange(shard.start, shard.end)),
        }
        about = {_SOURCE: source.uri.encode("utf-8", "surrogateescape"), _SOURCE_ID: source.id.encode()}
        return pa.table(columns).replace_schema_metadata(about | {_START: str(shard.start).encode()})


def documents_and_reasons(
    table: pa.Table, data: DataSettings, settings: PrepareSettings
) -> tuple[list[str | None], np.ndarray]:
    """`texts_and_reasons`, and the documents that the settings do not want set aside too."""
    texts, reasons = texts_and_reasons(table, data)
    for row, text in enumerate(texts):
        reason = None if text is None else _unwanted(text, settings)
        if reason is not None:
            texts[row], reasons[row] = None, reason
    return texts, reasons


def _unwanted(text: str, settings: PrepareSettings) -> str | None:
    if len(text) < settings.min_chars:
        return f"shorter than prepare.min_chars={settings.min_chars}"
    if settings.max_repeated < 1:
        lines = [line for line in map(str.strip, text.splitlines()) if line]
        if lines and 1 - len(set(lines)) / len(lines) > settings.max_repeated:
            return f"more than prepare.max_repeated={settings.max_repeated} of its lines repeat others"
    return None


@dataclass(frozen=True)
class Donors:
    """All shards of the corpus that can be read by themselves, to draw random next sentences from.

    `places` int64 [n, 5]: number of the file, and start, end, begin, stop of the shard.
    """

    files: tuple[File, ...]
    ids: tuple[str, ...]
    places: np.ndarray
    data: DataSettings
    settings: PrepareSettings
    types: dict[str, pa.DataType]

    def draw(self, shard: str) -> tuple[list[str], np.ndarray]:
        """Documents (texts and keys) of shards drawn for the output of this name, a shard as often as it has rows.

        Follows from the name, the seed and the plan alone.
        """
        dice = random.Random(f"{self.settings.seed} {shard}")
        rows = np.cumsum(self.places[:, 2] - self.places[:, 1])
        chosen = sorted(
            {int(np.searchsorted(rows, dice.randrange(rows[-1]), "right")) for _ in range(_DONORS)}
        )
        texts: list[str] = []
        keys: list[np.ndarray] = []
        for number in chosen:
            file, *span = self.places[number].tolist()
            found = self._texts(self.files[file], Shard(*span))
            wanted = [row for row, text in enumerate(found) if text is not None]
            wanted = sorted(dice.sample(wanted, min(len(wanted), max(1, round(_DONOR_SHARE * len(wanted))))))
            texts += [found[row] for row in wanted]
            keys.append(document_keys(self.ids[file], np.array(wanted, np.int64) + span[0]))
        return texts, np.concatenate([np.zeros(0, np.uint64), *keys])

    def _texts(self, file: File, shard: Shard) -> list[str | None]:
        tables = read(
            file,
            [shard],
            wanted_columns(self.data, []),
            types=self.types,
            text_columns=text_columns(self.data),
            max_chars=self.data.max_chars,
        )
        return documents_and_reasons(next(tables), self.data, self.settings)[0]


def document_keys(source_id: str, rows: np.ndarray) -> np.ndarray:
    """uint64 that tell the rows of a corpus apart, the same in every run."""
    first = np.uint64(int(source_id, 16) * 0x9E3779B97F4A7C15 & 0xFFFFFFFFFFFFFFFF)
    return first + rows.astype(np.uint64)


@dataclass(frozen=True)
class LoadBuilder:
    """Called in a worker: gets ready what all its shards need."""

    settings: PrepareSettings
    tokenizer: TokenizerFolder
    schema: pa.Schema
    donors: Donors | None

    def __call__(self) -> "BuildShard":
        return BuildShard(self)


class BuildShard:
    """A table of documents to the table of instances and the rejects."""

    def __init__(self, given: LoadBuilder) -> None:
        self._given, self._settings = given, given.settings
        self._special = Special(cls=given.tokenizer.cls, sep=given.tokenizer.sep)
        self._build = _Compatible(given) if given.settings.compatible else self._instances
        self._tokenize = DocumentTokenizer(given.tokenizer.json, given.settings.sentences)

    def __call__(self, table: pa.Table) -> Outcome:
        table = table.combine_chunks()
        reasons = np.array(table[REASON].to_pylist(), dtype=object)
        rows, texts = table[ROW].to_numpy(), table[TEXT].to_pylist()
        good = [row for row, text in enumerate(texts) if text is not None]
        about = table.schema.metadata
        keys = document_keys(about[_SOURCE_ID].decode(), rows[good])
        name = f"{about[_SOURCE_ID].decode()} {about[_START].decode()}"
        made, used, masks = self._build([texts[row] for row in good], keys, name)
        for i in np.setdiff1d(np.arange(len(good)), used):
            reasons[good[i]] = "nothing to train on: it has too few tokens or sentences"
        names = [table["id"][row].as_py() for row in good]
        data = to_table(made, names, self._given.schema, masks)
        rejects = rejects_table(table["id"], rows, reasons, about[_SOURCE].decode("utf-8", "replace"))
        counts = {
            "rows": len(rows),
            "embedded": len(used),
            "rejected": 0 if rejects is None else rejects.num_rows,
            "vectors": data.num_rows,
            "truncated": 0,
            "tokens": len(made.values),
            "reasons": count_reasons(rejects),
        }
        tokens = len(made.values)
        return Outcome(data, rejects, counts, encoded_tokens=tokens, padded_tokens=tokens)

    def _instances(
        self, texts: list[str], keys: np.ndarray, name: str
    ) -> tuple[Instances, np.ndarray, Masks | None]:
        """The instances, the numbers of the texts that are in them, and no masks."""
        pieces = [_pieces(text) if self._settings.sentences == "lines" else [text] for text in texts]
        owner = np.repeat(np.arange(len(texts)), [len(part) for part in pieces])
        number = np.concatenate([np.zeros(0, np.int64), *(np.arange(len(part)) for part in pieces)])
        # the pieces of a row have keys of their own; a row in one piece keeps the row's
        piece_keys = keys[owner] + number.astype(np.uint64) * np.uint64(1 << 40)
        documents = self._tokenize(list(chain.from_iterable(pieces)), piece_keys)
        made = self._by_objective(documents, name)
        # an instance of many documents is named by its first, and holds all that have a token
        full = self._settings.objective == "full"
        used = np.flatnonzero(np.diff(documents.documents)) if full else made.document
        return Instances(**{**vars(made), "document": owner[made.document]}), np.unique(owner[used]), None

    def _by_objective(self, documents: Documents, name: str) -> Instances:
        settings = self._settings
        draws = {
            "max_length": settings.max_length,
            "short_probability": settings.short_probability,
            "seed": settings.seed,
        }
        if settings.objective == "nsp":
            donors = documents
            if self._given.donors is not None:
                donors = self._tokenize(*self._given.donors.draw(name))
            return instances.next_sentence_pairs(
                documents, donors, self._special, duplicates=settings.duplicates, **draws
            )
        if settings.objective == "sop":
            return instances.sentence_order_pairs(documents, self._special, **draws)
        build = {"full": instances.full_sentences, "document": instances.whole_documents}[settings.objective]
        return build(documents, self._special, max_length=settings.max_length)


class _Compatible:
    """The instances of google-research/bert's script, for every file of sentences by itself."""

    def __init__(self, given: LoadBuilder) -> None:
        self._settings = given.settings
        self._tokenizer = bare_tokenizer(given.tokenizer.json)
        model = self._tokenizer.model
        if isinstance(model, WordPiece):
            model.max_input_chars_per_word = 200  # as in the script's tokenizer; later ones say 100
            self._tokenizer.model = model
        self._vocabulary = tokens_of(given.tokenizer.json)

    def __call__(self, texts: list[str], keys: np.ndarray, name: str) -> tuple[Instances, np.ndarray, Masks]:
        settings, found, owner = self._settings, [], []
        for i, text in enumerate(texts):
            documents = [
                [tokens for tokens in map(self._tokens, sentences) if tokens]
                for sentences in google.split_documents(text.split("\n"))  # at nothing else, as there
            ]
            made = google.create_instances(
                documents,
                self._vocabulary,
                random.Random(settings.seed),
                max_length=settings.max_length,
                max_predictions=settings.max_predictions,
                mask_probability=settings.mask_probability,
                duplicates=settings.duplicates,
                short_probability=settings.short_probability,
                whole_words=settings.whole_words,
            )
            found += made
            owner += [i] * len(made)
        return self._packed(found, owner), np.unique(owner), self._masks(found)

    def _tokens(self, sentence: str) -> list[str]:
        return self._tokenizer.encode(sentence).tokens

    def _packed(self, found: Sequence[google.Instance], owner: list[int]) -> Instances:
        lengths = np.array([len(one.tokens) for one in found], np.int64)
        tokens = list(chain.from_iterable(one.tokens for one in found))
        return Instances(
            values=self._ids(tokens),
            starts=np.array([not token.startswith("##") for token in tokens], bool),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            boundary=np.array([one.segment_ids.count(0) for one in found], np.int32),
            label=np.array([int(one.is_random_next) for one in found], np.int8),
            document=np.array(owner, np.int64),
        )

    def _masks(self, found: Sequence[google.Instance]) -> Masks:
        return [one.masked_positions for one in found], [self._ids(one.masked_labels) for one in found]

    def _ids(self, tokens: Sequence[str]) -> np.ndarray:
        return np.array([self._tokenizer.token_to_id(token) for token in tokens], np.int32)


def _pieces(text: str) -> list[str]:
    """Documents of a text with a sentence a line: an empty line ends one."""
    parts, part = [], []
    for line in [*text.splitlines(), ""]:
        if line.strip():
            part.append(line)
        elif part:
            parts.append("\n".join(part))
            part = []
    return parts


def donors_of(plan: Any, data: DataSettings, settings: PrepareSettings) -> Donors | None:
    """The shards of a plan to draw from; None where there are fewer than two that can be read by themselves."""
    sources = [source for source in plan.sources if reads_anywhere(plan.files[source.uri])]
    places = [
        (number, shard.start, shard.end, shard.begin, shard.stop)
        for number, source in enumerate(sources)
        for shard in source.shards
        if shard.end > shard.start
    ]
    if len(places) < 2:
        return None
    files = tuple(plan.files[source.uri] for source in sources)
    ids = tuple(source.id for source in sources)
    return Donors(files, ids, np.array(places, np.int64), data, settings, plan.types)
