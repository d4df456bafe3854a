"""The sections of a report's page: headline figures, labels, confusion, calibration, curves, changed rows."""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from raybert.corpus.progress import duration
from raybert.evaluate import page
from raybert.evaluate.changes import Changes, Prediction
from raybert.evaluate.page import Cell
from raybert.evaluate.result import Evaluation
from raybert.evaluate.tables import average_rows, compared, verdict

_HEADLINES = (
    "accuracy",
    "f1_macro",
    "f1_micro",
    "macro_f1",
    "exact_match",
    "f1",
    "precision",
    "recall",
    "pearson",
    "spearman",
    "mcc",
    "ece",
    "mse",
    "loss",
)
_CORRELATIONS = ("pearson", "spearman")
_MOST_HEADLINES = 4
_MOST_CONFUSED = 20
Section = tuple[str, str, str]


def html_page(
    before: Evaluation | None, after: Evaluation, pictures: Mapping[str, bytes], changes: Changes | None
) -> str:
    """The page, from the PNGs by the names of their files."""
    title = f"{after.task}: {after.model}" if before is None else f"{after.task}: before and after"
    facts = [("model", after.model), ("rows", f"{after.rows:,}")]
    if after.seconds:
        facts.append(
            ("predicted in", f"{after.seconds:.1f} s" if after.seconds < 10 else duration(after.seconds))
        )
    if before is not None:
        facts = [("before", before.model), ("after", after.model), *facts[1:]]
    sections = [
        ("headline", "Headline figures", _headline(before, after)),
        ("figures", "All figures", _all_figures(before, after)),
        *(_labels(before, after, pictures) if after.per_label else []),
        *(_confusion(before, after, pictures) if after.confusion is not None else []),
        *(_calibration(before, after, pictures) if after.calibration else []),
        *(_points(before, after, pictures) if after.points else []),
        *(_curves(pictures) if "learning_curves.png" in pictures else []),
        *(_changes(changes, after.rows, compare=before is not None) if changes is not None else []),
    ]
    return page.page(title, facts, sections)


def _headline(before: Evaluation | None, after: Evaluation) -> str:
    # with one label a row, micro averages are the accuracy
    same = "f1_micro" if "accuracy" in after.metrics and after.confusion is not None else ""
    names = [name for name in _HEADLINES if name in after.metrics and name != same] or list(after.metrics)
    names = (
        [after.main, *(name for name in names if name != after.main)]
        if after.main in after.metrics
        else names
    )
    cards = []
    for name in names[:_MOST_HEADLINES]:
        now = after.metrics[name]
        was = None if before is None else before.metrics.get(name)
        change = "" if was is None else f"before {was:.4f}, difference {now - was:+.4f}"
        cards.append((name, f"{now:.4f}", change, verdict(name, was, now)))
    return page.figures(cards)


def _all_figures(before: Evaluation | None, after: Evaluation) -> str:
    caption = f"Figures on {after.rows:,} rows"
    if before is None:
        rows = [[Cell(name), _number(value)] for name, value in after.metrics.items()]
        return page.table(caption, [Cell("figure"), Cell(after.name, "number")], rows)
    header = [
        Cell("figure"),
        *(Cell(name, "number") for name in (before.name, after.name, "difference")),
        Cell(""),
    ]
    rows = []
    for name, now, was in compared(before, after):
        change = Cell("" if was is None else f"{now - was:+.4f}", "number")
        rows.append([Cell(name), _number(was), _number(now), change, _verdict(name, was, now)])
    return page.table(caption, header, rows)


