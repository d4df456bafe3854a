"""What is decoded and scored of the rows of a table."""

from typing import Any

import numpy as np
import pyarrow as pa

from raybert.tasks.examples import Examples


def decoded(
    side: Any, logits: np.ndarray, made: Examples, table: pa.Table, labels: list[str], settings: Any
) -> list[Any]:
    """For every row of the table; None for those without examples."""
    if hasattr(side, "with_texts"):
        made = side.with_texts(made, table, settings)
    rows = side.decode({"logits": logits}, made, labels, settings)
    assert all(row.keys() == side.output_fields(settings).keys() for row in rows)
    found: list[Any] = [None] * len(table)
    for row, one in zip(made.row[made.first], rows, strict=True):
        found[row] = one
    return found


def scored(
    side: Any, logits: np.ndarray, made: Examples, table: pa.Table, labels: list[str], settings: Any
) -> dict[str, float]:
    """The figures on the rows that have examples."""
    if hasattr(side, "with_truth"):
        made = side.with_truth(made, table, labels, settings)
    scores = side.Scores(labels, settings)
    scores.add({"logits": logits}, made)
    return scores.result()
