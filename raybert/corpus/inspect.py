"""One finished shard held against its commit record: bytes, schema, vectors, ids, rejects."""

import hashlib
import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raybert.corpus.inspect_labels import label_problems
from raybert.corpus.inspect_tokens import token_problems
from raybert.corpus.ledger import DATA, OURS, REJECTS, Commit, Source
from raybert.corpus.shards import Shard
from raybert.corpus.store import Store
from raybert.corpus.vectors import REJECT_SCHEMA, embedding_matrix, read_metadata, stored_type

_ROWS_AT_ONCE = 8192
# How far a normalised vector may be from length 1: rounding of the stored type.
_LENGTH_ERROR = {"float32": 1e-3, "float16": 1e-2}


@dataclass
class Found:
    """What is wrong with a shard (nothing, if `problems` is empty), its record, and its serialised schema."""

    problems: list[str] = field(default_factory=list)
    commit: Commit | None = None
    schema: bytes | None = None


def inspect_shard(store: Store, name: str, source: Source, shard: Shard, *, own_ids: bool) -> Found:
    """Check a shard that has a record and a data file; holds the file in memory while it does.

    `own_ids`: ids are `<file>:<row>`, so each row of the input must be found exactly once, embedded or rejected.
    Never raises: what goes wrong is a problem of the shard.
    """
    found = Found()
    try:
        found.commit = commit = Commit(**json.loads(store.read(f"{OURS}/commits/{name}.json")))
    except (OSError, ValueError, TypeError) as error:
        found.problems.append(f"the commit record cannot be read: {_one_line(error)}")
        return found
    try:
        _check_counts(found, commit, shard)
        rejected = _rejected_rows(found, store, name, commit, shard)
        data = store.read(f"{DATA}/{name}.parquet")
        if len(data) != commit.bytes:
            found.problems.append(f"{len(data):,} bytes where {commit.bytes:,} were written")
        elif hashlib.sha256(data).hexdigest() != commit.sha256:
            found.problems.append("the content is not what was committed (sha256 differs)")
        file = pq.ParquetFile(pa.BufferReader(data))
        found.schema = file.schema_arrow.serialize().to_pybytes()
        metadata = read_metadata(file.schema_arrow)
        if metadata.get("kind") == "tokens":
            found.problems += token_problems(file, commit, metadata)
        else:
            if metadata.get("kind") == "labels":
                found.problems += label_problems(file, commit, metadata)
            else:
                _check_file(found, file, commit)
            _check_rows(found, file, commit, shard, source.label if own_ids else None, rejected)
    except Exception as error:
        found.problems.append(f"cannot be read: {_one_line(error)}")
    return found


def _check_counts(found: Found, commit: Commit, shard: Shard) -> None:
    planned = shard.end - shard.start
    if commit.rows != planned:
        found.problems.append(f"{commit.rows:,} rows recorded where {planned:,} are planned")
    if commit.embedded + commit.rejected != commit.rows:
        total = f"{commit.embedded:,} embedded + {commit.rejected:,} rejected"
        found.problems.append(f"{total} are not the {commit.rows:,} rows recorded")
    if sum(commit.reasons.values()) != commit.rejected:
        found.problems.append(f"the reasons recorded do not add up to {commit.rejected:,} rejected rows")


def _rejected_rows(found: Found, store: Store, name: str, commit: Commit, shard: Shard) -> np.ndarray:
    """Numbers of the rejected rows, after checking their file."""
    try:
        table = pq.read_table(pa.BufferReader(store.read(f"{REJECTS}/{name}.parquet")))
        rows = table.column("row").to_numpy()
        reasons = Counter(text.partition(":")[0] for text in table.column("reason").to_pylist())
    except FileNotFoundError:
        table, rows, reasons = REJECT_SCHEMA.empty_table(), np.zeros(0, np.int64), Counter()
    except Exception as error:
        found.problems.append(f"its rejects cannot be read: {_one_line(error)}")
        return np.zeros(0, np.int64)
    if table.num_rows != commit.rejected:
        found.problems.append(f"{table.num_rows:,} rows in its rejects file, {commit.rejected:,} recorded")
    elif dict(reasons) != commit.reasons:
        found.problems.append("the reasons in its rejects file are not those recorded")
    if len(np.unique(rows)) != len(rows) or ((rows < shard.start) | (rows >= shard.end)).any():
        found.problems.append("its rejects file names rows twice, or rows of another shard")
    return rows


def _check_file(found: Found, file: pq.ParquetFile, commit: Commit) -> None:
    if file.metadata.num_rows != commit.vectors:
        found.problems.append(f"{file.metadata.num_rows:,} vectors in the file, {commit.vectors:,} recorded")
    if "chunk" not in file.schema_arrow.names and commit.vectors != commit.embedded:
        found.problems.append(f"{commit.vectors:,} vectors recorded for {commit.embedded:,} embedded rows")
    metadata = read_metadata(file.schema_arrow)
    expected = stored_type(metadata["dimension"], metadata["stored_dtype"])
    actual = file.schema_arrow.field("embedding").type
    if (actual.list_size, actual.value_type) != (expected.list_size, expected.value_type):
        found.problems.append(f"vectors are {actual}, the metadata says {expected}")


