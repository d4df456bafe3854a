"""Models that tell the relation of two marked places: an encoder and a classifier of the two start markers.

"Entity markers, entity start" of Baldini Soares et al. 2019 (arXiv 1906.03158), section 3.2: the last hidden states of
[E1] and [E2] side by side, then a linear layer. transformers has no such head, so the model is the family's own encoder
with one. Its folder is a plain one: `AutoModel.from_pretrained` reads the encoder and passes over `classifier.*`; `AUTO`
reads all of it. `config.json` names the markers, the tokenizer has them.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from raybert.config.finetune import RegularizeSettings
from raybert.config.tasks import RelationsSettings
from raybert.tasks.examples import IGNORED
from raybert.train.forward import Forward
from raybert.train.packed import Micro, PackedBatch
from raybert.train.regularizers import r_drop, smoothed_cross_entropy

_NOTE = " (its encoder; `classifier.*` in the same file is the linear layer on the hidden states of the two start markers)"


class RelationSums(NamedTuple):
    """Over one batch, tensors of shape []: the loss, and the rows whose relation is right."""

    loss: Tensor
    accuracy: Tensor


def configure(config: PreTrainedConfig, labels: Sequence[str], settings: RelationsSettings) -> None:
    """Write the relations and the markers into a model's configuration."""
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: number for number, label in enumerate(labels)}
    config.num_labels = len(labels)
    config.relation_markers = list(settings.markers)


class _WithClassifier:
    """What is added to a family's base class.

    Attributes:
        classifier: from the hidden states of the two start markers, side by side, to logits.
        loaded_by: the class of transformers that reads the folder. note: what a model card says of that.
    """

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        made = body_class(config)
        pooler = "add_pooling_layer" in inspect.signature(made.__init__).parameters
        body = made(config, add_pooling_layer=False) if pooler else made(config)
        setattr(self, self.base_model_prefix, body)
        self.dropout = nn.Dropout(_dropout(config))
        self.classifier = nn.Linear(2 * config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        *,
        first: Tensor,
        second: Tensor,
        **more: Any,
    ) -> Tensor:
        """Logits [n, relations] of padded rows [n, longest]; `first`, `second` [n] are the places of the start markers."""
        hidden = self.base_model(input_ids, attention_mask=attention_mask, **more).last_hidden_state
        rows = torch.arange(len(hidden), device=hidden.device)
        return self.classify(hidden[rows, first], hidden[rows, second])

    def classify(self, first: Tensor, second: Tensor) -> Tensor:
        """Logits [n, relations] from the hidden states [n, hidden] of the two start markers."""
        return self.classifier(self.dropout(torch.cat([first, second], 1)))


def body_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The encoder of a configuration's family. Raises ValueError for one that transformers does not have."""
    if type(config) not in AutoModel._model_mapping:
        raise ValueError(
            f"task.name=relations needs a family that transformers has, not {config.model_type}; take another model.name"
        )
    return AutoModel._model_mapping[type(config)]


def model_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The class of a family's models for relations."""
    body = body_class(config)
    base = next(kind for kind in body.__mro__[1:] if issubclass(kind, PreTrainedModel))
    name = body.__name__.removesuffix("Model") + "ForRelations"
    # transformers looks into a class's module for what its attention can do
    own = {"__module__": body.__module__, "loaded_by": body.__name__, "note": _NOTE}
    return type(name, (_WithClassifier, base), own)


class AUTO:
    """As transformers' AutoModelFor...: the model of a folder, whatever its family."""

    @staticmethod
    def from_pretrained(
        path: str | Path, *, config: PreTrainedConfig, trust_remote_code: bool = False, **options: Any
    ) -> PreTrainedModel:
        """The model in a folder; a head that it lacks is random."""
        del trust_remote_code
        return model_class(config).from_pretrained(path, config=config, **options)

    @staticmethod
    def from_config(config: PreTrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
        """A new one."""
        del trust_remote_code
        return model_class(config)(config)


class Model(nn.Module):
    """`model(batch)` are the sums of a batch; `model.plain` is the transformers model, for saving.

    Args:
        plain: of `AUTO`.
        settings: of the task.
        regularize: label smoothing and R-Drop.
        padded: compute padded batches; `padded` says in the end how it is done.
        autocast: compute in this 16-bit type, the weights stay float32.
    """

    def __init__(
        self,
        plain: PreTrainedModel,
        settings: RelationsSettings,
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
    def sums_type(settings: RelationsSettings) -> type:
        """What `forward` gives."""
        del settings
        return RelationSums

    @staticmethod
    def targets(micro: Micro) -> int:
        """Rows of a batch: all that are asked of."""
        return int((micro.per_sequence["labels"] != IGNORED).sum())

    def forward(self, batch: PackedBatch, delta: Tensor | None = None, *, outputs: bool = False) -> Any:
        """The sums of one batch, over its rows; with `outputs` also its logits, {"logits": [n, relations]}.

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
        sums = RelationSums(loss, (logits.argmax(1) == labels).sum().float())
        return (sums, {"logits": logits}) if outputs else sums

    def logits(self, batch: PackedBatch, delta: Tensor | None = None) -> Tensor:
        """float32 [n, relations]."""
        with torch.autocast(batch.ids.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            hidden = self._run.hidden(batch, delta)
            # an empty batch has no places
            at = [batch.starts + batch.targets[name].clamp_min(0) for name in ("first", "second")]
            return self.plain.classify(hidden[at[0]], hidden[at[1]]).float()


def _dropout(config: Any) -> float:
    """Before the classifier, as in the family's own heads."""
    names = ("classifier_dropout", "seq_classif_dropout", "classifier_dropout_prob", "hidden_dropout_prob")
    values = (getattr(config, name, None) for name in names)
    return next((float(value) for value in values if value is not None), 0.0)
