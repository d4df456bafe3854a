"""Models that tag tokens: transformers' own for token classification, on packed batches."""

from torch import Tensor
from transformers import AutoModelForTokenClassification

from raybert.tasks.base_model import TaskModel, write_labels
from raybert.tasks.examples import IGNORED
from raybert.train.packed import Micro, PackedBatch
from raybert.train.regularizers import smoothed_cross_entropy

AUTO = AutoModelForTokenClassification
configure = write_labels


class Model(TaskModel):
    """A target is a token that has a tag; logits are [tokens, tags]. See `TaskModel`."""

    @staticmethod
    def targets(micro: Micro) -> int:
        """Tokens of a batch that have a tag."""
        return int((micro.per_token["labels"] != IGNORED).sum())

    def _logits(self, batch: PackedBatch, delta: Tensor | None) -> Tensor:
        return self._run.tokens(self._run(batch, delta).logits, batch)

    def losses(self, logits: Tensor, batch: PackedBatch, smoothing: float) -> Tensor:
        """[tokens]."""
        return smoothed_cross_entropy(logits, batch.targets["labels"], smoothing)
