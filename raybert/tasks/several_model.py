"""A model of several tasks: transformers models, a task each, whose encoders have the same weights.

The shared layers and the heads of MT-DNN (Liu et al. 2019, arXiv 1901.11504, section 3). Modules are not shared, only
weights: a head may look into its encoder by hooks that others must not see, and each model stays one that transformers
knows. A pooler is made for a task, so it belongs to the head.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from raybert.train.freezing import encoder_of, head_parameters
from raybert.train.packed import PackedBatch


class SharedModels(nn.Module):
    """Plain models by task, of one family; to the loop one plain model. Their encoders get the weights of the first's.

    Names of parameters are `of_NAME.` and the name in the task's model; shared ones are named as in the first's.
    """

    def __init__(self, plains: Mapping[str, Any]) -> None:
        super().__init__()
        self._names = list(plains)
        first, *others = plains.values()
        for plain in others:
            _share_encoder(first, plain)
        for name, plain in plains.items():
            self.add_module(_module(name), plain)

    def of(self, name: str) -> Any:
        """The model of a task."""
        return getattr(self, _module(name))

    def heads(self) -> dict[str, list[nn.Parameter]]:
        """By task the parameters that are its alone."""
        return {name: head_parameters(self.of(name)) for name in self._names}

    @property
    def base_model(self) -> Any:
        """The encoder."""
        return encoder_of(self._first)

    @property
    def config(self) -> Any:
        """Of the encoder; labels are those of the first task."""
        return self._first.config

    def get_input_embeddings(self) -> Any:
        """Of the encoder."""
        return self._first.get_input_embeddings()

    def gradient_checkpointing_enable(self, options: dict[str, Any]) -> None:
        """As of a transformers model."""
        for name in self._names:
            self.of(name).gradient_checkpointing_enable(options)

    @property
    def _first(self) -> Any:
        return self.of(self._names[0])


class SeveralModel(nn.Module):
    """`model(batch)` is what the model of the batch's task gives; `model.plain` are the transformers models.

    Args:
        plain: all of them.
        models: by task the `Model` of its model side (see `raybert.tasks.known.ModelSide`).
    """

    def __init__(self, plain: SharedModels, models: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.models = nn.ModuleDict({_module(name): model for name, model in models.items()})
        # beside torch's list of modules: DeepSpeed visits one that is in two places twice
        self.__dict__["plain"] = plain

    @property
    def padded(self) -> bool:
        """How all of them compute."""
        return next(iter(self.models.values())).padded

    @property
    def autocast(self) -> torch.dtype | None:
        """The 16-bit type that all of them compute in."""
        return next(iter(self.models.values())).autocast

    @autocast.setter
    def autocast(self, value: torch.dtype | None) -> None:
        for model in self.models.values():
            model.autocast = value

    def forward(self, batch: PackedBatch, delta: Tensor | None = None, *, outputs: bool = False) -> Any:
        """See the task's own model."""
        return self.models[_module(batch.member)](batch, delta, outputs=outputs)


def _module(name: str) -> str:
    """Modules have attributes of their own, so a task may be called anything."""
    return f"of_{name}"


def _share_encoder(source: Any, target: Any) -> None:
    """Put the parameters of the source's encoder, but for the pooler, into the target's."""
    shared, own = (_encoder_parameters(model) for model in (source, target))
    assert shared.keys() == own.keys(), "the encoders are not of one kind"
    body = encoder_of(target)
    for name, parameter in shared.items():
        assert own[name].shape == parameter.shape
        path, _, leaf = name.rpartition(".")
        setattr(body.get_submodule(path), leaf, parameter)


def _encoder_parameters(model: Any) -> dict[str, nn.Parameter]:
    head = {id(p) for p in head_parameters(model)}
    named = encoder_of(model).named_parameters(remove_duplicate=False)
    return {name: p for name, p in named if id(p) not in head}
