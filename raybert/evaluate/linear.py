"""A linear classifier or regression on vectors: fitted with scikit-learn, kept as plain arrays and JSON."""

import io
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from raybert.corpus.store import Store

ARRAYS, FACTS = "probe.npz", "probe.json"
_FOLDS = 5
_ITERATIONS = 1000
_BLOCK = 16384  # rows


@dataclass(frozen=True)
class Linear:
    """Scores of a vector x are `weights @ x + bias`.

    Attributes:
        weights: float32 [labels, dimension]; [1, dimension] for a regression.
        bias: float32 [labels].
        labels: their names, in the order of the scores; None for a regression.
        facts: anything else that JSON can hold.
    """

    weights: np.ndarray
    bias: np.ndarray
    labels: list[str] | None
    facts: dict[str, Any] = field(default_factory=dict)

    def predict(self, vectors: np.ndarray) -> np.ndarray:
        """Numbers int64 [n] of labels, or the values float32 [n] of a regression."""
        scores = self._scores(vectors)
        return scores[:, 0] if self.labels is None else scores.argmax(axis=1)

    def probabilities(self, vectors: np.ndarray) -> np.ndarray:
        """float32 [n, labels]: the softmax of the scores. Not for a regression."""
        assert self.labels is not None, "a regression has no probabilities"
        scores = self._scores(vectors)
        powers = np.exp(scores - scores.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def save(self, store: Store) -> None:
        """Write probe.npz (weights, bias) and probe.json (labels, facts)."""
        buffer = io.BytesIO()
        np.savez(buffer, weights=self.weights, bias=self.bias)
        store.write(ARRAYS, buffer.getvalue())
        store.write(FACTS, (json.dumps({"labels": self.labels, **self.facts}, indent=1) + "\n").encode())

    @classmethod
    def load(cls, store: Store) -> "Linear":
        """The inverse of `save`; reads no pickle. Raises FileNotFoundError, or ValueError for other files."""
        facts = json.loads(store.read(FACTS))
        with np.load(io.BytesIO(store.read(ARRAYS)), allow_pickle=False) as arrays:
            return cls(arrays["weights"], arrays["bias"], facts.pop("labels"), facts)

    def _scores(self, vectors: np.ndarray) -> np.ndarray:
        return vectors @ self.weights.T + self.bias


@dataclass(frozen=True)
class Fit:
    """A fitted model, and what cross-validation found: the score of each strength `c` (none if there was no choice)."""

    model: Linear
    c: float
    scores: dict[float, float]
    converged: bool


def fit(
    vectors: np.ndarray,
    targets: np.ndarray,
    labels: list[str] | None,
    strengths: Sequence[float],
    *,
    standardize: bool,
    seed: int,
) -> Fit:
    """Logistic regression, or ridge regression where `labels` is None.

    Of several strengths c (ascending), the one with the best mean score over the folds is taken, the strongest penalty
    of equal ones; the score is accuracy, or the coefficient of determination. Ridge's alpha is 1 / c.

    Args:
        vectors: float32 [n, dimension]; standardised in place.
        targets: numbers of labels, or values.

    Raises:
        ValueError: too few rows to choose between strengths; the message names the settings of `raybert probe`.
    """
    mean, scale = _standardize(vectors) if standardize else (np.zeros(vectors.shape[1]), 1.0)
    scores = {} if len(strengths) == 1 else _cross_validate(vectors, targets, labels, strengths, seed)
    c = max(strengths, key=lambda one: (scores.get(one, 0.0), -one))
    model, converged = _fit_one(_estimator(labels), vectors, targets, c)
    weights, bias = _both_labels(model)
    weights = weights / scale
    bias = bias - weights @ mean
    linear = Linear(weights.astype(np.float32), bias.astype(np.float32), labels)
    return Fit(linear, c, scores, converged)


def _standardize(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """In place; (mean, deviation) float64 [dimension]. A constant dimension becomes 0."""
    # in blocks, for float64 of all rows would be twice the matrix
    blocks = [vectors[at : at + _BLOCK] for at in range(0, len(vectors), _BLOCK)]
    mean = sum(block.sum(axis=0, dtype=np.float64) for block in blocks) / len(vectors)
    squares = sum(((block - mean) ** 2).sum(axis=0) for block in blocks)
    scale = np.sqrt(squares / len(vectors))
    scale[scale < 1e-12] = 1
    for block in blocks:
        block[...] = (block - mean) / scale
    return mean, scale


def _estimator(labels: list[str] | None) -> Any:
    from sklearn.linear_model import LogisticRegression, Ridge

    # with warm_start, a fit begins where that of the strength before ended
    return Ridge() if labels is None else LogisticRegression(max_iter=_ITERATIONS, warm_start=True)


def _fit_one(model: Any, vectors: np.ndarray, targets: np.ndarray, c: float) -> tuple[Any, bool]:
    """(the model, whether its solver converged)."""
    from sklearn.exceptions import ConvergenceWarning

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ConvergenceWarning)
        model.set_params(**({"C": c} if hasattr(model, "C") else {"alpha": 1 / c})).fit(vectors, targets)
    return model, not any(issubclass(one.category, ConvergenceWarning) for one in caught)


def _cross_validate(
    vectors: np.ndarray,
    targets: np.ndarray,
    labels: list[str] | None,
    strengths: Sequence[float],
    seed: int,
) -> dict[float, float]:
    """c -> mean score over the folds."""
    from sklearn.model_selection import KFold, StratifiedKFold

    most = len(targets) if labels is None else _second_most(targets, labels)
    kind = KFold if labels is None else StratifiedKFold
    folds = kind(n_splits=min(_FOLDS, most), shuffle=True, random_state=seed)
    found = {c: [] for c in strengths}
    with (
        warnings.catch_warnings()
    ):  # a label with fewer rows than folds is missing in some, which is all right
        warnings.filterwarnings("ignore", message="The least populated class")
        parts = list(folds.split(vectors, targets))
    for train, test in parts:
        model, here, there = _estimator(labels), vectors[train], vectors[test]
        for c in strengths:
            model, _ = _fit_one(model, here, targets[train], c)
            found[c].append(model.score(there, targets[test]))
    return {c: float(np.mean(values)) for c, values in found.items()}


def _second_most(targets: np.ndarray, labels: list[str]) -> int:
    """Rows of the second most frequent label: with as many folds, the training part of each has two labels."""
    counts = np.sort(np.bincount(targets, minlength=len(labels)))
    if counts[-2] < 2:
        raise ValueError(
            "choosing probe.c by cross-validation needs two labels with 2 training rows or more: give one number as "
            "probe.c, or more rows"
        )
    return int(counts[-2])


def _both_labels(model: Any) -> tuple[np.ndarray, np.ndarray]:
    """float64 weights [labels, dimension] and bias; two labels have one row of scores in scikit-learn."""
    weights = np.atleast_2d(model.coef_).astype(np.float64)
    bias = np.atleast_1d(model.intercept_).astype(np.float64)
    if len(weights) == 1 and hasattr(model, "classes_"):
        return np.concatenate([0 * weights, weights]), np.concatenate([0 * bias, bias])
    return weights, bias
