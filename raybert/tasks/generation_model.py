"""Encoder-decoders made of BERT weights, on packed batches: their loss over the tokens of the targets."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import EncoderDecoderModel

from raybert.config.finetune import RegularizeSettings
from raybert.config.tasks import GenerationSettings
from raybert.encoder.attention import Rows
from raybert.tasks.encoder_decoder_model import make_plain, untied
from raybert.tasks.examples import IGNORED, TARGET_IDS
from raybert.tasks.writing_model import Predictor, write
from raybert.train.cross_entropy import cross_entropy
from raybert.train.dropout import quicken_dropout
from raybert.train.forward import OFFSET_POSITIONS, Forward
from raybert.train.packed import Micro, PackedBatch
from raybert.train.packed_decoder import PACKED_DECODER, Pairs
from raybert.train.regularizers import divergence

__all__ = ["AUTO", "Model", "Predictor", "make_plain", "untied", "write"]

AUTO = EncoderDecoderModel


class GenerationSums(NamedTuple):
    """Over one batch, tensors of shape []: the loss, and the target's tokens that are predicted right."""

    loss: Tensor
    token_accuracy: Tensor


@dataclass(frozen=True)
class _Targets:
    """The targets of a batch one after the other, m tokens in all.

    Attributes:
        before: int64 [1, m], the token before each: shifted right by the one that a target begins with.
        labels: int64 [m], IGNORED where a row has no target.
        places: int64 [1, m], from 0 in every target.
        number: int64 [m], the row of every token.
        pairs: where they and their sources lie.
    """

    before: Tensor
    labels: Tensor
    places: Tensor
    number: Tensor
    pairs: Pairs

    @classmethod
    def of(cls, batch: PackedBatch, start: int) -> "_Targets":
        ids = batch.targets[TARGET_IDS]
        inside = ids != IGNORED
        inside[:, 0] = True  # a row without a target has a place too: every rank computes all of the model
        before = torch.cat([torch.full_like(ids[:, :1], start), ids[:, :-1]], 1)
        number, places = inside.nonzero(as_tuple=True)
        rows = Rows(inside.sum(1).cpu().numpy(), batch.rows.device)
        return cls(before[inside][None], ids[inside], places[None], number, Pairs(rows, batch.rows))


