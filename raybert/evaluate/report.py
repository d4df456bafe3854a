"""The report of an evaluation: one self-contained report.html, its pictures as PNGs, metrics.json."""

import json
from collections.abc import Mapping, Sequence

import pyarrow as pa

from raybert.corpus.store import Store
from raybert.evaluate import plots
from raybert.evaluate.changes import find_changes
from raybert.evaluate.result import Evaluation
from raybert.evaluate.sections import html_page

PAGE, METRICS = "report.html", "metrics.json"
PICTURES = (
    "confusion_before.png",
    "confusion.png",
    "calibration.png",
    "labels.png",
    "points.png",
    "learning_curves.png",
)
"""All that a report may have; those of an earlier one that this one lacks are removed."""


def write_report(
    store: Store,
    before: Evaluation | None,
    after: Evaluation,
    *,
    curves: Sequence[Mapping[str, float]] = (),
    changed_rows: pa.Table | None = None,
) -> None:
    """Write report.html, its pictures and metrics.json into a folder; each file appears whole, the page last.

    Args:
        store: the folder.
        before: the model before; None for a report on one model.
        after: the model after, on the same test set.
        curves: rows {"step": ..., name: value, ...} of the training.
        changed_rows: predictions, with the columns of `raybert.evaluate.changes.find_changes`.

    Raises:
        ValueError: the two are of different labels or numbers of rows, or a column of `changed_rows` is missing.
        OSError: the folder cannot be written.
    """
    if before is not None:
        _check_comparable(before, after)
    changes = None if changed_rows is None else find_changes(changed_rows)
    pictures = draw(before, after, curves)
    for name in PICTURES:
        if name in pictures:
            store.write(name, pictures[name])
        else:
            store.delete(name)
    store.write(METRICS, metrics_json(before, after).encode())
    store.write(PAGE, html_page(before, after, pictures, changes).encode())
    store.leave_nothing_aside()


def read_metrics(store: Store) -> tuple[Evaluation | None, Evaluation]:
    """(before, after) of a report. Raises FileNotFoundError, or ValueError for another metrics.json."""
    values = json.loads(store.read(METRICS))
    if not isinstance(values, dict) or not values.get("after"):
        raise ValueError(f"{store.path(METRICS)} was not written by a report")
    before, after = (
        None if not values.get(name) else Evaluation.from_json(json.dumps(values[name]))
        for name in ("before", "after")
    )
    assert after is not None
    return before, after


def metrics_json(before: Evaluation | None, after: Evaluation) -> str:
    """Both evaluations as JSON, a line for each of their parts: a matrix of 77 labels is no page of numbers."""
    parts = []
    for name, evaluation in (("before", before), ("after", after)):
        values = {} if evaluation is None else json.loads(evaluation.to_json())
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())
        parts.append(f' "{name}": ' + (f"{{\n{lines}\n }}" if values else "null"))
    return "{\n" + ",\n".join(parts) + "\n}\n"


def draw(
    before: Evaluation | None, after: Evaluation, curves: Sequence[Mapping[str, float]]
) -> dict[str, bytes]:
    """The PNGs that there is something to draw in."""
    pictures = {}
    if before is not None and before.confusion is not None:
        pictures["confusion_before.png"] = plots.draw_confusion(before)
    if after.confusion is not None:
        pictures["confusion.png"] = plots.draw_confusion(after)
    if after.calibration:
        pictures["calibration.png"] = plots.draw_calibration(before, after)
    if after.per_label:
        pictures["labels.png"] = plots.draw_labels(before, after)
    if after.points:
        pictures["points.png"] = plots.draw_points(before, after)
    if plots.curve_panels(curves):
        pictures["learning_curves.png"] = plots.draw_curves(curves)
    return pictures


def _check_comparable(before: Evaluation, after: Evaluation) -> None:
    if before.rows != after.rows:
        raise ValueError(
            f"{before.name} was evaluated on {before.rows:,} rows, {after.name} on {after.rows:,}: "
            "evaluate both on the same test set"
        )
    if before.labels != after.labels:
        differ = sorted(set(before.labels) ^ set(after.labels)) or ["their order"]
        raise ValueError(
            f"{before.name} and {after.name} have different labels: {', '.join(differ[:10])}"
            + (" ..." if len(differ) > 10 else "")
        )
