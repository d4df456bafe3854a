"""Models that classify texts: transformers' own, with its head, on packed batches.

Every family's head looks at the first token of a row alone, or at what the pooler makes of it. So a hook on the encoder
hands on the first tokens, [n, 1, hidden], in place of all tokens, and each head works as it is.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from raybert.config.finetune import ClassificationSettings, RegularizeSettings
from raybert.encoder.attention import to_device
from raybert.tasks.base_model import TaskModel, TaskSums, write_labels
from raybert.train.packed import PackedBatch
from raybert.train.regularizers import Outputs, smoothed_cross_entropy

AUTO = AutoModelForSequenceClassification
_PROBLEMS = {
    "single": "single_label_classification",
    "multi": "multi_label_classification",
    "regression": "regression",
}
_OUTPUTS: dict[str, Outputs] = {"single": "classes", "multi": "labels", "regression": "regression"}


class RegressionSums(NamedTuple):
    """Over one batch, a tensor of shape []: the sum of the squared errors."""

    loss: Tensor


def configure(config: PreTrainedConfig, labels: Sequence[str], settings: ClassificationSettings) -> None:
    """Write the labels and their kind into a model's configuration."""
    write_labels(config, labels)
    config.problem_type = _PROBLEMS[settings.kind]


class Model(TaskModel):
    """A target is a row; its logits are [n, labels]. See `TaskModel`."""

    def __init__(
        self,
        plain: PreTrainedModel,
        settings: ClassificationSettings,
        regularize: RegularizeSettings | None = None,
        *,
        padded: bool = False,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__(plain, settings, regularize, padded=padded, autocast=autocast)
        self._kind, self.outputs = settings.kind, _OUTPUTS[settings.kind]
        if not self.padded:
            plain.base_model.register_forward_hook(_first_tokens, with_kwargs=True)

    @staticmethod
    def sums_type(settings: ClassificationSettings) -> type:
        """Of a regression the loss alone; else a row is right when all of its labels are."""
        return RegressionSums if settings.kind == "regression" else TaskSums

    def _logits(self, batch: PackedBatch, delta: Tensor | None) -> Tensor:
        return self._run(batch, delta).logits

    def losses(self, logits: Tensor, batch: PackedBatch, smoothing: float) -> Tensor:
        """[n]; for many labels the mean over them, as transformers has it."""
        labels = batch.targets["labels"]
        if self._kind == "single":
            return smoothed_cross_entropy(logits, labels, smoothing)
        if self._kind == "regression":
            return (logits[:, 0] - labels).square()
        smooth = labels * (1 - smoothing) + smoothing / 2
        return F.binary_cross_entropy_with_logits(logits, smooth, reduction="none").mean(1)

    def sums(self, loss: Tensor, logits: Tensor, batch: PackedBatch, asked: Tensor) -> Any:
        """As `sums_type` says."""
        if self._kind == "regression":
            return RegressionSums(loss)
        return super().sums(loss, logits, batch, asked)

    def right(self, logits: Tensor, batch: PackedBatch) -> Tensor:
        """bool [n]: all labels."""
        if self._kind == "single":
            return super().right(logits, batch)
        return ((logits > 0) == (batch.targets["labels"] > 0)).all(1)


def _first_tokens(module: Any, given: Any, named: dict[str, Any], output: Any) -> Any:
    """The encoder's output as of rows that have one token each: [n, 1, hidden], and what its pooler makes of them."""
    rows = named["packed"]
    starts = to_device(rows.offsets[:-1], rows.device)
    first = output.last_hidden_state[0, starts][:, None]
    output.last_hidden_state = first
    if getattr(output, "pooler_output", None) is not None:
        output.pooler_output = module.pooler(first)
    return output
