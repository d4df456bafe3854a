"""Models that tag tokens: transformers' own for token classification, on packed batches."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification, PreTrainedConfig, PreTrainedModel

from raybert.config.finetune import RegularizeSettings
from raybert.config.tasks import EntitiesSettings
from raybert.tasks.examples import IGNORED
from raybert.train.forward import Forward
from raybert.train.packed import Micro, PackedBatch
from raybert.train.regularizers import r_drop, smoothed_cross_entropy

AUTO = AutoModelForTokenClassification


class EntitySums(NamedTuple):
    """Over one batch, tensors of shape []: the loss, and the tokens whose tag is right."""

    loss: Tensor
    accuracy: Tensor


def configure(config: PreTrainedConfig, labels: Sequence[str], settings: EntitiesSettings) -> None:
    """Write the tags into a model's configuration."""
    del settings
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.num_labels = len(labels)


class Model(nn.Module):
    """`model(batch)` are the sums of a batch; `model.plain` is the transformers model, for saving.

    Args:
        plain: with a head for token classification.
        settings: of the task.
        regularize: label smoothing and R-Drop.
        padded: compute padded batches; `padded` says in the end how it is done.
        autocast: compute in this 16-bit type, the weights stay float32.
    """

    def __init__(
        self,
        plain: PreTrainedModel,
        settings: EntitiesSettings,
        regularize: RegularizeSettings | None = None,
        *,
        padded: bool = False,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        del settings
        self.plain, self.autocast = plain, autocast
        self._regularize = regularize or RegularizeSettings()
        self._run = Forward(plain, padded=padded)
        self.padded = self._run.padded

    @staticmethod
    def sums_type(settings: EntitiesSettings) -> type:
        """What `forward` gives."""
        del settings
        return EntitySums

    @staticmethod
    def targets(micro: Micro) -> int:
        """Tokens of a batch that have a tag."""
        return int((micro.per_token["labels"] != IGNORED).sum())

    def forward(self, batch: PackedBatch, delta: Tensor | None = None, *, outputs: bool = False) -> Any:
        """The sums of one batch, over its tokens; with `outputs` also its logits, {"logits": [tokens, tags]}.

        `delta` is added to the word embeddings (see `Forward`). In training R-Drop takes two passes, the second beside.
        """
        labels, smoothing = batch.targets["labels"], self._regularize.label_smoothing
        logits = self.logits(batch, delta)
        losses = smoothed_cross_entropy(logits, labels, smoothing)
        if self.training and self._regularize.r_drop:
            other = self.logits(batch, delta)
            pair = losses, smoothed_cross_entropy(other, labels, smoothing)
            losses = r_drop(pair, (logits, other), self._regularize.r_drop)
        loss = torch.where(labels != IGNORED, losses, 0).sum()
        sums = EntitySums(loss, (logits.argmax(1) == labels).sum().float())
        return (sums, {"logits": logits}) if outputs else sums

    def logits(self, batch: PackedBatch, delta: Tensor | None = None) -> Tensor:
        """float32 [tokens, tags]."""
        with torch.autocast(batch.ids.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            return self._run.tokens(self._run(batch, delta).logits, batch).float()
