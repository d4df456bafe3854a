"""Has the training loss gone wrong: not a number, or far above what it was for some steps."""

import math
import statistics
from collections import deque


class TrainingDiverged(RuntimeError):
    """The loss is not finite, or a spike did not pass."""


class SpikeWatch:
    """Looks at every step's loss.

    Args:
        factor: a loss of more than so many times the running median is too high.
        patience: so many in a row are a spike.
        window: steps of the median, which high losses do not enter. Nothing is too high before half of it is full.
    """

    def __init__(self, factor: float, patience: int, window: int) -> None:
        self._factor, self._patience = factor, patience
        self._good: deque[float] = deque(maxlen=window)
        self._needed = max(1, window // 2)
        self.high = 0  # steps in a row that were too high

    def add(self, loss: float) -> str | None:
        """What is wrong with this loss, or None."""
        if not math.isfinite(loss):
            return f"the loss is {loss}"
        limit = self.limit()
        if loss <= limit:
            self.high = 0
            self._good.append(loss)
            return None
        self.high += 1
        if self.high < self._patience:
            return None
        return (
            f"the loss is {loss:.3g}, for {self.high} steps above {limit:.3g} ({self._factor:g} x its median)"
        )

    def limit(self) -> float:
        """The highest loss that is not too high."""
        if len(self._good) < self._needed:
            return math.inf
        return self._factor * statistics.median(self._good)
