"""Streaming metrics: add batches, merge the parts of several workers, read the figures; no logits are kept.

Every metric has `add`, `merge`, `result`, `to_json` and `from_json`. Figures are named as scikit-learn's scorers are
(`f1_macro`), computed with zero_division=0, and the same whatever the batches and workers were (float sums to 1e-12).
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np

from raybert.evaluate.scores import (
    BINS,
    MOST_POINTS,
    CalibrationBin,
    LabelScore,
    Tables,
    averages,
    bin_numbers,
    calibration_bins,
    calibration_error,
    label_scores,
    matthews,
    precision_recall_f1,
)
from raybert.tasks.examples import IGNORED

Counts = tuple[np.ndarray, np.ndarray, np.ndarray]


class _Sums(ABC):
    """A metric whose state is arrays that add up."""

    _arrays: ClassVar[tuple[str, ...]]

    def __init__(self, labels: Sequence[str]) -> None:
        assert len(labels) > 0, "a metric needs labels"
        self.labels = [str(label) for label in labels]

    def merge(self, other: Self) -> None:
        """Add what another worker has counted, over the same labels."""
        assert type(other) is type(self), "another metric"
        assert other.labels == self.labels, "other labels"
        for name in self._arrays:
            getattr(self, name)[...] += getattr(other, name)

    def to_json(self) -> str:
        """The state, which `from_json` reads."""
        return json.dumps(
            {"labels": self.labels, **{name: getattr(self, name).tolist() for name in self._arrays}}
        )

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The metric that wrote `text`."""
        state = json.loads(text)
        metric = cls(state["labels"])
        for name in cls._arrays:
            getattr(metric, name)[...] = state[name]
        return metric

    def per_label(self) -> list[LabelScore]:
        """Precision, recall, F1 and support of each label."""
        return label_scores(self.labels, *self._counts())

    def tables(self) -> Tables:
        """For a report."""
        return Tables(labels=self.labels, per_label=self.per_label())

    @abstractmethod
    def _counts(self) -> Counts:
        """int64 [labels] each: hits, predicted, support."""


class Confusion(_Sums):
    """Single-label classification.

    Attributes:
        matrix: int64 [labels, labels], rows are the true labels, columns the predicted ones.

    `result` has accuracy, mcc, {precision, recall, f1}_{micro, macro, weighted}, and ece where probabilities were
    added. Averages are over all labels, also those that never occur.
    """

    _arrays = ("matrix", "_bins")

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__(labels)
        self.matrix = np.zeros((len(labels), len(labels)), np.int64)
        self._bins = np.zeros((BINS, 3))  # count, sum of the probabilities, how many are right

    def add(self, truth: np.ndarray, predicted: np.ndarray, probability: np.ndarray | None = None) -> None:
        """Add targets of any one shape.

        Args:
            truth: numbers of the true labels; IGNORED is passed over.
            predicted: numbers of the predicted labels.
            probability: of the predicted labels, in [0, 1].

        Raises:
            ValueError: a number that is no label's, or a probability that is none.
        """
        truth, predicted = np.asarray(truth).reshape(-1), np.asarray(predicted).reshape(-1)
        assert truth.shape == predicted.shape, "a prediction for each target"
        kept = truth != IGNORED
        truth, predicted = truth[kept], predicted[kept]
        self._check_labels("true", truth)
        self._check_labels("predicted", predicted)
        np.add.at(self.matrix, (truth, predicted), 1)
        if probability is not None:
            self._add_probability(np.asarray(probability).reshape(-1)[kept], truth == predicted)

    def result(self) -> dict[str, float]:
        """The figures. Raises ValueError if nothing was added."""
        rows = _some(int(self.matrix.sum()))
        figures = {"accuracy": float(np.trace(self.matrix) / rows), **averages(*self._counts())}
        figures["mcc"] = matthews(self.matrix)
        return {**figures, "ece": calibration_error(self._bins)} if self._bins[:, 0].any() else figures

    def calibration(self) -> list[CalibrationBin]:
        """The bins of the calibration; none where no probabilities were added."""
        return calibration_bins(self._bins) if self._bins[:, 0].any() else []

    def tables(self) -> Tables:
        """For a report."""
        return Tables(self.labels, self.matrix.tolist(), self.per_label(), self.calibration())

    def _counts(self) -> Counts:
        return np.diagonal(self.matrix), self.matrix.sum(axis=0), self.matrix.sum(axis=1)

    def _check_labels(self, which: str, numbers: np.ndarray) -> None:
        if len(numbers) and not (numbers.min() >= 0 and numbers.max() < len(self.labels)):
            wrong = numbers[(numbers < 0) | (numbers >= len(self.labels))][0]
            raise ValueError(f"{which} label number {wrong} is not one of the {len(self.labels)} labels")

    def _add_probability(self, probability: np.ndarray, right: np.ndarray) -> None:
        # a softmax in low precision may end a little above 1
        if not ((probability >= 0) & (probability < 1.01)).all():
            raise ValueError("probabilities of predicted labels must lie in [0, 1]")
        number = bin_numbers(np.minimum(probability.astype(np.float64), 1))
        np.add.at(self._bins, number, np.stack([np.ones(len(right)), probability, right], axis=1))


