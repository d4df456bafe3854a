"""PNGs of a report: confusion matrix, calibration, learning curves, F1 of labels. Drawn without pyplot's global state."""

import io
import math
import warnings
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np

from raybert.evaluate.page import DENSITY
from raybert.evaluate.result import Evaluation
from raybert.evaluate.tables import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_LABELS = 100
"""Labels that a picture shows; more cannot be read."""
_NUMBERS_IN_CELLS = 25
_LONGEST_NAME = 32
_DOTS = 110  # an inch, of the page
# inches, of a confusion matrix: a page's width, beside and above the matrix, and a cell whose name can still be read
_WIDEST, _BAR, _TITLE, _LEAST_CELL = 10.6, 0.8, 0.35, 0.095
# Okabe and Ito's colours, told apart by colour-blind readers too; lines also differ in their marks
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MARKS = ("o", "s", "^", "D", "v", "P", "X")
_BEFORE, _AFTER = _COLOURS[1], _COLOURS[0]
_UNITS = {
    "loss": "loss (nats)",
    "lr": "learning rate",
    "seconds": "time (s)",
    "tokens_per_second": "speed (tokens/s)",
    "memory_gb": "memory (GB)",
    "accuracy": "accuracy (share)",
}


def draw_confusion(evaluation: Evaluation) -> bytes:
    """The confusion matrix: colour is the share of the true label's rows, numbers are counts where there is room.

    Of more than MOST_LABELS labels, those with the most errors are shown.
    """
    from matplotlib.colors import PowerNorm

    assert evaluation.confusion is not None, "no confusion matrix"
    matrix = np.array(evaluation.confusion)
    shown = _worst_labels(matrix)
    title = f"Confusion matrix, {_name(evaluation.name)}"
    if len(shown) < len(matrix):
        title += f": the {len(shown)} of {len(matrix)} labels with the most errors"
    shares = (matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1))[np.ix_(shown, shown)]
    counts, names = matrix[np.ix_(shown, shown)], [_name(evaluation.labels[i]) for i in shown]
    few = len(names) <= _NUMBERS_IN_CELLS
    size = 9 if few else 6
    # a letter is 0.6 of the size wide, more or less
    margin = 0.6 * size / 72 * max(map(len, names)) + 0.4
    cell = 0.6 if few else min(0.2, max(_LEAST_CELL, (_WIDEST - margin - _BAR) / len(names)))
    side = max(2.4, cell * len(names))
    width, height = side + margin + _BAR, side + margin + _TITLE
    figure = _figure(width, height, layout=None)
    axes = figure.add_axes((margin / width, margin / height, side / width, side / height))
    # by the square root, so that a label lost in one of a hundred rows is still seen
    image = axes.imshow(shares, cmap="cividis", norm=PowerNorm(0.5, 0, 1))
    length = min(side, 4)
    bar = figure.add_axes(
        ((margin + side + 0.12) / width, (margin + side - length) / height, 0.12 / width, length / height)
    )
    figure.colorbar(image, cax=bar, label="share of the true label's rows")
    axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size, parse_math=False)
    axes.set_yticks(range(len(names)), names, fontsize=size, parse_math=False)
    _label(axes, title, "predicted label", "true label")
    if few:
        for (row, column), count in np.ndenumerate(counts):
            colour = "black" if shares[row, column] > 0.25 else "white"
            axes.text(column, row, f"{count}", ha="center", va="center", color=colour, fontsize=8)
    return _png(figure)


def draw_calibration(before: Evaluation | None, after: Evaluation) -> bytes:
    """Accuracy over the probability of the predicted label, and how many predictions each bin holds."""
    figure = _figure(5.5, 5.5)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
    upper.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1, label="perfect")
    for evaluation, colour, mark in _both(before, after):
        bins = [one for one in evaluation.calibration if one.count]
        points = [one.confidence for one in bins], [one.accuracy for one in bins]
        error = evaluation.metrics.get("ece", math.nan)
        upper.plot(*points, color=colour, marker=mark, label=f"{_name(evaluation.name)} (ECE {error:.3f})")
        lower.step(
            [0, *(one.high for one in evaluation.calibration)],
            [evaluation.calibration[0].count, *(one.count for one in evaluation.calibration)],
            where="pre",
            color=colour,
        )
    upper.set(xlim=(0, 1), ylim=(0, 1))
    _label(upper, "Calibration", "", "accuracy (share)")
    _legend(upper)
    lower.set_ylim(bottom=0)
    _label(lower, "", "probability of the predicted label", "rows")
    return _png(figure)


def draw_points(before: Evaluation | None, after: Evaluation) -> bytes:
    """Predicted over true numbers, one panel a model: their scales may differ."""
    shown = [
        (one, colour)
        for one, colour in ((before, _BEFORE), (after, _AFTER))
        if one is not None and one.points
    ]
    figure = _figure(5 * len(shown), 4.5)
    places = figure.subplots(1, len(shown), squeeze=False).ravel()
    for axes, (evaluation, colour) in zip(places, shown, strict=True):
        axes.plot(*zip(*evaluation.points, strict=True), "o", color=colour, ms=3, alpha=0.4)
        _label(axes, _name(evaluation.name), "true number", "predicted number")
    return _png(figure)


