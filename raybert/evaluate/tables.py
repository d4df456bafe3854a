"""Tables for the terminal: labels in scikit-learn's layout, before and after, many runs."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from raybert.evaluate.result import Evaluation

LOWER_IS_BETTER = frozenset({"loss", "mse", "ece", "hamming_loss", "perplexity"})
"""Figures that a better model has less of."""
_AVERAGES = ("micro", "macro", "weighted", "samples")


@dataclass(frozen=True)
class Run:
    """A recipe and what it reached: a value of the metric, and the seconds of training, for each seed."""

    name: str
    parameters: int
    seconds: Sequence[float]
    values: Sequence[float]


def average_rows(evaluation: Evaluation) -> list[tuple[str, float | None, float | None, float, int]]:
    """(heading, precision, recall, F1, support) below a table of labels; of the accuracy only the one number."""
    figures = evaluation.metrics
    support = sum(score.support for score in evaluation.per_label)
    rows: list[tuple[str, float | None, float | None, float, int]] = []
    if evaluation.confusion is not None:
        rows.append(("accuracy", None, None, figures["accuracy"], sum(map(sum, evaluation.confusion))))
    for average in _AVERAGES:
        # with one label a row, micro averages over all labels are the accuracy
        patterns = ["{}_micro"] if average == "micro" and not rows else []
        patterns += ["{}"] if average == "micro" else [f"{{}}_{average}", f"{average}_{{}}"]
        for pattern in patterns:
            names = [pattern.format(figure) for figure in ("precision", "recall", "f1")]
            if all(name in figures for name in names):
                rows.append((f"{average} avg", *(figures[name] for name in names), support))
    return rows


def label_table(evaluation: Evaluation, digits: int = 2) -> str:
    """Precision, recall, F1 and support: the text of scikit-learn's `classification_report`."""
    names = [printable(score.label) for score in evaluation.per_label]
    width = max(*(len(name) for name in names), len("weighted avg"), digits)
    lines = [f"{'':>{width}s} " + "".join(f" {h:>9}" for h in ("precision", "recall", "f1-score", "support"))]

    def line(name: str, values: Sequence[float | None], support: int) -> str:
        cells = [" " * 9 if value is None else f"{value:>9.{digits}f}" for value in values]
        return f"{name:>{width}s}  {' '.join(cells)} {support:>9}"

    lines.append("")
    lines += [
        line(name, (score.precision, score.recall, score.f1), score.support)
        for name, score in zip(names, evaluation.per_label, strict=True)
    ]
    lines.append("")
    lines += [line(name, values, support) for name, *values, support in average_rows(evaluation)]
    return "\n".join(lines) + "\n"


def comparison_table(before: Evaluation | None, after: Evaluation, digits: int = 4) -> str:
    """Each figure before and after, with the difference; without `before`, the figures alone."""
    if before is None:
        rows = [[name, _number(value, digits)] for name, value in after.metrics.items()]
        return _aligned(["", after.name], rows)
    rows = []
    for name, now, was in compared(before, after):
        change = "" if was is None else f"{now - was:+.{digits}f}"
        rows.append([name, _number(was, digits), _number(now, digits), change, verdict(name, was, now)])
    return _aligned(["", before.name, after.name, "difference", ""], rows)


def compared(before: Evaluation, after: Evaluation) -> list[tuple[str, float, float | None]]:
    """(name, after, before or None) of every figure of `after`."""
    return [(name, value, before.metrics.get(name)) for name, value in after.metrics.items()]


def verdict(name: str, was: float | None, now: float) -> str:
    """`better`, `worse`, `same`, or nothing where it cannot be told."""
    if was is None or not (math.isfinite(was) and math.isfinite(now)):
        return ""
    if was == now:
        return "same"
    return "better" if (now < was) == (name in LOWER_IS_BETTER) else "worse"


def runs_table(runs: Sequence[Run], metric: str, digits: int = 4) -> str:
    """Name, trainable parameters, seconds and the metric of each run: mean and sample deviation over its seeds."""
    rows = [
        [
            run.name,
            f"{run.parameters:,}",
            _spread(run.seconds, 1),
            _spread(run.values, digits),
            str(len(run.values)),
        ]
        for run in runs
    ]
    return _aligned(["run", "trainable parameters", "seconds", metric, "seeds"], rows)


def printable(text: str) -> str:
    """A text in one line, without what a terminal might obey."""
    return "".join(character if character.isprintable() else " " for character in text)


def _spread(values: Sequence[float], digits: int) -> str:
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return f"{mean:.{digits}f}"
    deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return f"{mean:.{digits}f} ± {deviation:.{digits}f}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _aligned(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The first column to the left, the others to the right."""
    cells = [[printable(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join(
            [row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))]
        )
        for row in cells
    ]
    return "\n".join(line.rstrip() for line in lines) + "\n"
