"""How many replicas a model needs."""

from types import SimpleNamespace

import pytest

from raybert.serve.scaling import by_load, replicas


@pytest.mark.parametrize(
    ("busy", "waiting", "needed"),
    [
        ([], [], 1),
        ([0.0], [0.0], 1),
        ([0.8], [0.0], 1),
        ([0.85], [0.0], 2),
        ([1.0, 1.0], [0.0, 0.0], 3),
        ([1.0], [5.0], 3),  # a second replica's work waits
        ([0.1, 0.1, 0.1], [0.0], 1),
    ],
)
def test_busy_replicas_and_waiting_tokens(busy, waiting, needed):
    assert replicas(busy, waiting) == needed


def test_the_policy_reads_what_replicas_tell():
    told = {"busy": {"a": 1.0, "b": 1.0}, "waiting": {"a": 2.0, "b": 0.0}}
    count, state = by_load(SimpleNamespace(aggregated_metrics=told, policy_state={"kept": 1}))
    assert count == 3
    assert state == {"kept": 1}
    assert by_load(SimpleNamespace(aggregated_metrics={}, policy_state=None))[0] == 1
