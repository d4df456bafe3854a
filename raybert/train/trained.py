"""What a run trains, as the loop sees it: pretraining is one, every task another."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import nn

from raybert.train.step import Micro, Objective


class GlobalBatch(Protocol):
    """What one optimizer step is made from: a rank's batches, each with its number among the `bins` of the global batch;
    `cursor` is where the next begins."""

    @property
    def micro(self) -> Sequence[tuple[int, Micro]]: ...
    @property
    def bins(self) -> int: ...
    @property
    def cursor(self) -> Any: ...


class Stream(Protocol):
    """Global batches without end: the same for any number of ranks."""

    def cursor(self, **place: int) -> Any:
        """A place in the stream, from the fields of one; without any the beginning."""

    def read(self, cursor: Any, rank: int = 0, world: int = 1) -> GlobalBatch:
        """The part of one of `world` ranks of the global batch that begins at `cursor`."""


@dataclass(frozen=True)
class Evaluation:
    """Figures on data that is not trained on, the same on every rank; `name` says which, `line` tells them.

    `compared` are figures to compare with, which no training changes: kept, but not drawn.
    """

    name: str
    figures: Mapping[str, float]
    line: str
    compared: Mapping[str, float] = field(default_factory=dict)


class Trained(Protocol):
    """What differs between runs.

    Attributes:
        objective: what is minimised.
        streams: the batches, for every phase.
        evaluate_every: steps between evaluations; 0: none.
        metric: the figure of an evaluation by which a model is better, and whether more of it is.
        patience: so many evaluations in a row without a better one end the run; None: none do.
        export_best: the finished model is the best one that was evaluated, else the last.
    """

    objective: Objective
    streams: Sequence[Stream]
    evaluate_every: int
    metric: tuple[str, bool]
    patience: int | None
    export_best: bool

    def model(self, weights: Mapping[str, Any] | None) -> nn.Module:
        """A new model to train, in `plain` the transformers model; with the weights of a checkpoint, or those to begin with."""

    def groups(self, model: nn.Module) -> list[dict[str, Any]] | None:
        """Parameter groups; None for the usual ones."""

    def rate(self, model: nn.Module) -> Callable[[dict[str, Any], int], float] | None:
        """(group, step) -> the factor of its learning rate; None for its `lr_scale`."""

    def around(self, model: nn.Module) -> Any | None:
        """What is done before and after every update (see `raybert.train.engine.Around`); None for nothing."""

    def evaluate(self, engine: Any, phase: int) -> Evaluation | None:
        """By all ranks together; None where there is nothing to evaluate on."""

    def finished(self, step: int, device: Any) -> Mapping[str, float]:
        """More figures of the model of a checkpoint, which is to be exported, found once at the end. By all ranks together."""

    def export(self, step: int) -> None:
        """Write the finished model from the checkpoint of a step. By rank 0 alone."""