def _labels(before: Evaluation | None, after: Evaluation, pictures: Mapping[str, bytes]) -> list[Section]:
    then = {} if before is None else {score.label: score for score in before.per_label}
    names = ["precision", "recall", "F1", "support"] + (["F1 before", "difference"] if then else [])
    header = [Cell("label"), *(Cell(name, "number") for name in names)]
    rows = []
    for score in after.per_label:
        row = [Cell(score.label), *map(_number, (score.precision, score.recall, score.f1))]
        row.append(Cell(f"{score.support:,}", "number"))
        if then:
            was = then[score.label].f1
            row += [_number(was), Cell(f"{score.f1 - was:+.4f}", "number")]
        rows.append(row)
    averages = [
        [
            Cell(name),
            *(Cell("" if value is None else f"{value:.4f}", "number") for value in values),
            Cell(f"{support:,}", "number"),
            *([Cell("")] * (2 if then else 0)),
        ]
        for name, *values, support in average_rows(after)
    ]
    body = page.table(
        f"Precision, recall, F1 and support of each label, {after.name}", header, rows, averages, tall=True
    )
    best = max(after.per_label, key=lambda score: score.f1)
    worst = min(after.per_label, key=lambda score: score.f1)
    alt = (
        f"F1 of {len(after.per_label)} labels, from {worst.f1:.2f} ({worst.label}) to {best.f1:.2f} ({best.label}). "
        "The table above has the numbers."
    )
    body += page.picture(pictures["labels.png"], alt, "F1 of each label")
    return [("labels", "Labels", body)]


def _confusion(before: Evaluation | None, after: Evaluation, pictures: Mapping[str, bytes]) -> list[Section]:
    pairs = _confused(after)
    caption = f"The most frequent confusions, {after.name}"
    header = [Cell("true label"), Cell("taken for"), Cell("rows", "number"), Cell("of the label", "number")]
    rows = [
        [Cell(true), Cell(taken), Cell(f"{count:,}", "number"), Cell(f"{share:.1%}", "number")]
        for true, taken, count, share in pairs
    ]
    body = page.table(caption, header, rows, tall=True) if rows else page.paragraph("No label was confused.")
    body += _matrix(after, pictures["confusion.png"])
    if "confusion_before.png" in pictures:
        assert before is not None
        body += page.folded("Before", _matrix(before, pictures["confusion_before.png"]), opened=False)
    return [("confusion", "Confusion matrix", body)]


def _matrix(evaluation: Evaluation, png: bytes) -> str:
    pairs = _confused(evaluation)
    alt = f"Confusion matrix of {len(evaluation.labels)} labels, {evaluation.metrics['accuracy']:.1%} of the rows on the diagonal."
    if pairs:
        alt += f" Most often, {pairs[0][0]} is taken for {pairs[0][1]}: {pairs[0][2]} rows."
    return page.picture(
        png, alt, f"Confusion matrix, {evaluation.name}: true labels in rows, predicted in columns"
    )


def _confused(evaluation: Evaluation) -> list[tuple[str, str, int, float]]:
    """(true label, predicted label, rows, share of the true label's rows) of the most frequent errors."""
    matrix = np.array(evaluation.confusion)
    support = matrix.sum(axis=1)
    errors = matrix.copy()
    np.fill_diagonal(errors, 0)
    order = np.argsort(-errors, axis=None, kind="stable")[:_MOST_CONFUSED]
    places = (divmod(int(at), len(matrix)) for at in order)
    labels = evaluation.labels
    return [
        (labels[true], labels[taken], int(errors[true, taken]), float(errors[true, taken] / support[true]))
        for true, taken in places
        if errors[true, taken]
    ]


