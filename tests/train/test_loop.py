"""Spikes, phases and what the run says of itself: the loop in one process, without Ray."""

import math

import pytest

from raybert.train.spikes import SpikeWatch
from tests.train.ranks import run


def test_a_spike_is_high_for_some_steps():
    watch = SpikeWatch(factor=1.5, patience=3, window=10)
    assert [watch.add(100.0), *(watch.add(2.0) for _ in range(9))] == [None] * 10
    assert watch.limit() == 3.0
    assert [watch.add(3.1), watch.add(9.0), watch.add(2.9)] == [None] * 3  # it passed
    assert watch.add(3.1) is None
    assert watch.add(3.1) is None
    assert "for 3 steps above 3 (1.5 x its median)" in (watch.add(3.1) or "")
    assert watch.add(float("nan")) == "the loss is nan"


def test_nothing_is_high_at_the_start():
    watch = SpikeWatch(factor=1.5, patience=1, window=10)
    assert [watch.add(loss) for loss in (1.0, 5.0, 1.0, 90.0)] == [None] * 4
    assert math.isinf(watch.limit())


@pytest.fixture(scope="module")
def spikes(tmp_path_factory):
    return run(1, tmp_path_factory.mktemp("loop"), "spike")


def test_a_loss_that_is_not_a_number_stops_the_run(spikes):
    found = spikes["nan-stop"]
    assert found["steps"] == [2, 4, 6]
    assert found["lines"][-1].startswith(
        "step 7: the loss is nan; lower train.lr, or set train.on_spike=rewind"
    )


@pytest.mark.parametrize(("name", "back", "skipped"), [("nan-rewind", 6, 1), ("high-rewind", 6, 3)])
def test_a_rewound_run_goes_on_with_other_batches(spikes, name, back, skipped):
    found = spikes[name]
    steps = [step for step, _ in found["seen"]]
    assert steps == [*range(6 + skipped), *range(back, 12)]
    after = [digest for _, digest in found["seen"][6 + skipped :]]
    assert not set(after) & set(found["bad"])
    assert found["steps"][-1] == 12
    assert len(found["skipped"]) == 1
    assert any(f"back to step {back}" in line for line in found["lines"])


def test_a_spike_can_be_ignored(spikes):
    found = spikes["high-ignore"]
    assert [step for step, _ in found["seen"]] == [*range(12)]
    assert found["steps"][-1] == 12


def test_phases_have_their_own_rates_tokens_and_sizes(tmp_path):
    found = run(1, tmp_path, "phases")
    rates = [rate for _, rate in found["train/lr"]]
    assert rates == pytest.approx(
        [3e-3 * (4 - i) / 4 for i in range(4)] + [1e-3 * (3 - i) / 3 for i in range(3)]
    )
    sizes = [size for _, size in found["train/tokens"]]
    assert all(size <= 256 for size in sizes[:4])
    assert all(256 < size <= 512 for size in sizes[4:])
    assert found["saved"] == [4, 7]  # where phases end
    assert found["epochs"] == round(found["per_epoch"] / 2)


def test_checkpoints_are_written_while_training_goes_on(tmp_path):
    found = run(1, tmp_path, "writing")
    assert [step for step, _, _ in found["spans"]] == [4, 8, 12] == found["saved"]
    assert any(end > begun for _, begun, end in found["spans"])
    assert found["error"] == "the disk is full"  # at the next one, at the latest
    assert found["at"] <= 8
