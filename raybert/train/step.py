"""One optimizer step over the micro batches of one rank: the loss, its normalisation, the dropout seeds.

The loss of a step is (sum over all targets) / (their number in the global batch), of every kind of target. So neither the
size of a micro batch nor the number of workers changes the gradients.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from raybert.train.packed import Micro, PackedBatch, pack

# (bin number, content); None stands for the empty batch of a rank that has one less
Micros = Sequence[tuple[int, Micro] | None]


@dataclass(frozen=True)
class Counts:
    """What a global batch holds, over all ranks: `targets` of every kind that the objective has."""

    targets: tuple[int, ...]
    tokens: int
    sequences: int


@dataclass(frozen=True)
class Figures:
    """What one step, or an evaluation, found.

    Attributes:
        loss: mean over the global batch. tokens: of the global batch.
        values: others by name, such as accuracies; nan where there was nothing to count.
        line: what is worth showing of them, for the terminal.
        grad_norm: of the whole gradient, before it was clipped.
    """

    loss: float
    tokens: int
    values: Mapping[str, float] = field(default_factory=dict)
    line: str = ""
    grad_norm: float = float("nan")

    def as_dict(self) -> dict[str, float]:
        """The figures that are numbers, by name."""
        found = {"loss": self.loss, **self.values, "tokens": self.tokens, "grad_norm": self.grad_norm}
        return {name: value for name, value in found.items() if value == value}


class Objective(ABC):
    """What is minimised, and how a step is told.

    Attributes:
        sums: makes a NamedTuple of the tensors [] that the model gives for a batch; they are added up over batches.
        empty: a batch of one token and nothing to learn, computed by a rank while others have one batch more.
    """

    sums: Callable[..., Any]
    empty: Micro

    @property
    def empties(self) -> Sequence[Micro]:
        """Batches like `empty` that go through all weights together."""
        return [self.empty]

    def idle(self, counts: Counts) -> Collection[str]:
        """The `head` of parameter groups that such a global batch does not go through: no update changes them."""
        del counts
        return ()

    @abstractmethod
    def targets(self, micro: Micro) -> tuple[int, ...]:
        """How many targets of every kind a batch has."""

    @abstractmethod
    def loss(self, sums: Any, counts: Counts) -> Tensor:
        """A batch's share of the global loss."""

    @abstractmethod
    def figures(self, totals: Any, counts: Counts) -> Figures:
        """The figures of a global batch from its `sums`, as numbers."""

    def forward_backward(
        self,
        model: Callable[..., Any],
        batch: PackedBatch,
        loss_of: Callable[[Any], Tensor],
        backward: Callable[[Tensor], object],
    ) -> Any:
        """Forward and backward of one batch; its `sums`."""
        sums = self.sums(*model(batch))
        backward(loss_of(sums))
        return sums

    def count(self, micros: Micros) -> Counts:
        """The counts of one rank; their sum over the ranks is the global one."""
        real = [entry[1] for entry in micros if entry is not None]
        kinds = [self.targets(micro) for micro in real] or [tuple(0 for _ in self.targets(self.empty))]
        return Counts(
            targets=tuple(map(sum, zip(*kinds, strict=True))),
            tokens=sum(len(micro.ids) for micro in real),
            sequences=sum(len(micro.lengths) for micro in real),
        )

    def accumulate(
        self,
        model: Callable[..., Any],
        micros: Micros,
        counts: Counts,
        *,
        seed: int,
        step: int,
        device: str | torch.device = "cpu",
        backward: Callable[[Tensor], object] = Tensor.backward,
        scale: float = 1.0,
    ) -> Tensor:
        """Forward and backward of all micro batches of one rank.

        Args:
            model: batch -> tensors of `sums`.
            counts: of the global batch.
            backward: takes the loss of a micro batch, times `scale`.

        Returns:
            float64 [sums]: the `sums` of this rank, added up, on the device.
        """
        found = []
        for entry in micros:
            number, micro = (0, self.empty) if entry is None else entry
            seed_dropout(seed, step, number)
            sums = self.forward_backward(
                model, pack(micro, device), lambda sums: self.loss(sums, counts) * scale, backward
            )
            found.append(torch.stack([value.detach() for value in sums]).double())
        return torch.stack(found).sum(0)

    @torch.no_grad()
    def evaluate(self, model: Callable[..., Any], micros: Micros, device: str | torch.device) -> Tensor:
        """float64 [sums]: those of these batches, without gradients."""
        found = []
        for entry in micros:
            batch = pack(self.empty if entry is None else entry[1], device)
            found.append(torch.stack([value.double() for value in model(batch)]))
        return torch.stack(found).sum(0)


def even_out(micros: Sequence[tuple[int, Micro]], bins: int, world: int) -> Micros:
    """As many micro batches as the busiest rank has: ceil(bins / world)."""
    missing = -(-bins // world) - len(micros)
    assert missing >= 0
    return [*micros, *[None] * missing]


def seed_dropout(seed: int, step: int, number: int) -> None:
    """Torch's generators for bin `number` of `step`: dropout does not depend on which rank computes it, or when."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, number)).generate_state(1, np.uint64)[0] >> 1))


def mean(total: float, over: float) -> float:
    """total / over; nan where there was nothing to count."""
    return float(total / over) if over else float("nan")


def train_step(
    model: nn.Module,
    optimizer: Optimizer,
    micros: Micros,
    *,
    lr: float,
    seed: int,
    step: int,
    clip: float | None = None,
    device: str | torch.device = "cpu",
    objective: Objective | None = None,
) -> Figures:
    """One update in one process, with neither Ray nor DeepSpeed: for benchmarks and as the reference in tests.

    `clip` bounds the norm of the whole gradient; no update is made where that is not finite. `objective` is that of
    pretraining unless given.
    """
    from raybert.train.pretraining_objective import PRETRAINING

    objective = objective or PRETRAINING
    counts = objective.count(micros)
    optimizer.zero_grad()
    totals = objective.accumulate(model, micros, counts, seed=seed, step=step, device=device)
    norm = clip_grad_norm_(model.parameters(), clip or float("inf"))
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)
    if torch.isfinite(norm):
        optimizer.step()
    return replace(objective.figures(objective.sums(*totals.tolist()), counts), grad_norm=float(norm))
