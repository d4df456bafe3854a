"""Models that find answers: transformers' own for extractive question answering, on packed batches."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForQuestionAnswering, PreTrainedConfig, PreTrainedModel

from raybert.config.finetune import RegularizeSettings
from raybert.config.tasks import AnswersSettings
from raybert.tasks.examples import IGNORED
from raybert.train.forward import Forward
from raybert.train.packed import Micro, PackedBatch

AUTO = AutoModelForQuestionAnswering


class AnswerSums(NamedTuple):
    """Over one batch, tensors of shape []: the loss, and the rows whose first and last token are both right."""

    loss: Tensor
    accuracy: Tensor


def configure(config: PreTrainedConfig, labels: Sequence[str], settings: AnswersSettings) -> None:
    """Write the two outputs of a token into a model's configuration."""
    del settings
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.num_labels = len(labels)


class Model(nn.Module):
    """`model(batch)` are the sums of a batch; `model.plain` is the transformers model, for saving.

    The loss of a row is the mean of two cross entropies, of the answer's first and of its last token, each over the
    tokens of the row (Devlin et al. 2019, section 4.2; padding has no part, as in a row by itself).

    Args:
        plain: with a head for question answering.
        settings: of the task.
        regularize: label smoothing, over the tokens of a row, and R-Drop.
        padded: compute padded batches; `padded` says in the end how it is done.
        autocast: compute in this 16-bit type, the weights stay float32.
    """

    def __init__(
        self,
        plain: PreTrainedModel,
        settings: AnswersSettings,
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
    def sums_type(settings: AnswersSettings) -> type:
        """What `forward` gives."""
        del settings
        return AnswerSums

    @staticmethod
    def targets(micro: Micro) -> int:
        """Rows of a batch: all that are asked of."""
        return int((micro.per_sequence["starts"] != IGNORED).sum())

    def forward(self, batch: PackedBatch, delta: Tensor | None = None, *, outputs: bool = False) -> Any:
        """The sums of one batch, over its rows; with `outputs` also its logits, {"logits": [tokens, 2]}: start and end.

        `delta` is added to the word embeddings (see `Forward`). In training R-Drop takes two passes, the second beside.
        """
        places = torch.stack([batch.targets["starts"], batch.targets["ends"]], 1)
        logits = self.logits(batch, delta)
        logs, inside = log_softmax_of_rows(logits, batch.rows.lengths.tolist())
        losses = self._losses(logs, inside, places)
        if self.training and self._regularize.r_drop:
            other, _ = log_softmax_of_rows(self.logits(batch, delta), batch.rows.lengths.tolist())
            # R-Drop (see `raybert.train.regularizers.r_drop`) of both softmaxes; 0 where there is no token
            divergence = ((logs.exp() - other.exp()) * (logs - other)).sum(1).mean(1) / 2
            losses = (losses + self._losses(other, inside, places)) / 2
            losses = losses + self._regularize.r_drop * divergence
        loss = torch.where(places[:, 0] != IGNORED, losses, 0).sum()
        found = logs.masked_fill(~inside, -torch.inf).argmax(1)
        sums = AnswerSums(loss, (found == places).all(1).sum().float())
        return (sums, {"logits": logits}) if outputs else sums

    def logits(self, batch: PackedBatch, delta: Tensor | None = None) -> Tensor:
        """float32 [tokens, 2], start and end."""
        with torch.autocast(batch.ids.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            found = self._run(batch, delta)
            both = torch.stack([found.start_logits, found.end_logits], -1)
            return self._run.tokens(both, batch).float()

    def _losses(self, logs: Tensor, inside: Tensor, places: Tensor) -> Tensor:
        """[n], with (1 - s) of the target on its token and s spread over all tokens of the row."""
        smoothing = self._regularize.label_smoothing
        of_place = -logs.gather(1, places.clamp_min(0)[:, None])[:, 0]
        even = -logs.sum(1) / inside.sum(1)
        return ((1 - smoothing) * of_place + smoothing * even).mean(1)


def log_softmax_of_rows(logits: Tensor, lengths: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The log softmax over the tokens of every row, [n, longest, k], 0 behind a row's end; and bool [n, longest, 1], where
    tokens are.

    Args:
        logits: [tokens, k], rows one after the other.
        lengths: of the rows.
    """
    padded = pad_sequence(list(logits.split(list(lengths))), batch_first=True, padding_value=-torch.inf)
    ends = torch.tensor(lengths, device=logits.device)
    inside = (torch.arange(padded.shape[1], device=logits.device) < ends[:, None])[:, :, None]
    return padded.log_softmax(1).masked_fill(~inside, 0.0), inside
