"""Which evaluation counts as the best, and when a run has waited long enough."""

from types import SimpleNamespace

import pytest

from raybert.train.loop import Run
from raybert.train.trained import Evaluation


def watched(values: list[float], *, more: bool = True, patience: int | None = None) -> Run:
    """The part of a run that looks at evaluations, after these."""
    run, found = Run.__new__(Run), iter(values)
    run.trained = SimpleNamespace(
        metric=("figure", more),
        patience=patience,
        evaluate=lambda engine, phase: Evaluation("validation", {"figure": next(found)}, ""),
    )
    run.records, run.engine, run.phase, run.best = SimpleNamespace(evaluation=lambda *_: None), None, 0, {}
    for run.step in range(1, len(values) + 1):
        run._evaluate()
    return run


@pytest.mark.parametrize(
    ("values", "more", "best", "worse"),
    [
        ([0.5, 0.7, 0.7, 0.7], True, 2, 2),  # of equal ones the first
        ([0.7, 0.7], True, 1, 1),
        ([0.7, 0.6, 0.8, 0.1], True, 3, 1),
        ([0.7, 0.6, 0.6], False, 2, 1),
        ([float("nan"), 0.2, float("nan")], True, 2, 1),
    ],
)
def test_the_first_of_equal_evaluations_is_the_best(values, more, best, worse):
    found = watched(values, more=more).best
    assert (found["step"], found["worse"], found["value"]) == (best, worse, values[best - 1])


def test_patience_counts_evaluations_that_are_not_better():
    assert not watched([0.5, 0.5], patience=2)._is_enough()
    assert watched([0.5, 0.5, 0.5], patience=2)._is_enough()
    assert not watched([0.5, 0.4, 0.6], patience=2)._is_enough()