def _calibration(
    before: Evaluation | None, after: Evaluation, pictures: Mapping[str, bytes]
) -> list[Section]:
    header = [
        Cell("probability"),
        *(Cell(name, "number") for name in ("rows", "mean probability", "accuracy")),
    ]
    rows = [
        [
            Cell(f"{one.low:.2f} to {one.high:.2f}"),
            Cell(f"{one.count:,}", "number"),
            _number(one.confidence),
            _number(one.accuracy),
        ]
        for one in after.calibration
        if one.count
    ]
    error = after.metrics["ece"]
    sure = sum(one.count * (one.confidence - one.accuracy) for one in after.calibration)
    alt = (
        f"Accuracy over the probability of the predicted label; expected calibration error {error:.3f}, the model is "
        f"{'more' if sure > 0 else 'less'} sure than right on the whole. The table has the numbers."
    )
    text = "A calibrated model is right in 80 of 100 rows that it gives a probability of 0.8. "
    was = None if before is None else before.metrics.get("ece")
    text += f"Expected calibration error: {error:.4f}" + ("." if was is None else f", before {was:.4f}.")
    body = page.paragraph(text)
    body += page.picture(
        pictures["calibration.png"], alt, "Calibration, and how many predictions have a probability"
    )
    body += page.folded(
        "The numbers",
        page.table(f"Calibration in bins of the probability, {after.name}", header, rows),
        opened=False,
    )
    return [("calibration", "Calibration", body)]


def _points(before: Evaluation | None, after: Evaluation, pictures: Mapping[str, bytes]) -> list[Section]:
    figures = ", ".join(
        f"{name} {after.metrics[name]:.3f}" for name in _CORRELATIONS if name in after.metrics
    )
    alt = f"Predicted over true numbers of {len(after.points)} rows" + (f"; {figures}." if figures else ".")
    text = alt + ("" if before is None else f" {before.name} is shown beside.")
    return [("points", "Predicted and true numbers", page.picture(pictures["points.png"], alt, text))]


def _curves(pictures: Mapping[str, bytes]) -> list[Section]:
    alt = "Figures of the training over its steps."
    return [("curves", "Learning curves", page.picture(pictures["learning_curves.png"], alt, alt))]


def _changes(changes: Changes, rows: int, *, compare: bool) -> list[Section]:
    if not compare:
        heading = "Largest errors" if changes.numbers else "Wrong rows"
        text = f"{changes.count_worse:,} of {rows:,} rows are wrong; the most confident come first."
        if changes.graded:
            text = f"{changes.count_worse:,} of {rows:,} rows are not all right; those with the lowest score come first."
        if changes.numbers:
            text = f"The {len(changes.worse)} of {rows:,} rows whose prediction is farthest from the truth."
        body = page.paragraph(text) + _predictions(heading, changes.worse, changes, compare=False)
        return [("rows", heading, body)]
    text = f"Of {rows:,} rows, {changes.count_better:,} got better and {changes.count_worse:,} worse. "
    what = "the error" if changes.numbers else "the score" if changes.graded else "confidence"
    text += f"The largest changes of {what} come first."
    body = page.paragraph(text)
    for name, found in (("better", changes.better), ("worse", changes.worse)):
        shown = _predictions(f"Rows that got {name}", found, changes, compare=True)
        body += page.folded(f"Rows that got {name}: {len(found)} shown", shown, opened=True)
    return [("rows", "Rows that changed", body)]


def _predictions(caption: str, found: Sequence[Prediction], changes: Changes, *, compare: bool) -> str:
    if not found:
        return page.paragraph("None.")
    sure = any(one.after_probability is not None or one.before_probability is not None for one in found)
    names = ["before", "after"] if compare else ["predicted"]
    header = [Cell("text", "text"), Cell("true label")]
    for name in names:
        header += [Cell(name)] + (
            [Cell("score" if changes.graded else "probability", "number")] if sure else []
        )
    rows = []
    for one in found:
        row = [Cell(one.text, "text"), Cell(one.label)]
        pairs = [(one.before or "", one.before_probability)] if compare else []
        for label, probability in [*pairs, (one.after, one.after_probability)]:
            row += [Cell(label)] + ([_number(probability, 2)] if sure else [])
        rows.append(row)
    return page.table(caption, header, rows, tall=True)


def _verdict(name: str, was: float | None, now: float) -> Cell:
    word = verdict(name, was, now)
    return Cell(word, word if word in ("better", "worse") else "name")


def _number(value: float | None, digits: int = 4) -> Cell:
    shown = "" if value is None else f"{value:.{digits}f}" if math.isfinite(value) else "not finite"
    return Cell(shown, "number")
