"""Models that find answers: transformers' own for extractive question answering, on packed batches."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForQuestionAnswering

from raybert.tasks.base_model import TaskModel, write_labels
from raybert.tasks.examples import IGNORED
from raybert.train.packed import Micro, PackedBatch

AUTO = AutoModelForQuestionAnswering


configure = write_labels


class Model(TaskModel):
    """A target is a row; logits are [tokens, 2], of the answer's first and last token. See `TaskModel`.

    The loss of a row is the mean of two cross entropies, of the answer's first and of its last token, each over the
    tokens of the row (Devlin et al. 2019, section 4.2; padding has no part, as in a row by itself). Label smoothing is over
    the tokens of a row.
    """

    @staticmethod
    def targets(micro: Micro) -> int:
        """Rows of a batch: all that are asked of."""
        return int((micro.per_sequence["starts"] != IGNORED).sum())

    def _logits(self, batch: PackedBatch, delta: Tensor | None) -> Tensor:
        found = self._run(batch, delta)
        return self._run.tokens(torch.stack([found.start_logits, found.end_logits], -1), batch)

    def losses(self, logits: Tensor, batch: PackedBatch, smoothing: float) -> Tensor:
        """[n], with (1 - s) of the target on its token and s spread over all tokens of the row."""
        logs, inside = log_softmax_of_rows(logits, batch.rows.lengths.tolist())
        of_place = -logs.gather(1, _places(batch).clamp_min(0)[:, None])[:, 0]
        even = -logs.sum(1) / inside.sum(1)
        return ((1 - smoothing) * of_place + smoothing * even).mean(1)

    def divergence(self, logits: Tensor, other: Tensor, batch: PackedBatch) -> Tensor:
        """[n], the mean of both softmaxes' over the tokens of the row."""
        lengths = batch.rows.lengths.tolist()
        (p, _), (q, _) = (log_softmax_of_rows(x, lengths) for x in (logits, other))
        return ((p.exp() - q.exp()) * (p - q)).sum(1).mean(1) / 2  # 0 where there is no token

    def asked(self, batch: PackedBatch) -> Tensor:
        """bool [n]."""
        return batch.targets["starts"] != IGNORED

    def right(self, logits: Tensor, batch: PackedBatch) -> Tensor:
        """bool [n]: both tokens."""
        logs, inside = log_softmax_of_rows(logits, batch.rows.lengths.tolist())
        return (logs.masked_fill(~inside, -torch.inf).argmax(1) == _places(batch)).all(1)


def _places(batch: PackedBatch) -> Tensor:
    """int64 [n, 2]."""
    return torch.stack([batch.targets["starts"], batch.targets["ends"]], 1)


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
