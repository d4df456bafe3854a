"""Models that tell the relation of two marked places: an encoder and a classifier of the two start markers.

"Entity markers, entity start" of Baldini Soares et al. 2019 (arXiv 1906.03158), section 3.2: the last hidden states of
[E1] and [E2] side by side, then a linear layer. transformers has no such head, so the model is the family's own encoder
with one. Its folder is a plain one: `AutoModel.from_pretrained` reads the encoder and passes over `classifier.*`; `AUTO`
reads all of it. `config.json` names the markers, the tokenizer has them.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from raybert.config.tasks import RelationsSettings
from raybert.tasks.base_model import TaskModel, write_labels
from raybert.train.packed import PackedBatch
from raybert.train.regularizers import smoothed_cross_entropy

_NOTE = " (its encoder; `classifier.*` in the same file is the linear layer on the hidden states of the two start markers)"


def configure(config: PreTrainedConfig, labels: Sequence[str], settings: RelationsSettings) -> None:
    """Write the relations and the markers into a model's configuration."""
    write_labels(config, labels)
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
        path: str | Path,
        *,
        config: PreTrainedConfig | None = None,
        trust_remote_code: bool = False,
        **options: Any,
    ) -> PreTrainedModel:
        """The model in a folder; a head that it lacks is random."""
        config = config or AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        return model_class(config).from_pretrained(path, config=config, **options)

    @staticmethod
    def from_config(config: PreTrainedConfig, trust_remote_code: bool = False) -> PreTrainedModel:
        """A new one."""
        del trust_remote_code
        return model_class(config)(config)


class Model(TaskModel):
    """A target is a row; its logits are [n, relations]. See `TaskModel`."""

    def _logits(self, batch: PackedBatch, delta: Tensor | None) -> Tensor:
        hidden = self._run.hidden(batch, delta)
        # an empty batch has no places
        at = [batch.starts + batch.targets[name].clamp_min(0) for name in ("first", "second")]
        return self.plain.classify(hidden[at[0]], hidden[at[1]])

    def losses(self, logits: Tensor, batch: PackedBatch, smoothing: float) -> Tensor:
        """[n]."""
        return smoothed_cross_entropy(logits, batch.targets["labels"], smoothing)


def _dropout(config: Any) -> float:
    """Before the classifier, as in the family's own heads."""
    names = ("classifier_dropout", "seq_classif_dropout", "classifier_dropout_prob", "hidden_dropout_prob")
    values = (getattr(config, name, None) for name in names)
    return next((float(value) for value in values if value is not None), 0.0)
