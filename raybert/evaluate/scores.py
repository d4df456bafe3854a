"""Precision, recall and F1 from counts, averaged as scikit-learn does; calibration from confidences."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

MOST_POINTS = 2000
"""Rows that a scatter plot shows."""
BINS = 15
"""Bins of the calibration, of equal width (Guo et al. 2017)."""


@dataclass(frozen=True)
class LabelScore:
    """A line of the table of labels. `support` is how many targets have the label."""

    label: str
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True)
class CalibrationBin:
    """Predictions whose probability lies in (low, high]: how many, their mean probability, the share that is right."""

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Tables:
    """What a metric knows beside its figures.

    Attributes:
        labels: of the confusion matrix, else of the table.
        confusion: counts [true label][predicted label], or None.
        per_label: the table of labels.
        calibration: the bins of the probability of the predicted label.
        points: (true, predicted) numbers of some rows.
    """

    labels: list[str] = field(default_factory=list)
    confusion: list[list[int]] | None = None
    per_label: list[LabelScore] = field(default_factory=list)
    calibration: list[CalibrationBin] = field(default_factory=list)
    points: list[tuple[float, float]] = field(default_factory=list)


def divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """float64 quotients; 0 where the denominator is 0 (scikit-learn's zero_division=0)."""
    return numerator / np.where(denominator == 0, 1, denominator)


def precision_recall_f1(
    hits: np.ndarray, predicted: np.ndarray, support: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """hits / predicted, hits / support and 2 hits / (predicted + support), of counts of any one shape."""
    return divide(hits, predicted), divide(hits, support), divide(2 * hits, predicted + support)


def label_scores(
    labels: Sequence[str], hits: np.ndarray, predicted: np.ndarray, support: np.ndarray
) -> list[LabelScore]:
    """The table of labels, from counts [labels]."""
    columns = (column.tolist() for column in (*precision_recall_f1(hits, predicted, support), support))
    return [LabelScore(*row) for row in zip(labels, *columns, strict=True)]


def averages(hits: np.ndarray, predicted: np.ndarray, support: np.ndarray) -> dict[str, float]:
    """`precision_micro` ... `f1_weighted`, from counts [labels].

    Micro adds the counts of all labels up first; macro is the mean over all labels, also those that never occur;
    weighted is the mean weighted by support.
    """
    of_labels = precision_recall_f1(hits, predicted, support)
    of_sums = precision_recall_f1(hits.sum(), predicted.sum(), support.sum())
    out = {}
    for name, values, micro in zip(("precision", "recall", "f1"), of_labels, of_sums, strict=True):
        out[f"{name}_micro"] = float(micro)
        out[f"{name}_macro"] = float(values.mean())
        out[f"{name}_weighted"] = float(divide((values * support).sum(), support.sum()))
    return out


def matthews(matrix: np.ndarray) -> float:
    """Matthews' correlation of a confusion matrix [labels, labels] (Gorodkin 2004); 0 where it is not defined."""
    # sums of products of counts leave 64 bits at a few billion rows, Python's integers do not
    true, predicted = matrix.sum(axis=1).tolist(), matrix.sum(axis=0).tolist()
    rows = sum(true)
    both = int(np.trace(matrix)) * rows - sum(t * p for t, p in zip(true, predicted, strict=True))
    spread = (rows * rows - sum(p * p for p in predicted)) * (rows * rows - sum(t * t for t in true))
    return both / spread**0.5 if spread else 0.0


def bin_numbers(probability: np.ndarray) -> np.ndarray:
    """The bin of each probability: bin i holds (i / BINS, (i + 1) / BINS], the first one 0 as well."""
    return np.searchsorted(np.linspace(0, 1, BINS + 1)[1:-1], probability)


def calibration_bins(sums: np.ndarray) -> list[CalibrationBin]:
    """All bins, from sums [BINS, 3] of (count, probability, right)."""
    edges = np.linspace(0, 1, BINS + 1).tolist()
    means = divide(sums[:, 1:], sums[:, :1]).tolist()
    return [
        CalibrationBin(low, high, int(count), *mean)
        for low, high, count, mean in zip(edges, edges[1:], sums[:, 0], means, strict=False)
    ]


def calibration_error(sums: np.ndarray) -> float:
    """Expected calibration error: the mean of |accuracy - confidence| of the bins, weighted by their counts."""
    return float(np.abs(sums[:, 2] - sums[:, 1]).sum() / sums[:, 0].sum())
