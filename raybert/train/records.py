"""What a run tells of itself: lines for the terminal, curves, trackers. Only rank 0 tells; the others count along."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from raybert.corpus.store import Store
from raybert.train import progress
from raybert.train.curves import History
from raybert.train.step import Figures
from raybert.train.tracking import Trackers
from raybert.train.trained import Evaluation


class Records:
    """The figures of a run.

    Args:
        store: the run's folder.
        track: names of trackers.
        settings: shown beside the curves.
        say: takes lines for the user.
        active: on rank 0.
    """

    def __init__(
        self,
        store: Store,
        track: list[str],
        settings: Mapping[str, Any],
        say: Callable[[str], object],
        *,
        active: bool,
    ) -> None:
        self._store, self._names, self._settings, self._say = store, track, settings, say
        self._active = active
        self._trackers: Trackers | None = None
        self.history = History(store, 0)
        self.mark()

    def open(self, step: int) -> None:
        """Go on from a step: what was recorded of later ones is forgotten."""
        if not self._active:
            return
        self.history = History(self._store, step)
        if self._trackers is None and self._names:
            folder = self._store.path("tensorboard") if self._store.local else "tensorboard"
            run = self._store.root.rstrip("/").rpartition("/")[2]
            self._trackers = Trackers(self._names, folder, run, self._settings, step=step)

    def mark(self) -> None:
        """Speed is measured from here."""
        self._since, self._tokens, self._work = time.monotonic(), 0, 0.0

    def count(self, tokens: int, work: float) -> None:
        """Tokens of all ranks and operations of this one."""
        self._tokens += tokens
        self._work += work

    def log(self, step: int, steps: int, found: Figures, *, lr: float, device: Any, precision: str) -> None:
        """A line of a training step."""
        passed = time.monotonic() - self._since
        peak = progress.peak_flops(device, precision)
        mfu = None if peak is None else self._work / passed / peak
        speed, memory = self._tokens / passed, progress.memory_gb(device)
        figures = {**found.as_dict(), "lr": lr, "tokens_per_second": speed, "memory_gb": memory}
        self._add("train", step, figures if mfu is None else {**figures, "mfu": mfu})
        self.say(progress.line(step, steps, found, lr=lr, tokens_per_second=speed, mfu=mfu, memory=memory))
        self.mark()

    def evaluation(self, step: int, found: Evaluation) -> None:
        """A line of an evaluation."""
        self._add(found.name, step, found.figures)
        self.say(f"step {step}  {found.name.replace('_', ' ')}: {found.line}")

    def say(self, line: str) -> None:
        """A line for the user."""
        if self._active:
            self._say(line)

    def close(self) -> None:
        """Draw the curves, end the trackers."""
        if not self._active:
            return
        if not self.history.draw():
            self.say("no curves.png: pip install matplotlib")
        if self._trackers is not None:
            self._trackers.close()

    def _add(self, group: str, step: int, figures: Mapping[str, float]) -> None:
        if not self._active:
            return
        named = {f"{group}/{name}": float(value) for name, value in figures.items()}
        self.history.add(step, named)
        if self._trackers is not None:
            self._trackers.log(step, named)
