"""Figures of a run over its steps: kept as JSON beside the checkpoints, drawn as a PNG."""

import io
import json
import math
from collections.abc import Mapping

from raybert.corpus.store import Store

HISTORY, PICTURE = "_raybert/history.json", "curves.png"
_NOT_DRAWN = ("tokens", "predictions", "perplexity", "grad_norm", "tokens_per_second", "memory_gb", "mfu")


class History:
    """name -> [(step, value), ...], as they were logged; what is later than `step` is forgotten."""

    def __init__(self, store: Store, step: int) -> None:
        self._store = store
        self.values: dict[str, list[tuple[int, float]]] = {}
        if step and store.exists(HISTORY):
            for name, points in json.loads(store.read(HISTORY)).items():
                self.values[name] = [(at, value) for at, value in points if at <= step]

    def add(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures of a step."""
        for name, value in figures.items():
            if math.isfinite(value):
                self.values.setdefault(name, []).append((step, value))

    def write(self) -> None:
        """Keep them."""
        self._store.write(HISTORY, json.dumps(self.values).encode())

    def draw(self) -> bool:
        """Draw the curves beside the model; False where matplotlib is missing."""
        try:
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
        except ImportError:
            return False
        names = [name for name in self.values if name.split("/")[-1] not in _NOT_DRAWN]
        figure = Figure(figsize=(8, 2.2 * max(1, len(names))), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, name in zip(figure.subplots(max(1, len(names)), squeeze=False)[:, 0], names, strict=False):
            axes.plot(*zip(*self.values[name], strict=True), linewidth=1)
            axes.set(title=name, xlabel="step")
            axes.grid(alpha=0.3)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        self._store.write(PICTURE, buffer.getvalue())
        return True
