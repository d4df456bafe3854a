"""Models that choose a response: transformers' own for sequence classification with one output, a cross-encoder.

The candidates of a row are told apart by a softmax over their logits, as the cross-encoders of Humeau et al. 2020 (arXiv
1905.01969, section 4.3) are trained.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from raybert.config.finetune import ClassificationSettings, RegularizeSettings
from raybert.config.pair_tasks import SelectionSettings
from raybert.tasks import classify_model
from raybert.tasks.base_model import TaskSums, write_labels
from raybert.train.packed import Micro, PackedBatch

AUTO = classify_model.AUTO
configure = write_labels


class Model(classify_model.Model):
    """A target is a row: what is computed for its candidates stands at its right response. See `TaskModel`."""

    def __init__(
        self,
        plain: PreTrainedModel,
        settings: SelectionSettings,
        regularize: RegularizeSettings | None = None,
        *,
        padded: bool = False,
        autocast: torch.dtype | None = None,
    ) -> None:
        one = ClassificationSettings(kind="regression")  # packed rows and one output, as here
        super().__init__(plain, one, regularize, padded=padded, autocast=autocast)
        self._settings = settings

    @staticmethod
    def sums_type(settings: Any) -> type:
        """The loss, and rows whose right response comes first."""
        del settings
        return TaskSums

    @staticmethod
    def targets(micro: Micro) -> int:
        """Rows of a batch."""
        return int((micro.per_sequence["labels"] == 1).sum())

    def asked(self, batch: PackedBatch) -> Tensor:
        """bool [n]: the right responses."""
        return batch.targets["labels"] == 1

    def losses(self, logits: Tensor, batch: PackedBatch, smoothing: float) -> Tensor:
        """[n]: at the right response -log of its share; smoothing spreads some of the truth over all candidates."""
        shares, row = log_shares(logits[:, 0], batch.targets["example"])
        mean = _sum_of(shares, row) / _sum_of(torch.ones_like(shares), row)
        return -(1 - smoothing) * shares - smoothing * mean[row]

    def divergence(self, logits: Tensor, other: Tensor, batch: PackedBatch) -> Tensor:
        """[n], R-Drop's (see `raybert.train.regularizers.divergence`) between the shares of the candidates of a row."""
        first, row = log_shares(logits[:, 0], batch.targets["example"])
        second, _ = log_shares(other[:, 0], batch.targets["example"])
        each = (first.exp() - second.exp()) * (first - second) / 2
        return _sum_of(each, row)[row]

    def sums(self, loss: Tensor, logits: Tensor, batch: PackedBatch, asked: Tensor) -> TaskSums:
        """As `sums_type` says."""
        scores, (_, row) = logits[:, 0], log_shares(logits[:, 0], batch.targets["example"])
        wrong = torch.full((int(row.max()) + 1,), float("-inf"), device=scores.device)
        wrong = wrong.scatter_reduce(0, row, scores.detach().masked_fill(asked, float("-inf")), "amax")
        return TaskSums(loss, ((scores > wrong[row]) & asked).sum().float())


def log_shares(scores: Tensor, example: Tensor) -> tuple[Tensor, Tensor]:
    """The log of the softmax of scores [n] among those with the same `example`, and int64 [n], these numbered from 0."""
    row = torch.unique(example, return_inverse=True)[1]
    highest = torch.full((int(row.max()) + 1,), float("-inf"), device=scores.device)
    highest = highest.scatter_reduce(0, row, scores.detach(), "amax")
    shifted = scores - highest[row]
    return shifted - _sum_of(shifted.exp(), row).log()[row], row


def _sum_of(values: Tensor, row: Tensor) -> Tensor:
    return values.new_zeros(int(row.max()) + 1).index_add(0, row, values)
