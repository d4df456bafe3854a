"""What the models of all tasks have in common: a transformers model on packed batches, its losses, R-Drop, its sums."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from raybert.config.finetune import RegularizeSettings
from raybert.tasks.examples import IGNORED
from raybert.train.forward import Forward
from raybert.train.packed import Micro, PackedBatch
from raybert.train.regularizers import Outputs, divergence


class TaskSums(NamedTuple):
    """Over one batch, tensors of shape []: the loss, and the targets that are predicted right."""

    loss: Tensor
    accuracy: Tensor


def write_labels(config: PreTrainedConfig, labels: Sequence[str], settings: Any = None) -> None:
    """Write the labels into a model's configuration: `configure` of a task that writes nothing else."""
    del settings
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.num_labels = len(labels)


class TaskModel(nn.Module, ABC):
    """`model(batch)` are the sums of a batch; `model.plain` is the transformers model, for saving.

    A target is a row of logits: of a sequence, or of a token. In training losses are smoothed and R-Drop takes a second
    pass; in evaluation they are those of the task alone.

    Args:
        plain: with the head of the task.
        settings: of the task.
        regularize: label smoothing and R-Drop.
        padded: compute padded batches; `padded` says in the end how it is done.
        autocast: compute in this 16-bit type, the weights stay float32.
    """

    outputs: Outputs = "classes"

    def __init__(
        self,
        plain: PreTrainedModel,
        settings: Any,
        regularize: RegularizeSettings | None = None,
        *,
        padded: bool = False,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.plain, self.autocast = plain, autocast
        self._settings, self._regularize = settings, regularize or RegularizeSettings()
        self._run = Forward(plain, padded=padded)
        self.padded = self._run.padded

    @staticmethod
    def sums_type(settings: Any) -> type:
        """What `forward` gives."""
        del settings
        return TaskSums

    @staticmethod
    def targets(micro: Micro) -> int:
        """How many targets a batch has: the sequences that are asked of."""
        labels = micro.per_sequence["labels"]
        return int((labels.reshape(len(labels), -1)[:, 0] != IGNORED).sum())

    def forward(self, batch: PackedBatch, delta: Tensor | None = None, *, outputs: bool = False) -> Any:
        """The sums of one batch; with `outputs` also {"logits": ...}.

        `delta` is added to the word embeddings (see `Forward`), in both passes of R-Drop.
        """
        logits = self.logits(batch, delta)
        smoothing = self._regularize.label_smoothing if self.training else 0.0
        losses = self.losses(logits, batch, smoothing)
        if self.training and self._regularize.r_drop:
            other = self.logits(batch, delta)
            losses = (losses + self.losses(other, batch, smoothing)) / 2
            losses = losses + self._regularize.r_drop * self.divergence(logits, other, batch)
        asked = self.asked(batch)
        weight = batch.targets.get("weight")
        losses = torch.where(asked, losses if weight is None else losses * weight, 0)
        sums = self.sums(losses.sum(), logits, batch, asked)
        return (sums, {"logits": logits}) if outputs else sums

    def logits(self, batch: PackedBatch, delta: Tensor | None = None) -> Tensor:
        """float32, a row a sequence or a token."""
        with torch.autocast(batch.ids.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            return self._logits(batch, delta).float()

    @abstractmethod
    def _logits(self, batch: PackedBatch, delta: Tensor | None) -> Tensor:
        """See `logits`, in the type of computing."""

    @abstractmethod
    def losses(self, logits: Tensor, batch: PackedBatch, smoothing: float) -> Tensor:
        """[m], of every target, with label smoothing; those that are not asked of hold anything finite."""

    def divergence(self, logits: Tensor, other: Tensor, batch: PackedBatch) -> Tensor:
        """[m], of two passes (see `raybert.train.regularizers.divergence`)."""
        del batch
        return divergence(logits, other, self.outputs)

    def smoothness(self, clean: Tensor, moved: Tensor, batch: PackedBatch) -> Tensor:
        """[m], SMART's divergence (Jiang et al. 2020): of numbers that of R-Drop, else twice that, KL both ways. 0 where
        nothing is asked."""
        times = 1 if self.outputs == "regression" else 2
        return torch.where(self.asked(batch), times * self.divergence(clean, moved, batch), 0)

    def asked(self, batch: PackedBatch) -> Tensor:
        """bool [m]: the targets that count."""
        labels = batch.targets["labels"]
        return labels.reshape(len(labels), -1)[:, 0] != IGNORED

    def sums(self, loss: Tensor, logits: Tensor, batch: PackedBatch, asked: Tensor) -> Any:
        """As `sums_type` says."""
        return TaskSums(loss, (self.right(logits, batch) & asked).sum().float())

    def right(self, logits: Tensor, batch: PackedBatch) -> Tensor:
        """bool [m]."""
        return logits.argmax(1) == batch.targets["labels"]
