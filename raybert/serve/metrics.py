"""What Prometheus is told of a model, beside what Ray Serve tells itself. Ray puts `ray_` before these names."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from ray.serve import metrics

_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]
_TOKENS = [16, 64, 256, 1024, 4096, 16384, 65536]


class ModelMetrics:
    """Made in a replica; labels are the model, and what is named here."""

    def __init__(self, model: str) -> None:
        label: Mapping[str, str] = {"model": model}
        self._phases = _histogram(
            "raybert_phase_seconds", "seconds of a request in a phase", _SECONDS, label, "phase"
        )
        self._requests = _counter("raybert_requests", "requests that were answered", label, "priority")
        self._tokens = _counter(
            "raybert_request_tokens", "tokens of requests that were answered", label, "priority"
        )
        self._rejected = _counter("raybert_rejected", "requests that were refused or failed", label, "reason")
        self._step_tokens = _histogram("raybert_step_tokens", "tokens of a forward pass", _TOKENS, label)
        self._step_rows = _counter("raybert_step_rows", "rows that went through the model", label)
        self._useful = _counter(
            "raybert_step_useful_tokens", "tokens of texts that went through the model", label
        )
        self._computed = _counter(
            "raybert_computed_tokens", "tokens that went through the model, padding included", label
        )
        self._step_seconds = _counter("raybert_step_seconds", "seconds in which the model computed", label)
        self._queue = metrics.Gauge("raybert_queue_tokens", "tokens that wait", tag_keys=("model",))
        self._queue.set_default_tags(dict(label))

    def request(self, found: Any, bulk: bool) -> None:
        """A request that was answered: a `raybert.serve.model.Found`."""
        self._phases.observe(found.tokenize, {"phase": "tokenize"})
        self._phases.observe(found.queue, {"phase": "queue"})
        self._phases.observe(found.compute, {"phase": "compute"})
        priority = {"priority": "bulk" if bulk else "interactive"}
        self._requests.inc(1, priority)
        if found.tokens:
            self._tokens.inc(found.tokens, priority)

    def search(self, seconds: float) -> None:
        """A search in the index, waiting for others included."""
        self._phases.observe(seconds, {"phase": "search"})

    def rejected(self, reason: str) -> None:
        """A request that was not answered: overloaded, deadline or failed."""
        self._rejected.inc(1, {"reason": reason})

    def step(self, lengths: np.ndarray, computed: int, seconds: float) -> None:
        """A forward pass over rows of so many tokens, int64 [n], which with their padding were `computed`."""
        self._step_tokens.observe(int(lengths.sum()))
        self._step_rows.inc(len(lengths))
        self._useful.inc(int(lengths.sum()))
        self._computed.inc(computed)
        if seconds > 0:
            self._step_seconds.inc(seconds)

    def queue(self, tokens: int) -> None:
        """Tokens that wait now."""
        self._queue.set(tokens)


def _counter(name: str, text: str, label: Mapping[str, str], *more: str) -> metrics.Counter:
    made = metrics.Counter(name, description=text, tag_keys=("model", *more))
    made.set_default_tags(dict(label))
    return made


def _histogram(
    name: str, text: str, bounds: list[float], label: Mapping[str, str], *more: str
) -> metrics.Histogram:
    made = metrics.Histogram(name, description=text, boundaries=bounds, tag_keys=("model", *more))
    made.set_default_tags(dict(label))
    return made
