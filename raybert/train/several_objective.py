"""What several tasks minimise: in every step the loss of the one whose batch it is."""

from collections import namedtuple
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor

from raybert.train.example_stream import ExampleMicro
from raybert.train.packed import Micro, PackedBatch
from raybert.train.step import Counts, Figures, Micros, Objective
from raybert.train.task_objective import TaskObjective


class SeveralObjective(Objective):
    """A kind of target a task: a global batch has targets of one kind, which says of which task it is.

    Args:
        members: what the tasks minimise, by name.
        weights: a factor of every task's loss. Figures are without it.
    """

    def __init__(self, members: Mapping[str, TaskObjective], weights: Mapping[str, float]) -> None:
        self._members, self._weights, self._names = members, weights, list(members)
        fields = dict.fromkeys(name for own in members.values() for name in own.sums._fields)
        # those that a task does not have are nan
        self.sums: Any = namedtuple("SeveralSums", list(fields))
        self._empties = {name: replace(own.empty, member=name) for name, own in members.items()}
        self.empty = self._empties[self._names[0]]

    @property
    def empties(self) -> Sequence[ExampleMicro]:
        """One a task."""
        return list(self._empties.values())

    def empty_of(self, name: str) -> ExampleMicro:
        """A batch of a task with nothing to learn."""
        return self._empties[name]

    def idle(self, counts: Counts) -> Collection[str]:
        """The tasks that have no targets in a global batch."""
        return {name for name, targets in zip(self._names, counts.targets, strict=True) if not targets}

    def targets(self, micro: Micro) -> tuple[int, ...]:
        """As many kinds as tasks, all but one 0."""
        assert isinstance(micro, ExampleMicro)
        found = self._members[micro.member].targets(micro)[0]
        return tuple(found if name == micro.member else 0 for name in self._names)

    def count(self, micros: Micros) -> Counts:
        """The counts of one rank, without what is empty."""
        empty = {id(one) for one in self.empties}
        return super().count([None if one is None or id(one[1]) in empty else one for one in micros])

    def loss(self, sums: Any, counts: Counts) -> Tensor:
        """A batch's share of the global loss."""
        return self._weights[self._active(counts)] * sums[0] / max(1, *counts.targets)

    def figures(self, totals: Any, counts: Counts) -> Figures:
        """Those of the task whose batch it was, `NAME.loss` and others; `loss` is the same as `NAME.loss`."""
        name = self._active(counts)
        own = self._members[name]
        of_own = own.sums(*(getattr(totals, field) for field in own.sums._fields))
        found = own.figures(of_own, replace(counts, targets=(max(counts.targets),)))
        values = {f"{name}.{key}": value for key, value in {"loss": found.loss, **found.values}.items()}
        return replace(found, values=values, line=f"{name}  {found.line}".strip())

    def forward_backward(
        self,
        model: Callable[..., Any],
        batch: PackedBatch,
        loss_of: Callable[[Any], Tensor],
        backward: Callable[[Tensor], object],
    ) -> Any:
        """As the task does; its sums among those of all."""
        found = self._members[batch.member].forward_backward(model, batch, loss_of, backward)
        missing = found[0].new_full((), float("nan"))
        return self.sums(*(getattr(found, field, missing) for field in self.sums._fields))

    def _active(self, counts: Counts) -> str:
        return self._names[max(range(len(self._names)), key=counts.targets.__getitem__)]