def draw_curves(rows: Sequence[Mapping[str, float]]) -> bytes:
    """Figures over the steps of training.

    Args:
        rows: each {"step": ..., name: value, ...}; names that end alike (`train/loss`, `held_out/loss`) share a panel.
            A value that is not finite is left out.
    """
    panels = curve_panels(rows)
    columns = min(2, len(panels))
    lines = -(-len(panels) // columns)
    figure = _figure(5 * columns, 2.7 * lines)
    places = figure.subplots(lines, columns, squeeze=False).ravel()
    for axes in places[len(panels) :]:
        axes.set_visible(False)
    for axes, (panel, curves) in zip(places, panels.items(), strict=False):
        for i, (name, points) in enumerate(curves.items()):
            few = len(points) <= 40
            mark = _MARKS[i % len(_MARKS)] if few else None
            colour, style = _COLOURS[i % len(_COLOURS)], ("-", "--", ":", "-.")[i % 4]
            axes.plot(
                *zip(*points, strict=True),
                color=colour,
                linestyle=style,
                marker=mark,
                ms=4,
                label=_name(name),
            )
        _label(
            axes,
            "learning rate" if panel == "lr" else _name(panel),
            "step (updates)",
            _UNITS.get(panel, _name(panel)),
        )
        if len(curves) > 1:
            _legend(axes)
    return _png(figure)


def curve_panels(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """panel -> curve -> [(step, value), ...] of all curves with a finite value."""
    panels: dict[str, dict[str, list[tuple[float, float]]]] = {}
    for row in rows:
        for name, value in row.items():
            if name != "step" and value is not None and math.isfinite(value):
                curves = panels.setdefault(name.rpartition("/")[2], {})
                curves.setdefault(name, []).append((row["step"], value))
    return panels


def draw_labels(before: Evaluation | None, after: Evaluation) -> bytes:
    """F1 of each label, the best on top; joined with that of before, where there is one.

    Of more than MOST_LABELS labels, those that changed most are shown, or else those with the lowest F1.
    """
    then = {} if before is None else {score.label: score.f1 for score in before.per_label}
    found = [(score.label, score.f1, then.get(score.label)) for score in after.per_label]
    title = "F1 of each label"
    if len(found) > MOST_LABELS:
        title += f": {MOST_LABELS} of {len(found)}, " + ("the most changed" if then else "the lowest")
        found.sort(key=lambda one: -abs(one[1] - (one[2] or 0)) if then else one[1])
    found = sorted(found[:MOST_LABELS], key=lambda one: one[1])
    names, now = [_name(label) for label, _, _ in found], [f1 for _, f1, _ in found]
    figure = _figure(7, 1.4 + 0.2 * len(found))
    axes = figure.subplots()
    at = range(len(found))
    if before is not None:
        pairs = [(i, was, f1) for i, (_, f1, was) in enumerate(found) if was is not None]
        if pairs:
            rows, was, is_now = zip(*pairs, strict=True)
            axes.hlines(rows, was, is_now, color="grey", linewidth=1)
            axes.plot(was, rows, "s", color=_BEFORE, ms=4, label=_name(before.name))
    axes.plot(now, at, "o", color=_AFTER, ms=5, label=_name(after.name))
    axes.set_yticks(at, names, fontsize=8, parse_math=False)
    axes.set(xlim=(-0.02, 1.02), ylim=(-1, len(found)))
    _label(axes, title, "F1 (share)", "label")
    if before is not None:
        _legend(axes)
    return _png(figure)


def _worst_labels(matrix: np.ndarray) -> np.ndarray:
    """Numbers of the labels to show, ascending."""
    errors = matrix.sum(axis=0) + matrix.sum(axis=1) - 2 * np.diagonal(matrix)
    return np.sort(np.argsort(-errors, kind="stable")[:MOST_LABELS])


def _both(before: Evaluation | None, after: Evaluation) -> list[tuple[Evaluation, str, str]]:
    pairs = [(before, _BEFORE, "s"), (after, _AFTER, "o")]
    return [(one, colour, mark) for one, colour, mark in pairs if one is not None and one.calibration]


def _name(label: str) -> str:
    text = printable(label)
    if len(text) <= _LONGEST_NAME:
        return text
    # names that begin alike differ at the end
    return f"{text[: _LONGEST_NAME - 15]}…{text[-14:]}"


def _figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> "Figure":
    """In inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _label(axes: "Axes", title: str, x: str, y: str) -> None:
    """A dollar sign in a name is no formula."""
    axes.set_title(title, parse_math=False, fontsize=10)
    axes.set_xlabel(x, parse_math=False)
    axes.set_ylabel(y, parse_math=False)
    if not axes.images:
        axes.grid(alpha=0.3)


def _legend(axes: "Axes") -> None:
    for text in axes.legend(fontsize=8).get_texts():
        text.set_parse_math(False)


def _png(figure: "Figure") -> bytes:
    """The same bytes for the same figure."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # a box stands for a character that the font lacks
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(buffer, format="png", dpi=_DOTS * DENSITY, metadata={"Software": None})
    return buffer.getvalue()
