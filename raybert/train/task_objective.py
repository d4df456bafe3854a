"""What a task minimises: the mean of its loss over the targets of the global batch, plain or with adversarial steps."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from raybert.train import adversarial
from raybert.train.packed import Micro, PackedBatch
from raybert.train.step import Counts, Figures, Micros, Objective, mean


class TaskObjective(Objective):
    """The first of a model's sums is its loss; others are means over the targets, by their own names.

    Args:
        sums: the NamedTuple that the model gives.
        targets: how many targets a batch has.
        empty: see `Objective`.
        attack: settings of adversarial training (see `raybert.train.adversarial`); None for none.

    Attributes:
        penalty: a term of the loss that depends on the weights alone; None for none.
    """

    penalty: Callable[[], Tensor] | None = None

    def __init__(
        self, sums: Any, targets: Callable[[Micro], int], empty: Micro, attack: Any | None = None
    ) -> None:
        self.sums, self.empty = sums, empty
        self._targets, self._attack = targets, attack
        self._share = 1.0  # of one target in the loss of this step

    def accumulate(
        self,
        model: Callable[..., Any],
        micros: Micros,
        counts: Counts,
        *,
        backward: Callable[[Tensor], object] = Tensor.backward,
        scale: float = 1.0,
        **named: Any,
    ) -> Tensor:
        """See `Objective.accumulate`. The penalty's gradient is the same on every rank, and the mean of them is taken."""
        self._share = scale / max(1, counts.targets[0])
        totals = super().accumulate(model, micros, counts, backward=backward, scale=scale, **named)
        if self.penalty is not None:
            backward(self.penalty())
        return totals

    def targets(self, micro: Micro) -> tuple[int, ...]:
        """One kind."""
        return (self._targets(micro),)

    def loss(self, sums: Any, counts: Counts) -> Tensor:
        """A batch's share of the global loss."""
        return sums[0] / max(1, counts.targets[0])

    def figures(self, totals: Any, counts: Counts) -> Figures:
        """The loss, and the other sums as means."""
        values = {name: mean(getattr(totals, name), counts.targets[0]) for name in totals._fields[1:]}
        line = "  ".join(f"{name} {value:.1%}" for name, value in values.items())
        return Figures(loss=float(self.loss(totals, counts)), tokens=counts.tokens, values=values, line=line)

    def forward_backward(
        self,
        model: Callable[..., Any],
        batch: PackedBatch,
        loss_of: Callable[[Any], Tensor],
        backward: Callable[[Tensor], object],
    ) -> Any:
        """Forward and backward of one batch; its sums."""
        if self._attack is None:
            return super().forward_backward(model, batch, loss_of, backward)

        def loss(sums: Any) -> Tensor:
            return loss_of(self.sums(*sums))  # ZeRO 3 makes a plain tuple of a NamedTuple

        task: Any = getattr(model, "module", model)  # inside of DeepSpeed's engine
        found = adversarial.step(
            model,
            batch,
            loss,
            backward,
            self._attack,
            targets=1 / self._share,
            divergence=lambda clean, moved: task.smoothness(clean, moved, batch),
        )
        return self.sums(*found)
