"""Models that classify texts: transformers' own, with its head, on packed batches.

Every family's head looks at the first token of a row alone, or at what the pooler makes of it. So a hook on the encoder
hands on the first tokens, [n, 1, hidden], in place of all tokens, and each head works as it is.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from raybert.config.finetune import ClassificationSettings, RegularizeSettings
from raybert.encoder.attention import to_device
from raybert.tasks.examples import IGNORED
from raybert.train.forward import Forward
from raybert.train.packed import Micro, PackedBatch
from raybert.train.regularizers import r_drop, smoothed_cross_entropy

AUTO = AutoModelForSequenceClassification
_PROBLEMS = {
    "single": "single_label_classification",
    "multi": "multi_label_classification",
    "regression": "regression",
}
_OUTPUTS = {"single": "classes", "multi": "labels", "regression": "regression"}


class ClassificationSums(NamedTuple):
    """Over one batch, tensors of shape []: the loss, and the rows of which all labels are right."""

    loss: Tensor
    accuracy: Tensor


class RegressionSums(NamedTuple):
    """Over one batch: the loss, the sum of the squared errors."""

    loss: Tensor


def configure(config: PreTrainedConfig, labels: Sequence[str], settings: ClassificationSettings) -> None:
    """Write the labels into a model's configuration."""
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.num_labels = len(labels)
    config.problem_type = _PROBLEMS[settings.kind]


class Model(nn.Module):
    """`model(batch)` are the sums of a batch; `model.plain` is the transformers model, for saving.

    Args:
        plain: with a head for sequence classification.
        settings: of the task.
        regularize: label smoothing and R-Drop.
        padded: compute padded batches; `padded` says in the end how it is done.
        autocast: compute in this 16-bit type, the weights stay float32.
    """

    def __init__(
        self,
        plain: PreTrainedModel,
        settings: ClassificationSettings,
        regularize: RegularizeSettings | None = None,
        *,
        padded: bool = False,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.plain, self.autocast = plain, autocast
        self._kind, self._regularize = settings.kind, regularize or RegularizeSettings()
        self._run = Forward(plain, padded=padded)
        self.padded = self._run.padded
        if not self.padded:
            plain.base_model.register_forward_hook(_first_tokens, with_kwargs=True)

    @staticmethod
    def sums_type(settings: ClassificationSettings) -> type:
        """What `forward` gives."""
        return RegressionSums if settings.kind == "regression" else ClassificationSums

    @staticmethod
    def targets(micro: Micro) -> int:
        """Rows of a batch: all that are asked of."""
        labels = micro.per_sequence["labels"]
        return int((labels.reshape(len(labels), -1)[:, 0] != IGNORED).sum())

    def forward(self, batch: PackedBatch, delta: Tensor | None = None, *, outputs: bool = False) -> Any:
        """The sums of one batch; with `outputs` also its logits, {"logits": [n, labels]}.

        `delta` is added to the word embeddings (see `Forward`). In training R-Drop takes two passes, the second beside.
        """
        logits = self.logits(batch, delta)
        losses = self._losses(logits, batch)
        if self.training and self._regularize.r_drop:
            other = self.logits(batch, delta)
            pair = losses, self._losses(other, batch)
            losses = r_drop(pair, (logits, other), self._regularize.r_drop, _OUTPUTS[self._kind])
        asked = batch.targets["labels"].reshape(len(logits), -1)[:, 0] != IGNORED
        weight = batch.targets.get("weight")
        losses = torch.where(asked, losses if weight is None else losses * weight, 0)
        sums = self._sums(losses.sum(), logits, batch, asked)
        return (sums, {"logits": logits}) if outputs else sums

    def logits(self, batch: PackedBatch, delta: Tensor | None = None) -> Tensor:
        """float32 [n, labels]."""
        with torch.autocast(batch.ids.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            return self._run(batch, delta).logits.float()

    def _losses(self, logits: Tensor, batch: PackedBatch) -> Tensor:
        """[n]; for many labels the mean over them, as transformers has it."""
        labels, smoothing = batch.targets["labels"], self._regularize.label_smoothing
        if self._kind == "single":
            return smoothed_cross_entropy(logits, labels, smoothing)
        if self._kind == "regression":
            return (logits[:, 0] - labels).square()
        smooth = labels * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, smooth, reduction="none").mean(1)

    def _sums(self, loss: Tensor, logits: Tensor, batch: PackedBatch, asked: Tensor) -> Any:
        labels = batch.targets["labels"]
        if self._kind == "regression":
            return RegressionSums(loss)
        right = (
            logits.argmax(1) == labels if self._kind == "single" else ((logits > 0) == (labels > 0)).all(1)
        )
        return ClassificationSums(loss, (right & asked).sum().float())


def _first_tokens(module: Any, given: Any, named: dict[str, Any], output: Any) -> Any:
    """The encoder's output as of rows that have one token each: [n, 1, hidden], and what its pooler makes of them."""
    rows = named["packed"]
    starts = to_device(rows.offsets[:-1], rows.device)
    first = output.last_hidden_state[0, starts][:, None]
    output.last_hidden_state = first
    if getattr(output, "pooler_output", None) is not None:
        output.pooler_output = module.pooler(first)
    return output