class Model(nn.Module):
    """`model(batch)` are the sums of a batch; `model.plain` is the transformers model, for saving.

    Args:
        plain: as `make_plain` makes it. settings: of the task.
        regularize: label smoothing over the vocabulary, and R-Drop, whose two passes are of both halves; in training.
        padded: compute padded batches in the encoder; `padded` says in the end how it is done. The decoder's never are.
        autocast: compute in this 16-bit type, the weights stay float32.
    """

    def __init__(
        self,
        plain: Any,
        settings: GenerationSettings,
        regularize: RegularizeSettings | None = None,
        *,
        padded: bool = False,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        del settings
        self.plain, self.autocast = plain, autocast
        self._regularize = regularize or RegularizeSettings()
        _one_configuration(plain.encoder)
        _one_configuration(plain.decoder)
        self._run = Forward(plain.encoder, padded=padded)
        self.padded = self._run.padded
        quicken_dropout(plain.decoder)
        plain.decoder.set_attn_implementation(PACKED_DECODER)
        config = plain.decoder.config
        self._offset = config.pad_token_id + 1 if config.model_type in OFFSET_POSITIONS else 0

    @staticmethod
    def sums_type(settings: GenerationSettings) -> type:
        """What `forward` gives."""
        del settings
        return GenerationSums

    @staticmethod
    def targets(micro: Micro) -> int:
        """Tokens of the targets."""
        return int((micro.per_sequence[TARGET_IDS] != IGNORED).sum())

    def forward(self, batch: PackedBatch, delta: Tensor | None = None, *, outputs: bool = False) -> Any:
        """The sums of one batch; with `outputs` also {"nll", "right", "tokens"}, each [n], as `Scores` takes them.

        `delta` is added to the word embeddings of the sources (see `Forward`).
        """
        targets = _Targets.of(batch, self.plain.config.decoder_start_token_id)
        logits, labels = self._logits(batch, targets, delta), targets.labels
        smoothing = self._regularize.label_smoothing if self.training else 0.0
        loss, _, right = cross_entropy(logits, labels, smoothing)
        if self.training and self._regularize.r_drop:
            other = self._logits(batch, targets, delta)
            loss = (loss + cross_entropy(other, labels, smoothing)[0]) / 2
            apart = torch.where(labels != IGNORED, divergence(logits, other), 0).sum()
            loss = loss + self._regularize.r_drop * apart
        sums = GenerationSums(loss, right)
        return (sums, _by_row(logits, targets, len(batch.starts))) if outputs else sums

    def logits(self, batch: PackedBatch, delta: Tensor | None = None) -> Tensor:
        """float32 [m, vocabulary]: of every token of the targets, in the order of the batch."""
        targets = _Targets.of(batch, self.plain.config.decoder_start_token_id)
        return self._logits(batch, targets, delta).float()

    def flops(self, micros: Iterable[Micro]) -> float:
        """As `raybert.train.progress.flops`; the vocabulary's matrix is for the targets' tokens."""
        halves = self.plain.encoder, self.plain.decoder
        bodies = [_body_size(half) for half in halves]
        words = halves[1].get_input_embeddings()
        total = 0.0
        for micro in micros:
            sources = np.asarray(micro.lengths, np.float64)
            written = (micro.per_sequence[TARGET_IDS] != IGNORED).sum(1).astype(np.float64)
            seen = sources**2, written * (written + sources)
            total += 6 * (words.num_embeddings * words.embedding_dim) * written.sum()
            for half, body, tokens, squares in zip(halves, bodies, (sources, written), seen, strict=True):
                shape = half.config
                total += (
                    6 * body * tokens.sum() + 12 * shape.num_hidden_layers * shape.hidden_size * squares.sum()
                )
        return total

    def _logits(self, batch: PackedBatch, targets: _Targets, delta: Tensor | None) -> Tensor:
        """[m, vocabulary], in the type of computing."""
        with torch.autocast(batch.ids.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            hidden = self._run.hidden(batch, delta)[None]
            if hasattr(self.plain, "enc_to_dec_proj"):
                hidden = self.plain.enc_to_dec_proj(hidden)
            found = self.plain.decoder(
                input_ids=targets.before,
                position_ids=targets.places + self._offset,
                encoder_hidden_states=hidden,
                use_cache=False,
                pairs=targets.pairs,
            )
            return found.logits[0]


def _one_configuration(half: Any) -> None:
    """Let the layers ask the configuration of their half for the kind of attention: EncoderDecoderModel exchanges that."""
    for module in half.modules():
        if hasattr(module, "config"):
            module.config = half.config


def _by_row(logits: Tensor, targets: _Targets, rows: int) -> dict[str, Tensor]:
    """float32 [n] each: the sum of -log p of a row's tokens, those predicted right, and how many there are."""
    labels = targets.labels
    asked = labels != IGNORED
    nll = F.cross_entropy(logits.float(), labels, ignore_index=IGNORED, reduction="none")
    values = {"nll": nll, "right": (logits.argmax(1) == labels) & asked, "tokens": asked}
    zeros = torch.zeros(rows, device=logits.device)
    return {name: zeros.index_add(0, targets.number, value.float()) for name, value in values.items()}


def _body_size(half: Any) -> int:
    """Weights that multiply tokens, the vocabulary's apart."""
    words = half.get_input_embeddings()
    sizes = (getattr(p, "ds_numel", p.numel()) for p in half.parameters() if p.ndim > 1)
    return sum(sizes) - words.num_embeddings * words.embedding_dim