def _check_rows(
    found: Found, file: pq.ParquetFile, commit: Commit, shard: Shard, label: str | None, rejected: np.ndarray
) -> None:
    """Vectors and, where raybert made them (`label`), ids; a batch at a time, because one may be a large share of it."""
    metadata = read_metadata(file.schema_arrow)
    chunked, vectors = "chunk" in file.schema_arrow.names, metadata.get("kind") != "labels"
    ids = _Ids(label, shard) if label is not None else None
    first: dict[str, int] = {}  # one line a kind of problem, however many rows have it
    at = 0
    for batch in file.iter_batches(
        _ROWS_AT_ONCE, columns=["id", *(["embedding"] if vectors else []), *(["chunk"] if chunked else [])]
    ):
        for kind, row in _vector_problems(batch.column("embedding"), metadata) if vectors else []:
            first.setdefault(kind, at + row)
        if ids is not None:
            ids.add(batch.column("id"), batch.column("chunk") if chunked else None)
        at += batch.num_rows
    found.problems += [f"{kind}, first in row {row:,} of the file" for kind, row in first.items()]
    if ids is not None:
        found.problems += ids.problems(rejected, commit)


def _vector_problems(column: pa.FixedSizeListArray, metadata: dict[str, Any]) -> list[tuple[str, int]]:
    """(kind, first row) of every kind of damage in a batch of vectors."""
    if column.null_count:
        return [("a null vector", int(np.flatnonzero(column.is_null())[0]))]
    values = column.flatten()
    if values.null_count:
        return [("a null in a vector", int(np.flatnonzero(values.is_null())[0]) // column.type.list_size)]
    if metadata["stored_dtype"] not in _LENGTH_ERROR:
        return []
    matrix = embedding_matrix(column)
    finite = np.isfinite(matrix).all(axis=1)
    if not finite.all():
        return [("a vector that is not finite", int(np.flatnonzero(~finite)[0]))]
    if metadata["normalized"]:
        lengths = np.sqrt(np.square(matrix, dtype=np.float32).sum(axis=1, dtype=np.float64))
        wrong = np.abs(lengths - 1) > _LENGTH_ERROR[metadata["stored_dtype"]]
        if wrong.any():
            row = int(np.flatnonzero(wrong)[0])
            return [(f"a vector of length {lengths[row]:.3g} where all should have 1", row)]
    return []


class _Ids:
    """Ids `<label>:<row>` of a shard: each embedded row there, once (or in chunks 0, 1, ...), and in order.

    No two shards can name the same row then, so ids are unique in the folder without comparing its files.
    """

    def __init__(self, label: str, shard: Shard) -> None:
        self._label, self._shard = label, shard
        self._seen = np.zeros(shard.end - shard.start, bool)
        self._last = (-1, -1)
        self._foreign: str | None = None
        self._twice: str | None = None

    def add(self, ids: pa.Array, chunks: pa.Array | None) -> None:
        """The next batch of the file."""
        start, end = self._shard.start, self._shard.end
        numbers = pc.replace_substring_regex(ids, f"^{re.escape(self._label)}:([0-9]{{1,18}})$", "\\1")
        rows = np.array(
            [int(n) if n is not None and n.isdecimal() else -1 for n in numbers.to_pylist()], np.int64
        )
        foreign = np.flatnonzero((rows < start) | (rows >= end))
        if len(foreign):
            self._foreign = self._foreign or str(ids[int(foreign[0])])
            return
        parts = [0] * len(rows) if chunks is None else chunks.to_pylist()
        for row, part, text in zip(rows.tolist(), parts, ids, strict=True):
            if (row, part) <= self._last:
                self._twice = self._twice or str(text)
            self._last = (row, part)
        self._seen[rows - start] = True

    def problems(self, rejected: np.ndarray, commit: Commit) -> list[str]:
        """What is wrong, once all batches were added; `rejected` are row numbers."""
        if self._foreign is not None:
            return [f"the id {self._foreign} is not of this shard"]
        found = [f"the id {self._twice} occurs twice or out of order"] if self._twice else []
        inside = rejected[(rejected >= self._shard.start) & (rejected < self._shard.end)] - self._shard.start
        lost = ~self._seen
        lost[inside] = False
        if self._seen[inside].any():
            found.append(f"{int(self._seen[inside].sum()):,} rows are both embedded and rejected")
        if lost.any():
            row = self._shard.start + int(np.flatnonzero(lost)[0])
            found.append(f"{int(lost.sum()):,} rows are neither embedded nor rejected, such as row {row:,}")
        if int(self._seen.sum()) != commit.embedded:
            found.append(f"{int(self._seen.sum()):,} rows have vectors, {commit.embedded:,} recorded")
        return found


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