class MultiLabel(_Sums):
    """Any number of labels a row.

    `result` has accuracy (all labels of a row right), hamming_loss, and {precision, recall, f1}_{micro, macro, weighted,
    samples}; samples is the mean over rows.
    """

    _arrays = ("_hits", "_predicted", "_support", "_rows")

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__(labels)
        self._hits, self._predicted, self._support = np.zeros((3, len(labels)), np.int64)
        self._rows = np.zeros(5)  # rows, all right, sums over rows of precision, recall, F1

    def add(self, truth: np.ndarray, predicted: np.ndarray) -> None:
        """Add rows: two arrays [n, labels] of 0 and 1. Raises ValueError for any other value or width."""
        truth, predicted = np.asarray(truth), np.asarray(predicted)
        for name, values in (("true", truth), ("predicted", predicted)):
            if values.ndim != 2 or values.shape[1] != len(self.labels):
                raise ValueError(
                    f"{name} labels must have the shape [rows, {len(self.labels)}], not {values.shape}"
                )
            if not ((values == 0) | (values == 1)).all():
                raise ValueError(f"{name} labels must be 0 or 1")
        truth, predicted = truth.astype(bool), predicted.astype(bool)
        hits = truth & predicted
        self._hits += hits.sum(axis=0)
        self._predicted += predicted.sum(axis=0)
        self._support += truth.sum(axis=0)
        of_rows = precision_recall_f1(hits.sum(axis=1), predicted.sum(axis=1), truth.sum(axis=1))
        right = (truth == predicted).all(axis=1)
        self._rows += [len(truth), right.sum(), *(values.sum() for values in of_rows)]

    def result(self) -> dict[str, float]:
        """The figures. Raises ValueError if nothing was added."""
        rows = _some(int(self._rows[0]))
        wrong = self._predicted.sum() + self._support.sum() - 2 * self._hits.sum()
        right, *samples = (self._rows[1:] / rows).tolist()
        return {
            "accuracy": right,
            "hamming_loss": float(wrong / (rows * len(self.labels))),
            **averages(*self._counts()),
            **dict(zip(("precision_samples", "recall_samples", "f1_samples"), samples, strict=True)),
        }

    def _counts(self) -> Counts:
        return self._hits, self._predicted, self._support


class Spans(_Sums):
    """Found pieces of text, such as entities: a span is right if its borders and its type are.

    `result` has {precision, recall, f1}_{micro, macro, weighted} over the types of spans. F1_micro is the usual figure
    (CoNLL 2003).
    """

    _arrays = ("_hits", "_false", "_missed")

    def __init__(self, labels: Sequence[str]) -> None:
        super().__init__(labels)
        self._hits, self._false, self._missed = np.zeros((3, len(labels)), np.int64)

    def add(self, hits: np.ndarray, false: np.ndarray, missed: np.ndarray) -> None:
        """Counts [labels] of spans: true positives, false positives, false negatives."""
        self._hits += hits
        self._false += false
        self._missed += missed

    def result(self) -> dict[str, float]:
        """The figures; all are 0 where there was no span and none was found."""
        return averages(*self._counts())

    def _counts(self) -> Counts:
        return self._hits, self._hits + self._false, self._hits + self._missed


class Regression:
    """Numbers: pearson, spearman (mean ranks for ties) and mse, of two float32 a row.

    The correlation with a constant is not defined; it is given as 0, as that of a model that has learnt nothing.
    """

    def __init__(self) -> None:
        self._parts: list[np.ndarray] = []

    def add(self, truth: np.ndarray, predicted: np.ndarray) -> None:
        """Add n numbers each. Raises ValueError for one that is not finite."""
        part = np.stack([np.asarray(values, np.float32).reshape(-1) for values in (truth, predicted)])
        if not np.isfinite(part).all():
            raise ValueError(
                f"{'predicted' if np.isfinite(part[0]).all() else 'true'} numbers must be finite"
            )
        self._parts.append(part)

    def merge(self, other: "Regression") -> None:
        """Add the rows of another worker."""
        self._parts += other._parts

    def result(self) -> dict[str, float]:
        """The figures, computed in float64. Raises ValueError if nothing was added."""
        truth, predicted = self._rows().astype(np.float64)
        _some(len(truth))
        return {
            "pearson": _correlation(truth, predicted),
            "spearman": _correlation(_ranks(truth), _ranks(predicted)),
            "mse": float(np.mean((truth - predicted) ** 2)),
        }

    def tables(self) -> Tables:
        """For a report: MOST_POINTS rows at equal distances."""
        rows = self._rows()
        some = rows[:, :: max(1, -(-rows.shape[1] // MOST_POINTS))]
        return Tables(points=[(float(true), float(found)) for true, found in some.T])

    def to_json(self) -> str:
        """The state, which `from_json` reads."""
        truth, predicted = self._rows().tolist()
        return json.dumps({"truth": truth, "predicted": predicted})

    @classmethod
    def from_json(cls, text: str) -> "Regression":
        """The metric that wrote `text`."""
        metric = cls()
        metric.add(**json.loads(text))
        return metric

    def _rows(self) -> np.ndarray:
        self._parts = [np.concatenate([np.zeros((2, 0), np.float32), *self._parts], axis=1)]
        return self._parts[0]


def _some(rows: int) -> int:
    if not rows:
        raise ValueError("there are no rows to evaluate")
    return rows


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:  # the rounding of a mean would make a spread of them
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    return float(np.clip(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)), -1, 1))


def _ranks(values: np.ndarray) -> np.ndarray:
    """1 for the lowest; equal values share the mean of their ranks."""
    _, number, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[number]
