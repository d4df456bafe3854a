"""One finished token shard held against its commit record and its metadata."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raybert.corpus.ledger import Commit

_ROWS_AT_ONCE = 8192


def token_problems(file: pq.ParquetFile, commit: Commit, metadata: dict[str, Any]) -> list[str]:
    """What is wrong with the instances of a shard; empty if nothing is."""
    found: dict[str, int] = {}  # one line a kind of problem, however many rows have it
    rows = tokens = 0
    for batch in file.iter_batches(_ROWS_AT_ONCE):
        for kind, row in _batch_problems(batch, metadata):
            found.setdefault(kind, rows + row)
        rows += batch.num_rows
        tokens += pc.sum(batch.column("length")).as_py() or 0
    problems = [f"{kind}, first in row {row:,} of the file" for kind, row in found.items()]
    if rows != commit.vectors:
        problems.append(f"{rows:,} instances in the file, {commit.vectors:,} recorded")
    if tokens != commit.tokens:
        problems.append(f"{tokens:,} tokens in the file, {commit.tokens:,} recorded")
    return problems


def _batch_problems(batch: pa.RecordBatch, metadata: dict[str, Any]) -> list[tuple[str, int]]:
    """(kind, first row) of every kind of damage."""
    lengths = batch.column("length").to_numpy()
    ids, starts = batch.column("ids"), batch.column("starts")
    owner = np.repeat(np.arange(batch.num_rows), ids.value_lengths().to_numpy())
    boundary, label = batch.column("boundary").to_numpy(), batch.column("label").to_numpy()
    wrong = {
        "an id beyond the vocabulary": owner[ids.flatten().to_numpy() >= metadata["vocabulary"]],
        "an instance longer than max_length": np.flatnonzero(lengths > metadata["max_length"]),
        "a length that is not that of the ids": np.flatnonzero(ids.value_lengths().to_numpy() != lengths),
        "starts of words for other tokens": np.flatnonzero(starts.value_lengths().to_numpy() != lengths),
        "a boundary outside of the instance": np.flatnonzero((boundary < 1) | (boundary > lengths)),
        "a pair without a second part": np.flatnonzero((label >= 0) & (boundary >= lengths)),
    }
    return [(kind, int(rows[0])) for kind, rows in wrong.items() if len(rows)]
