"""The loop on a task, in gloo processes without Ray: it learns, goes on exactly, keeps the best, stops early."""

import pytest
import torch
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.train.ranks import run
from tests.train.task_tables import right_share

RUNS, MORE = ("plain", "zero2", "lora"), ("zero3", "frozen", "gradual", "freelb")
EVERY = [*RUNS, *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tasks")


@pytest.fixture(scope="module")
def two(folder):
    return run(2, folder, "tasks")


@pytest.fixture(scope="module")
def found_of(folder, two):
    """What a run found; the others are made when one is asked for."""
    more: dict = {}

    def find(name):
        if name in MORE and not more:
            more.update(run(2, folder, "more_tasks"))
        return (more if name in MORE else two)[name]

    return find


@pytest.mark.parametrize("name", EVERY)
def test_a_run_that_goes_on_ends_as_the_whole_one(found_of, folder, name):
    found = found_of(name)
    assert_close(found["again"], found["figures"], atol=1e-4, rtol=0)
    best, again = found["best"], found["again_best"]
    assert {**again, "value": 0} == {**best, "value": 0}
    assert again["value"] == pytest.approx(best["value"], abs=1e-4)
    assert found["again_digests"] == found["digests"]
    assert len(set(found["digests"])) == len(found["digests"]) == 16
    models = [load_file(folder / f"{name}{end}" / "model" / "model.safetensors") for end in ("", "-again")]
    assert_close(models[1], models[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", EVERY)
def test_it_learns_and_the_best_model_is_the_finished_one(found_of, name):
    found = found_of(name)
    losses = [loss for _, loss in found["history"]["train/loss"]]
    assert losses[-1] < losses[0]
    evaluated = dict(found["history"]["validation/accuracy"])
    assert sorted(evaluated) == [8, 16, 24]
    best = max(evaluated, key=lambda step: (evaluated[step], -step))
    assert found["best"]["step"] == best
    assert found["figures"]["held_out_accuracy"] == pytest.approx(evaluated[best])
    assert found["figures"].get("best_step", 24) == best


def test_stages_compute_the_same(two):
    assert two["plain"]["figures"]["held_out_accuracy"] > 0.9
    assert_close(two["zero2"]["figures"], two["plain"]["figures"], atol=1e-3, rtol=0)


@pytest.mark.slow
def test_weights_that_are_cut_up_compute_the_same(found_of, two):
    assert_close(found_of("zero3")["figures"], two["plain"]["figures"], atol=1e-3, rtol=0)


def test_a_run_without_progress_stops(two):
    found = two["early"]
    assert found["best"]["step"] == 2
    assert found["figures"]["steps"] == 6
    assert found["lines"][-1] == "stopped at step 6: 2 evaluations without a better one"


@pytest.mark.slow
def test_what_is_frozen_stays(found_of, folder):
    found_of("frozen")
    start = load_file(folder / "model" / "model.safetensors")
    end = load_file(folder / "frozen" / "model" / "model.safetensors")
    for name, value in start.items():
        if "embeddings" not in name and "layer.0." not in name and "layer.1." not in name:
            continue
        assert torch.equal(value, end[f"bert.{name}"]) == ("layer.0." in name), name


def test_a_finished_model_is_a_plain_one_with_the_figures_of_its_card(two, folder):
    for name in ("plain", "lora"):
        assert right_share(folder, folder / name / "model") == two[name]["figures"]["held_out_accuracy"]
    plain, lora = (load_file(folder / name / "model" / "model.safetensors") for name in ("plain", "lora"))
    assert plain.keys() == lora.keys()
