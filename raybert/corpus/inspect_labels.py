"""The content of a file of predictions: known labels, probabilities, finite numbers."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raybert.corpus.ledger import Commit


def label_problems(file: pq.ParquetFile, commit: Commit, metadata: dict[str, Any]) -> list[str]:
    """What is wrong with the rows of a data file of `raybert predict`."""
    problems = []
    if file.metadata.num_rows != commit.vectors or commit.vectors != commit.embedded:
        problems.append(
            f"{file.metadata.num_rows:,} rows in the file, {commit.vectors:,} results of {commit.embedded:,} rows recorded"
        )
    names = {"single": ["label", "score"], "multi": ["labels", "scores"]}.get(
        metadata["classification"], ["value"]
    )
    table = file.read(columns=names)
    if any(table[name].null_count for name in names):
        return [*problems, "a prediction is null"]
    values = [_flat(table[name]) for name in names]
    if (
        len(values) == 2
        and not pc.all(
            pc.is_in(values[0], value_set=pa.array(metadata["labels"], pa.string())), min_count=0
        ).as_py()
    ):
        problems.append("a label is not among those of the model")
    numbers = values[-1].to_numpy(zero_copy_only=False)
    if not np.isfinite(numbers).all():
        problems.append("a number is not finite")
    elif len(values) == 2 and ((numbers < 0) | (numbers > 1)).any():
        problems.append("a score is no probability")
    if metadata["classification"] == "multi":
        lengths = [table[name].combine_chunks().value_lengths() for name in names]
        if lengths[0] != lengths[1]:
            problems.append("a row has not as many scores as labels")
    return problems


def _flat(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # of no rows
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    return array.flatten() if pa.types.is_list(array.type) else array
