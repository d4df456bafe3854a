"""What pretraining minimises: masked tokens and, where there are pairs, which segment follows."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from raybert.train.packed import Micro
from raybert.train.pretraining_model import Sums
from raybert.train.step import Counts, Figures, Objective, mean


def _none() -> np.ndarray:
    return np.zeros(0, np.int64)


@dataclass(frozen=True)
class _Empty:
    """One token and nothing to predict."""

    ids: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    lengths: np.ndarray = field(default_factory=lambda: np.ones(1, np.int64))
    types: np.ndarray = field(default_factory=lambda: np.zeros(1, np.int64))
    positions: np.ndarray = field(default_factory=_none)
    per_sequence: Mapping[str, np.ndarray] = field(
        default_factory=lambda: {"pair_labels": np.full(1, -100, np.int64)}
    )
    per_token: Mapping[str, np.ndarray] = field(default_factory=dict)
    per_position: Mapping[str, np.ndarray] = field(default_factory=lambda: {"labels": _none()})
    digest: int = 0


class PretrainingObjective(Objective):
    """Mean cross entropy of the predicted tokens + that of the pairs (Devlin et al. 2019, A.2)."""

    sums = Sums
    empty: Micro = _Empty()

    def targets(self, micro: Micro) -> tuple[int, ...]:
        """(predicted tokens, pairs)."""
        return len(micro.positions), int((micro.per_sequence["pair_labels"] >= 0).sum())

    def loss(self, sums: Sums, counts: Counts) -> Tensor:
        """A batch's share of the global loss."""
        predictions, pairs = counts.targets
        return sums.mlm_sum / max(1, predictions) + sums.pair_sum / max(1, pairs)

    def figures(self, totals: Sums, counts: Counts) -> Figures:
        """Losses, accuracies and the perplexity, exp of the MLM loss."""
        predictions, pairs = counts.targets
        mlm_loss = mean(totals.mlm_sum, predictions)
        values = {
            "mlm_loss": mlm_loss,
            "mlm_accuracy": mean(totals.mlm_correct, predictions),
            "pair_loss": mean(totals.pair_sum, pairs),
            "pair_accuracy": mean(totals.pair_correct, pairs),
            "predictions": predictions,
            "perplexity": float(np.exp(mlm_loss)),
        }
        accuracy = values["pair_accuracy"]
        line = "" if math.isnan(accuracy) else f"mlm {mlm_loss:.4f}  pairs {accuracy:.1%}"
        return Figures(loss=float(self.loss(totals, counts)), tokens=counts.tokens, values=values, line=line)


PRETRAINING = PretrainingObjective()
