"""The official scores of SemEval-2010 task 8."""

import re
from collections.abc import Sequence

import numpy as np

_DIRECTION = re.compile(r"\((?:e1,e2|e2,e1)\)$")


class RelationScores:
    """The official scores of SemEval-2010 task 8 (semeval2010_task8_scorer-v1.2.pl, part iii): (9+1)-way, direction
    taken into account, without `other`. Streaming: a confusion matrix.

    The relations are the labels without (e1,e2) or (e2,e1). A row is right where relation and direction are; precision
    divides by the rows predicted as the relation in either direction, recall by those that have it; macro scores are
    means over the relations that occur in the truth. For labels without direction these are the usual scores.

    `result()`: `macro_f1` (the official score), `macro_precision macro_recall`, `precision recall f1` (micro),
    `accuracy` (of all labels, `other` included) and `<relation>_precision`, ..., `<relation>_support`.
    """

    def __init__(self, labels: Sequence[str], *, other: str | None = "Other"):
        self.labels = list(labels)
        self.counts = np.zeros((len(labels), len(labels)), np.int64)
        relations = [_DIRECTION.sub("", label) for label in labels]
        self.relations = sorted({r for r, label in zip(relations, labels, strict=True) if label != other})
        numbers = {name: number for number, name in enumerate(self.relations)}
        self._of = np.array(
            [numbers[r] if x != other else len(numbers) for r, x in zip(relations, labels, strict=True)]
        )

    def add(self, true: np.ndarray, predicted: np.ndarray) -> None:
        """Numbers of labels, one a row."""
        np.add.at(self.counts, (true, predicted), 1)

    def merge(self, other: "RelationScores") -> None:
        """Add the counts of another worker."""
        assert self.labels == other.labels, "scores of different labels"
        self.counts += other.counts

    def result(self) -> dict[str, float]:
        """All scores by name; those of the class's docstring."""
        n = len(self.relations)
        right, predicted, true = (
            np.bincount(self._of, counts, n + 1)[:n]
            for counts in (self.counts.diagonal(), self.counts.sum(0), self.counts.sum(1))
        )
        precision, recall = right / np.maximum(predicted, 1), right / np.maximum(true, 1)
        f1 = 2 * right / np.maximum(predicted + true, 1)
        occurs = true > 0
        scores = {
            f"macro_{name}": float(values[occurs].mean()) if occurs.any() else 0.0
            for name, values in (("f1", f1), ("precision", precision), ("recall", recall))
        }
        scores |= {
            "precision": float(right.sum() / max(predicted.sum(), 1)),
            "recall": float(right.sum() / max(true.sum(), 1)),
            "f1": float(2 * right.sum() / max(predicted.sum() + true.sum(), 1)),
            "accuracy": float(self.counts.trace() / max(self.counts.sum(), 1)),
        }
        for number, name in enumerate(self.relations):
            scores |= {f"{name}_precision": float(precision[number]), f"{name}_recall": float(recall[number])}
            scores |= {f"{name}_f1": float(f1[number]), f"{name}_support": float(true[number])}
        return scores
