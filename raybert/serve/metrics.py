"""What Prometheus is told of a model, beside what Ray Serve tells itself. Ray puts `ray_` before these names."""

import random
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
from ray.serve import metrics

_SECONDS = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]
_TOKENS = [16, 64, 256, 1024, 4096, 16384, 65536]
_PHASES = ("tokenize", "queue", "compute")
_TELL_SECONDS, _SAMPLE = 1.0, 50

_COUNTERS = {  # name: what it counts, and its label
    "requests": ("requests that were answered", "priority"),
    "request_tokens": ("tokens of requests that were answered", "priority"),
    "rejected": ("requests that were refused or failed", "reason"),
    "step_rows": ("rows that went through the model",),
    "step_useful_tokens": ("tokens of texts that went through the model",),
    "computed_tokens": ("tokens that went through the model, padding included",),
    "step_seconds": ("seconds in which the model computed",),
}


class ModelMetrics:
    """Made in a replica; labels are the model, and what is named here.

    A call of Ray's metrics costs as much as a tenth of a short request. So counts are added up here and told once a
    second, and of the seconds of requests those of `_SAMPLE`, drawn at random, are told: quantiles stay what they are.
    """

    def __init__(self, model: str) -> None:
        label: Mapping[str, str] = {"model": model}
        self._phases = _histogram(
            "raybert_phase_seconds", "seconds of a request in a phase", _SECONDS, label, "phase"
        )
        self._step_tokens = _histogram("raybert_step_tokens", "tokens of a forward pass", _TOKENS, label)
        self._counters = {
            name: _counter(f"raybert_{name}", text, label, *more) for name, (text, *more) in _COUNTERS.items()
        }
        self._gauge = metrics.Gauge("raybert_queue_tokens", "tokens that wait", tag_keys=("model",))
        self._gauge.set_default_tags(dict(label))
        self._told = 0.0
        self._queue = 0
        self._sums: Counter[tuple[str, str]] = Counter()
        self._samples: dict[str, list[Any]] = {"requests": [], "steps": []}
        self._seen = dict.fromkeys(self._samples, 0)

    def request(self, found: Any, bulk: bool) -> None:
        """A request that was answered: a `raybert.serve.model.Found`."""
        self._draw("requests", (found.tokenize, found.queue, found.compute))
        priority = "bulk" if bulk else "interactive"
        self._sums["requests", priority] += 1
        self._sums["request_tokens", priority] += found.tokens
        self.tell()

    def search(self, seconds: float) -> None:
        """A search in the index, waiting for others included."""
        self._phases.observe(seconds, {"phase": "search"})

    def rejected(self, reason: str) -> None:
        """A request that was not answered: overloaded, deadline or failed."""
        self._sums["rejected", reason] += 1
        self.tell()

    def step(self, lengths: np.ndarray, computed: int, seconds: float) -> None:
        """A forward pass over rows of so many tokens, int64 [n], which with their padding were `computed`."""
        tokens = int(lengths.sum())
        self._draw("steps", tokens)
        for name, value in (
            ("step_rows", len(lengths)),
            ("step_useful_tokens", tokens),
            ("computed_tokens", computed),
            ("step_seconds", seconds),
        ):
            self._sums[name, ""] += value  # type: ignore[assignment]  # seconds are no whole number
        self.tell()

    def queue(self, tokens: int) -> None:
        """Tokens that wait now."""
        self._queue = tokens

    def tell(self, *, now: bool = False) -> None:
        """Tell Ray what has come together, unless that was less than a second ago."""
        time_now = time.monotonic()
        if not now and time_now - self._told < _TELL_SECONDS:
            return
        self._told = time_now
        sums, self._sums = self._sums, Counter()
        for (name, tag), value in sums.items():
            if value:
                key = _COUNTERS[name][1:]
                self._counters[name].inc(value, {key[0]: tag} if key else {})
        samples, self._samples = self._samples, {name: [] for name in self._samples}
        self._seen = dict.fromkeys(self._samples, 0)
        for seconds in samples["requests"]:
            for phase, each in zip(_PHASES, seconds, strict=True):
                self._phases.observe(each, {"phase": phase})
        for tokens in samples["steps"]:
            self._step_tokens.observe(tokens)
        self._gauge.set(self._queue)

    def _draw(self, name: str, value: Any) -> None:
        """Every value is among the `_SAMPLE` that are told with the same probability (Vitter 1985, algorithm R)."""
        self._seen[name] += 1
        kept = self._samples[name]
        if len(kept) < _SAMPLE:
            kept.append(value)
        elif (place := random.randrange(self._seen[name])) < _SAMPLE:
            kept[place] = value


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
