"""What Prometheus is told of a model."""

from dataclasses import dataclass

import numpy as np
import pytest

from raybert.serve import metrics as module
from raybert.serve.metrics import ModelMetrics


@dataclass
class Found:
    """A request that was answered."""

    tokens: int = 7
    tokenize: float = 0.1
    queue: float = 0.2
    compute: float = 0.3


class Told:
    """In place of a metric of Ray."""

    def __init__(self):
        self.calls = []

    def inc(self, value, tags):
        self.calls.append((value, tags))

    def observe(self, value, tags=None):
        self.calls.append((value, tags))


@pytest.fixture
def told(monkeypatch):
    monkeypatch.setattr(module, "_TELL_SECONDS", 1e9)
    made = ModelMetrics("m")
    made.tell(now=True)
    made._counters = {name: Told() for name in made._counters}
    made._phases, made._step_tokens = Told(), Told()
    return made


def test_counts_are_told_together(told):
    for bulk in (False, False, True):
        told.request(Found(), bulk)
    told.rejected("overloaded")
    told.step(np.array([3, 4]), 8, 0.5)
    told.step(np.array([5]), 5, 0.25)
    assert not any(each.calls for each in told._counters.values())
    told.tell(now=True)
    calls = {name: each.calls for name, each in told._counters.items()}
    assert calls["requests"] == [(2, {"priority": "interactive"}), (1, {"priority": "bulk"})]
    assert calls["request_tokens"] == [(14, {"priority": "interactive"}), (7, {"priority": "bulk"})]
    assert calls["rejected"] == [(1, {"reason": "overloaded"})]
    assert calls["step_rows"] == [(3, {})]
    assert calls["step_useful_tokens"] == [(12, {})]
    assert calls["computed_tokens"] == [(13, {})]
    assert calls["step_seconds"] == [(0.75, {})]
    assert [value for value, _ in told._step_tokens.calls] == [7, 5]
    assert told._phases.calls[:3] == [
        (0.1, {"phase": "tokenize"}),
        (0.2, {"phase": "queue"}),
        (0.3, {"phase": "compute"}),
    ]
    told.tell(now=True)
    assert sum(len(each.calls) for each in told._counters.values()) == 9  # nothing twice


def test_of_many_requests_a_fair_sample_is_told(told):
    for i in range(5000):
        told.request(Found(compute=float(i)), False)
    told.tell(now=True)
    told_of = [value for value, tags in told._phases.calls if tags == {"phase": "compute"}]
    assert len(told_of) == len(set(told_of)) == 50
    assert 1200 < np.median(told_of) < 3800
    assert told._counters["requests"].calls == [(5000, {"priority": "interactive"})]
