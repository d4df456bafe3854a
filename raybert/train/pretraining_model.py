"""The model that is pretrained: a plain transformers model and the sums of its losses over a packed batch."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    BertForPreTraining,
    PreTrainedConfig,
    PreTrainedModel,
)

from raybert.train.cross_entropy import cross_entropy
from raybert.train.forward import Forward
from raybert.train.packed import PackedBatch


class Sums(NamedTuple):
    """Sums over one batch, every one a tensor of shape []; divided by global counts they are losses and accuracies."""

    mlm_sum: Tensor
    mlm_count: Tensor
    mlm_correct: Tensor
    pair_sum: Tensor
    pair_count: Tensor
    pair_correct: Tensor


def _bert_head(model: Any, hidden: Tensor) -> Tensor:
    return model.cls.predictions(hidden)


def _roberta_head(model: Any, hidden: Tensor) -> Tensor:
    return model.lm_head(hidden)


def _electra_head(model: Any, hidden: Tensor) -> Tensor:
    return model.generator_lm_head(model.generator_predictions(hidden))


def _distilbert_head(model: Any, hidden: Tensor) -> Tensor:
    transformed = model.activation(model.vocab_transform(hidden))
    return model.vocab_projector(model.vocab_layer_norm(transformed))


# the MLM head on hidden states [m, hidden] -> logits [m, vocabulary]
_MLM_HEADS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    **dict.fromkeys(("roberta", "xlm-roberta", "camembert"), _roberta_head),
    **{"bert": _bert_head, "electra": _electra_head, "distilbert": _distilbert_head},
}


class PretrainingModel(nn.Module):
    """`model(batch)` are the `Sums` of a batch; `model.plain` is the transformers model, for saving.

    Args:
        plain: made by `build_model`.
        padded: compute padded batches with torch's attention instead of packed ones: slower, for comparison.
        autocast: compute in this 16-bit type, the weights stay float32.
    """

    def __init__(
        self, plain: PreTrainedModel, *, padded: bool = False, autocast: torch.dtype | None = None
    ) -> None:
        super().__init__()
        self.plain, self.autocast = plain, autocast
        kind = plain.config.model_type
        _refuse_unknown(kind)
        self._run = Forward(plain, padded=padded)
        self._head = _MLM_HEADS[kind]

    def forward(self, batch: PackedBatch) -> Sums:
        """The sums of one batch. The MLM head sees predicted tokens only, the NSP head first tokens only."""
        device = batch.ids.device.type
        with torch.autocast(device, dtype=self.autocast, enabled=self.autocast is not None):
            mlm, pairs = self.logits(batch)
        return Sums(*_counted(mlm, batch.targets["labels"]), *_counted(pairs, batch.targets["pair_labels"]))

    def logits(self, batch: PackedBatch) -> tuple[Tensor, Tensor]:
        """[m, vocabulary] at the predicted tokens; [n, 2] at the first tokens, or [n, 0] without an NSP head."""
        hidden = self._run.hidden(batch)
        mlm = self._head(self.plain, hidden[batch.positions])
        if not has_pair_head(self.plain):
            return mlm, hidden.new_empty(len(batch.starts), 0)
        first = self.plain.bert.pooler(hidden[batch.starts][:, None])
        return mlm, self.plain.cls.seq_relationship(first)


def build_model(
    source: str | PreTrainedConfig,
    *,
    pairs: bool = False,
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A float32 model to pretrain: random weights from a config, or those of a checkpoint to go on from.

    With `pairs` BERT gets its next-sentence head (`BertForPreTraining`); weights that a checkpoint lacks are random,
    from torch's global generator. Raises ValueError for a family without packed attention, or pairs without a head.
    """
    fresh = isinstance(source, PreTrainedConfig)
    config = source if fresh else AutoConfig.from_pretrained(source, revision=revision)
    _refuse_unknown(config.model_type)
    if pairs and config.model_type != "bert":
        raise ValueError(
            f"a {config.model_type} model has no head for the sentence pairs in the tokens; "
            "prepare them with prepare.objective=full, or take a BERT"
        )
    if fresh:
        make = BertForPreTraining if pairs else AutoModelForMaskedLM.from_config
        return make(config).float()
    family = BertForPreTraining if pairs else AutoModelForMaskedLM
    return family.from_pretrained(
        source, revision=revision, dtype=torch.float32, trust_remote_code=trust_remote_code
    )


def has_pair_head(model: PreTrainedModel) -> bool:
    """Whether the model classifies pairs of segments."""
    return isinstance(model, BertForPreTraining)


def _counted(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`cross_entropy`; zeros for [n, 0], logits of a head that the model has not."""
    if logits.shape[-1]:
        return cross_entropy(logits, labels)
    zero = logits.sum().float()
    return zero, torch.zeros_like(zero), torch.zeros_like(zero)


def _refuse_unknown(kind: str) -> None:
    if kind not in _MLM_HEADS:
        raise ValueError(
            f"a {kind} model cannot be pretrained; take a model.name of one of {', '.join(sorted(_MLM_HEADS))}"
        )
