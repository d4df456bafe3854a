"""What `raybert embed` does with one shard: tokenize on any CPU, then encode in a worker that holds the model."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raybert.config import ChunkSettings, DataSettings, ModelSettings
from raybert.corpus.ledger import Source
from raybert.corpus.outcome import Outcome, Refused
from raybert.corpus.readers import Shard
from raybert.corpus.rejects import count_reasons, rejects_table
from raybert.corpus.texts import row_ids, texts_and_reasons
from raybert.corpus.vectors import embedding_array, read_metadata
from raybert.encoder.chunking import chunk, combine
from raybert.encoder.quantizing import quantize
from raybert.encoder.tokenizing import TextTokenizer, Tokenized
from raybert.resolve import load_as_resolved

# Columns of a prepared table beside id and kept ones. Names no corpus column is likely to have.
ROW, REASON, TOKENS, VECTOR, CUT = "_row", "_reason", "_tokens", "_vector", "_truncated"
_SOURCE = b"raybert-source"


@dataclass(frozen=True)
class PrepareShard:
    """Rows of a corpus to token ids. Each distinct text of a shard is tokenized, and later encoded, once.

    The result has one row a row of the corpus (a row a window for chunked documents): id, kept columns, `_row` (number
    in the file), `_reason` (null, or why the row is rejected), `_vector` (which distinct text; -1 for rejects),
    `_tokens` (ids, at the first row of each distinct text only), `_truncated`, and the chunk columns.
    """

    data: DataSettings
    chunk: ChunkSettings
    kept: tuple[str, ...]
    tokenizer: TextTokenizer

    def __call__(self, table: pa.Table, source: Source, shard: Shard) -> pa.Table:
        texts, reasons = texts_and_reasons(table, self.data)
        ids = row_ids(table, self.data, shard.start, source.label)
        for row in np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False)):
            texts[row], reasons[row] = None, reasons[row] or f"{self.data.id} (data.id) is null"
        pieces = _Pieces.of_rows(texts) if self.chunk.size is None else self._windows(texts)
        distinct: dict[str, int] = {}
        vector = np.array(
            [-1 if t is None else distinct.setdefault(t, len(distinct)) for t in pieces.texts], np.int32
        )
        tokenized = self.tokenizer(list(distinct))
        lengths = tokenized.lengths
        first = np.zeros(len(vector), bool)
        first[np.unique(vector, return_index=True)[1]] = True
        first &= vector >= 0
        offsets = np.zeros(len(vector) + 1, np.int32)
        np.cumsum(np.where(first, lengths[vector] if len(lengths) else 0, 0), out=offsets[1:])
        cut = tokenized.truncated[vector] & (vector >= 0) if len(lengths) else np.zeros(len(vector), bool)
        columns = {
            "id": ids.take(pieces.rows),
            **{name: table[name].combine_chunks().take(pieces.rows) for name in self.kept},
            ROW: pa.array(pieces.rows.to_numpy() + shard.start),
            REASON: pa.array(reasons[pieces.rows.to_numpy()], pa.string()),
            VECTOR: pa.array(vector),
            TOKENS: pa.ListArray.from_arrays(pa.array(offsets), pa.array(tokenized.values)),
            CUT: pa.array(cut),
        }
        if self.chunk.size is not None:
            columns |= {"chunk": pieces.number, "chunk_start": pieces.start, "chunk_end": pieces.end}
        return pa.table(columns).replace_schema_metadata(
            {_SOURCE: source.uri.encode("utf-8", "surrogateescape")}
        )

    def _windows(self, texts: list[str | None]) -> "_Pieces":
        """Overlapping windows of every document. A document without a token keeps one window, all of it."""
        rows, number, spans, parts = [], [], [], []
        for row, text in enumerate(texts):
            windows = (
                chunk(self.tokenizer, text, self.chunk.size, self.chunk.overlap) if text is not None else []
            )
            for i, (start, end) in enumerate(windows or [(0, len(text or ""))]):
                rows.append(row)
                number.append(i)
                spans.append((start, end))
                parts.append(None if text is None else text[start:end])
        starts, ends = (pa.array([span[i] for span in spans], pa.int64()) for i in (0, 1))
        return _Pieces(parts, pa.array(rows, pa.int64()), pa.array(number, pa.int32()), starts, ends)


@dataclass(frozen=True)
class _Pieces:
    """What gets a vector of its own: texts [m] and the row each comes from; for windows their number and span."""

    texts: list[str | None]
    rows: pa.Int64Array
    number: pa.Int32Array | None = None
    start: pa.Int64Array | None = None
    end: pa.Int64Array | None = None

    @classmethod
    def of_rows(cls, texts: list[str | None]) -> "_Pieces":
        return cls(texts, pa.array(np.arange(len(texts))))


@dataclass(frozen=True)
class LoadEncoder:
    """Called in a worker: loads the model exactly as the plan says, or refuses. Picklable, needs no torch itself."""

    model: ModelSettings
    resolved: Mapping[str, Any]
    schema: pa.Schema
    combine: str

    def __call__(self) -> "EncodeShard":
        try:
            encoder = load_as_resolved(self.model, self.resolved)
        except ValueError as error:
            raise Refused(str(error)) from None
        return EncodeShard(encoder, self.schema, self.combine)


class EncodeShard:
    """A prepared table to the table of vectors and the rejects."""

    def __init__(self, encoder: Any, schema: pa.Schema, combine_mode: str) -> None:
        self._encoder, self._schema, self._combine = encoder, schema, combine_mode
        metadata = read_metadata(schema)
        self._stored, self._scale = metadata["stored_dtype"], metadata["scale"]

    def __call__(self, table: pa.Table) -> Outcome:
        table = table.combine_chunks()
        tokenized = _distinct(table)
        vectors = self._encoder.encode_ids(tokenized)
        lengths = tokenized.lengths
        padded = self._encoder.computed_tokens(lengths)
        which = table[VECTOR].to_numpy()
        reasons = np.array(table[REASON].to_pylist(), dtype=object)
        rows = table[ROW].to_numpy()
        # one bad window spoils its document: a row is either embedded or rejected
        bad = (
            ~np.isfinite(vectors).all(axis=1)[which] & (which >= 0)
            if len(vectors)
            else np.zeros(len(which), bool)
        )
        reasons[np.isin(rows, rows[bad]) & (reasons == None)] = "the model's vector is not finite"  # noqa: E711
        good = np.array([reason is None for reason in reasons], bool)
        tokens = lengths[which] if len(lengths) else np.zeros(len(which), np.int64)
        per_row = vectors[which[good]] if len(vectors) else np.zeros((0, self._encoder.dimension), np.float32)
        kept = table.filter(pa.array(good))
        kept = kept.append_column("num_tokens", pa.array(tokens[good], pa.int32()))
        if self._combine != "none":
            kept, per_row = self._one_vector_a_document(kept, per_row)
        data = self._output(kept, per_row)
        source = table.schema.metadata[_SOURCE].decode("utf-8", "replace")
        rejects = rejects_table(table["id"], rows, reasons, source)
        counts = {
            "rows": len(np.unique(rows)),
            "embedded": len(np.unique(rows[good])),
            "rejected": 0 if rejects is None else rejects.num_rows,
            "vectors": data.num_rows,
            "truncated": pc.sum(data["truncated"]).as_py() or 0,
            "tokens": int(tokens[good].sum()),
            "reasons": count_reasons(rejects),
        }
        return Outcome(data, rejects, counts, encoded_tokens=int(lengths.sum()), padded_tokens=padded)

    def _one_vector_a_document(self, table: pa.Table, vectors: np.ndarray) -> tuple[pa.Table, np.ndarray]:
        """Windows of a document to one vector, weighted by their tokens."""
        rows, tokens = table[ROW].to_numpy(), table["num_tokens"].to_numpy()
        starts = np.flatnonzero(np.r_[True, rows[1:] != rows[:-1]]) if len(rows) else np.zeros(0, np.int64)
        bounds = np.r_[starts, len(rows)]
        out = np.empty((len(starts), vectors.shape[1]), np.float32)
        for i, (a, b) in enumerate(pairwise(bounds)):
            out[i] = combine(vectors[a:b], tokens[a:b], self._combine)
        if self._encoder.normalized:
            out /= np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)
        total = np.add.reduceat(tokens, starts) if len(starts) else np.zeros(0, np.int64)
        table = table.take(pa.array(starts)).drop_columns(["num_tokens"])
        return table.append_column("num_tokens", pa.array(total, pa.int32())), out

    def _output(self, table: pa.Table, vectors: np.ndarray) -> pa.Table:
        kind = self._schema.field("embedding").type
        embedding = embedding_array(quantize(vectors, self._stored, self._scale), kind)
        columns = {
            name: table[name].cast(self._schema.field(name).type)
            for name in table.column_names
            if name in self._schema.names
        }
        columns |= {"embedding": embedding, "truncated": table[CUT]}
        return pa.table([columns[name] for name in self._schema.names], schema=self._schema)


def _distinct(table: pa.Table) -> Tokenized:
    """The distinct texts of a prepared table, in order."""
    lists = table[TOKENS].combine_chunks()
    lengths = lists.value_lengths().to_numpy()
    which = table[VECTOR].to_numpy()
    first = np.sort(np.unique(which, return_index=True)[1])
    first = first[which[first] >= 0]
    offsets = np.r_[0, np.cumsum(lengths[first])].astype(np.int64)
    return Tokenized(lists.flatten().to_numpy(), offsets, table[CUT].to_numpy(zero_copy_only=False)[first])


def vector_metadata(
    resolved: Mapping[str, Any], name: str, data: DataSettings, chunk: ChunkSettings
) -> dict[str, Any]:
    """The `raybert` entry of the output's schema: what a reader needs to make or compare such vectors."""
    keys = (
        "revision",
        "digest",
        "dimension",
        "pooling",
        "layers",
        "normalized",
        "prompt",
        "max_length",
        "dtype",
    )
    return {
        "model": name,
        **{key: resolved[key] for key in keys},
        "stored_dtype": resolved["stored_dtype"],
        "scale": resolved["scale"],
        "chunk": json.loads(chunk.model_dump_json()) if chunk.size else None,
        "text": data.template or data.text_columns,
        "raybert": resolved["versions"]["raybert"],
    }
