"""Losses that compare the vectors of a whole global batch, whatever the size of one forward pass.

A rank's vectors are computed in pieces (bins), then its share of the loss follows from all of them and, gathered, those of
the other ranks. Of several pieces GradCache makes the gradient of the whole; see `raybert.train.grad_cache`.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from raybert.train.grad_cache import grad_cache
from raybert.train.packed import Micro, PackedBatch, pack
from raybert.train.step import Counts, Micros, seed_dropout
from raybert.train.task_objective import TaskObjective

Share = Callable[[Tensor, Mapping[str, Tensor], int], Any]


class RankingObjective(TaskObjective):
    """See `TaskObjective`; the model gives vectors [n, width] for a batch.

    Args:
        share: (vectors [n, width] of this rank, their targets by name, rows of the global batch) -> this rank's share of
            `sums`. It may gather vectors of other ranks.
        cache: compute pieces twice instead of keeping the graphs of all; auto: where a rank has several.
    """

    def __init__(
        self,
        sums: Any,
        targets: Callable[[Micro], int],
        empty: Micro,
        *,
        share: Share,
        cache: bool | Literal["auto"] = "auto",
    ) -> None:
        super().__init__(sums, targets, empty)
        self._share, self._cache = share, cache

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
        """Forward and backward of all pieces of one rank; its sums, float64. See `Objective.accumulate`."""
        pieces = [(0, self.empty) if entry is None else entry for entry in micros]
        batches = [pack(micro, device) for _, micro in pieces]
        found: list[Any] = []

        def loss_of(vectors: Tensor) -> Tensor:
            found.append(self._share(vectors, _targets(batches), counts.targets[0]))
            return self.loss(found[-1], counts) * scale

        def seed_piece(i: int) -> None:
            seed_dropout(seed, step, pieces[i][0])

        # every rank has equally many pieces, so all take the same way
        if self._cache is True or (self._cache == "auto" and len(batches) > 1):
            grad_cache(model, batches, loss_of, backward=backward, seed=seed_piece)
        else:
            vectors = []
            for i, batch in enumerate(batches):
                seed_piece(i)
                vectors.append(model(batch))
            backward(loss_of(torch.cat(vectors)))
        if self.penalty is not None:
            backward(self.penalty())
        return torch.stack([value.detach() for value in found[0]]).double()


def _targets(batches: list[PackedBatch]) -> dict[str, Tensor]:
    """The targets of all sequences, in the order of their vectors."""
    return {name: torch.cat([batch.targets[name] for batch in batches]) for name in batches[0].targets}
