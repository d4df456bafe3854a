"""Rows that a model got better or worse at, from a table of predictions: the most confident changes first."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

MOST_ROWS = 50
"""Rows of a list."""
LONGEST_TEXT = 300
"""Characters of a text that are shown."""


@dataclass(frozen=True)
class Prediction:
    """A row as it is shown. `before` is None where there was no model before; probabilities are None where unknown. Of
    `Changes.graded` rows they are scores."""

    text: str
    label: str
    before: str | None
    after: str
    before_probability: float | None
    after_probability: float | None


@dataclass(frozen=True)
class Changes:
    """`better` and `worse` of `count_better` and `count_worse` rows; without a model before, `worse` are wrong rows.

    `numbers` says that labels are numbers, which are not right or wrong but near or far; `graded`, that predictions have a
    score of how right they are.
    """

    better: list[Prediction]
    worse: list[Prediction]
    count_better: int
    count_worse: int
    numbers: bool = False
    graded: bool = False


def find_changes(table: pa.Table) -> Changes:
    """The rows whose prediction became right or wrong; of numbers, those that came nearer the truth or went farther.

    Rows are ordered by the change of confidence: the probability of the predicted label, negative where it is wrong,
    after less before. Numbers are ordered by the change of the error, others by the change of their score.

    Args:
        table: columns `text`, `label` (true), `after` (predicted) and, where there was a model before, `before`;
            `before_probability` and `after_probability` are those of the predicted labels and may be missing; where
            there are `before_score` and `after_score` instead, those tell how right a row is: 1 if it is all right.
            Labels are of any one type, lists (of several labels a row) included, whose order does not matter.

    Raises:
        ValueError: a column is missing.
    """
    missing = [name for name in ("text", "label", "after") if name not in table.column_names]
    if missing:
        raise ValueError(f"the table of predictions has no column {missing[0]!r}: {table.column_names}")
    change = _gain(table, "after")
    graded = "after_score" in table.column_names
    numbers = pa.types.is_floating(table.schema.field("label").type) and not graded
    if "before" in table.column_names:
        before = _gain(table, "before")
        moved = change != before if numbers or graded else np.sign(change) != np.sign(before)
        change = np.where(moved, change - before, 0)
    else:
        change = np.minimum(change, 0)
    up, down = np.flatnonzero(change > 0), np.flatnonzero(change < 0)
    return Changes(
        better=_shown(table, up[np.argsort(-change[up], kind="stable")]),
        worse=_shown(table, down[np.argsort(change[down], kind="stable")]),
        count_better=len(up),
        count_worse=len(down),
        numbers=numbers,
        graded=graded,
    )


def _gain(table: pa.Table, which: str) -> np.ndarray:
    """How good a prediction is: signed confidence, float64 [rows]; of numbers, the negative error; of scores, what they
    lack to 1."""
    truth, predicted = table["label"], table[which]
    if f"{which}_score" in table.column_names:
        return table[f"{which}_score"].to_numpy().astype(np.float64) - 1
    if pa.types.is_floating(truth.type):
        return -np.abs(predicted.to_numpy().astype(np.float64) - truth.to_numpy().astype(np.float64))
    pairs = zip(_plain(truth), _plain(predicted), strict=True)
    right = np.fromiter((a == b for a, b in pairs), bool, len(table))
    sure = np.ones(len(table))
    if f"{which}_probability" in table.column_names:
        # at least a little, for the sign tells right from wrong
        sure = np.maximum(np.nan_to_num(table[f"{which}_probability"].to_numpy(), nan=1.0), 1e-9)
    return np.where(right, sure, -sure)


def _plain(column: pa.ChunkedArray) -> Iterable[Any]:
    values = (value for chunk in column.chunks for value in chunk.to_pylist())
    kind = column.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return (None if value is None else sorted(map(str, value)) for value in values)
    return values


def _shown(table: pa.Table, rows: np.ndarray) -> list[Prediction]:
    # rows of a slice are read, not the column: texts may be long
    found = [table.slice(int(row), 1).to_pylist()[0] for row in rows[:MOST_ROWS]]
    return [
        Prediction(
            text=_cut(_text(row["text"])),
            label=_cut(_text(row["label"])),
            before=_cut(_text(row["before"])) if "before" in row else None,
            after=_cut(_text(row["after"])),
            before_probability=row.get("before_score", row.get("before_probability")),
            after_probability=row.get("after_score", row.get("after_probability")),
        )
        for row in found
    ]


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list):
        return ", ".join(map(str, value))
    return "" if value is None else str(value)


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 1] + "…"
