"""The content of a file of predictions: known labels, probabilities, finite numbers."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raybert.corpus.ledger import Commit

_PROBABLE = ("classification", "entities", "relations")  # tasks whose scores are probabilities


def label_problems(file: pq.ParquetFile, commit: Commit, metadata: dict[str, Any]) -> list[str]:
    """What is wrong with the rows of a data file of `raybert predict`."""
    problems = []
    if file.metadata.num_rows != commit.vectors or commit.vectors != commit.embedded:
        problems.append(
            f"{file.metadata.num_rows:,} rows in the file, {commit.vectors:,} results of {commit.embedded:,} rows recorded"
        )
    task, known = metadata["task"], set(metadata["labels"])
    if task == "entities":
        known = {label.partition("-")[2] for label in known}
    table = file.read(columns=metadata["fields"])
    # no answer is null
    if task != "answers" and any(column.null_count for column in table.columns):
        return [*problems, "a prediction is null"]
    for name, values in _parts(table):
        if name in ("label", "labels") and not set(pc.unique(values).to_pylist()) <= known:
            problems.append("a label is not among those of the model")
        elif pa.types.is_floating(values.type):
            numbers = values.drop_null().to_numpy(zero_copy_only=False)
            if not np.isfinite(numbers).all():
                problems.append("a number is not finite")
            elif name in ("score", "scores") and task in _PROBABLE and ((numbers < 0) | (numbers > 1)).any():
                problems.append("a score is no probability")
    if {"labels", "scores"} <= {*table.column_names}:
        lengths = [_whole(table[name]).value_lengths() for name in ("labels", "scores")]
        if lengths[0] != lengths[1]:
            problems.append("a row has not as many scores as labels")
    return problems


def _parts(table: pa.Table) -> Iterator[tuple[str, pa.Array]]:
    """The values of every column by its name; of lists their elements, of structs their fields."""
    for name in table.column_names:
        array = _whole(table[name])
        if pa.types.is_list(array.type):
            array = array.flatten()
        if pa.types.is_struct(array.type):
            yield from zip((field.name for field in array.type), array.flatten(), strict=True)
        else:
            yield name, array


def _whole(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # of no rows
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    return array
