"""Learning rates and batch sizes over the steps of a run: pure functions of the step."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """How the learning rate goes over `steps` updates.

    Attributes:
        name: linear, cosine, wsd or constant, all after a linear warmup.
        steps: updates of the run.
        lr: the highest rate.
        warmup: updates until it is reached.
        decay: the last updates, over which wsd falls.
        final: the last rate as a share of `lr`.
    """

    name: str
    steps: int
    lr: float
    warmup: int = 0
    decay: int = 0
    final: float = 0.0

    def __call__(self, step: int) -> float:
        """The rate of update `step`, counted from 0."""
        if step < self.warmup:
            return self.lr * (step + 1) / self.warmup
        return self.lr * _SHAPES[self.name](self, step)


def _linear(plan: Schedule, step: int) -> float:
    return plan.final + (1 - plan.final) * (1 - _passed(plan, step))


def _cosine(plan: Schedule, step: int) -> float:
    """Loshchilov and Hutter 2017 (arXiv 1608.03983), equation 5, without restarts."""
    return plan.final + (1 - plan.final) * (1 + math.cos(math.pi * _passed(plan, step))) / 2


def _wsd(plan: Schedule, step: int) -> float:
    """Warmup, stable, decay with 1 - sqrt (Hägele et al. 2024, arXiv 2405.18392)."""
    into = step - (plan.steps - plan.decay)
    if into <= 0:
        return 1.0
    return plan.final + (1 - plan.final) * max(0.0, 1 - math.sqrt(into / plan.decay))


def _constant(plan: Schedule, step: int) -> float:
    return 1.0


_SHAPES: dict[str, Callable[[Schedule, int], float]] = {
    "linear": _linear,
    "cosine": _cosine,
    "wsd": _wsd,
    "constant": _constant,
}


def _passed(plan: Schedule, step: int) -> float:
    """Share of the updates after the warmup that lie behind, 0 to 1."""
    return min(1.0, (step - plan.warmup) / max(1, plan.steps - plan.warmup))


def phase_at(steps: Sequence[int], step: int) -> tuple[int, int]:
    """(phase, step within it) of update `step`, for phases of so many steps; beyond the end: the last phase.

    BERT's own recipe is two of them: 90 % of the steps with 128 tokens, then 10 % with 512 (Devlin et al. 2019, A.2).
    """
    for phase, length in enumerate(steps):
        if step < length:
            return phase, step
        step -= length
    return len(steps) - 1, steps[-1] + step
