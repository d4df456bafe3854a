"""The official scores of SemEval-2010 task 8."""

import re
from collections.abc import Sequence

import numpy as np

from raybert.evaluate.scores import LabelScore, label_scores, precision_recall_f1

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

    def per_label(self) -> list[LabelScore]:
        """Precision, recall, F1 and support of every relation."""
        return label_scores(self.relations, *self._counts())

    def result(self) -> dict[str, float]:
        """All scores by name; those of the class's docstring."""
        right, predicted, true = self._counts()
        each = self.per_label()
        known = [score for score in each if score.support]
        scores = {
            f"macro_{name}": float(np.mean([getattr(score, name) for score in known])) if known else 0.0
            for name in ("f1", "precision", "recall")
        }
        micro = precision_recall_f1(right.sum(), predicted.sum(), true.sum())
        scores |= dict(zip(("precision", "recall", "f1"), map(float, micro), strict=True))
        scores["accuracy"] = float(self.counts.trace() / max(self.counts.sum(), 1))
        for one in each:
            scores |= {f"{one.label}_precision": one.precision, f"{one.label}_recall": one.recall}
            scores |= {f"{one.label}_f1": one.f1, f"{one.label}_support": float(one.support)}
        return scores

    def _counts(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """int64 [relations] each: rows of which relation and direction are right, predicted as it, and that have it."""
        n = len(self.relations)
        sides = (self.counts.diagonal(), self.counts.sum(0), self.counts.sum(1))
        right, predicted, true = (np.bincount(self._of, side, n + 1)[:n].astype(np.int64) for side in sides)
        return right, predicted, true
