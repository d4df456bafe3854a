"""Several tasks through the loop, in gloo processes without Ray: heads that are idle, runs gone on with, levers."""

from itertools import pairwise

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from tests.train.ranks import run
from tests.train.several_ranks import LONG
from tests.train.task_tables import right_share
from tests.train.test_several import NAMES

MORE = ("zero1", "zero2", "zero3", "zero1-bfloat16", "zero2-bfloat16", "lamb")
EVERY = ["zero0", *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("several")


@pytest.fixture(scope="module")
def found_of(folder):
    made: dict = {}

    def find(name):
        if name not in made:
            made.update(run(2, folder, "several_more_stages" if name in MORE else "several"))
        return made[name]

    return find


@pytest.mark.parametrize("name", EVERY)
def test_a_step_leaves_the_heads_of_other_tasks_as_they_are(found_of, name):
    found = found_of(name)
    turns = found["turns"]
    assert set(turns) == set(NAMES)
    assert any(a != b for a, b in pairwise(turns))
    # in the first step the rate is 0 and moments alone move
    assert found["moved"] == [[f"of_{turn}"] for turn in turns]
    assert found["updates"] == {f"updates.{name}": turns.count(name) for name in NAMES}


@pytest.mark.parametrize("name", EVERY)
def test_two_ranks_of_any_stage_do_what_torch_alone_does(found_of, name):
    found = found_of(name)
    exact = "bfloat16" not in name
    assert found["losses"] == pytest.approx(found["expected"], abs=1e-5 if exact else 0.1)
    assert found["moves"] > 1e-3
    assert found["away"] < (1e-4 if exact else 5e-2)  # Adam makes steps of noise


@pytest.fixture(scope="module")
def two(found_of):
    return found_of("plain")


def same_run(found, folder, name):
    assert_close(found["again"], found["figures"], atol=1e-4, rtol=0)
    assert found["again_digests"] == found["digests"]
    for member in NAMES:
        files = [folder / f"{name}{end}" / "model" / member for end in ("", "-again")]
        weights = [next(file.glob("*.safetensors")) for file in files]
        assert_close(load_file(weights[1]), load_file(weights[0]), atol=1e-4, rtol=0)


def test_a_run_that_goes_on_ends_as_the_whole_one(two, folder):
    same_run(two, folder, "plain")
    assert len(set(two["digests"])) == 16
    assert two["cursor"]["batch"] == LONG["train.steps"]
    assert two["cursor"]["places"].keys() == set(NAMES)


def test_every_task_is_learnt_and_evaluated_and_the_best_mean_is_kept(two):
    history = two["history"]
    names = {"intents": "accuracy", "entities": "f1", "numbers": "spearman"}
    points = {name: dict(history[f"validation/{name}.{figure}"]) for name, figure in names.items()}
    means = dict(history["validation/mean"])
    for step, value in means.items():
        assert value == pytest.approx(sum(found[step] for found in points.values()) / 3)
    assert two["best"]["metric"] == "mean"
    assert two["best"]["step"] == max(means, key=lambda step: (means[step], -step))
    assert two["figures"]["held_out_mean"] == pytest.approx(max(means.values()))
    for name in NAMES:
        assert history[f"train/{name}.loss"]
        (_, middle), (_, end) = history[f"validation/{name}.loss"]
        assert end < 0.8 * middle


def test_a_finished_model_has_the_figures_of_the_run(two, folder):
    config = folder / "plain" / "model" / "intents"
    (folder / "as_validation").mkdir()
    (folder / "as_validation" / "validation.parquet").symlink_to(folder / "intents-validation.parquet")
    share = right_share(folder / "as_validation", config)
    assert share == pytest.approx(two["figures"]["held_out_intents.accuracy"])


@pytest.fixture(scope="module")
def one(folder):
    return run(1, folder, "several_levers")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["lora", "bitfit", "bottleneck", "frozen", "head", "gradual", "r_drop", "fgm", "pgd", "freelb", "padded"],
)
def test_levers_work_on_the_shared_encoder(one, folder, name):
    same_run(one[name], folder, name)
    start = load_file(folder / "model" / "model.safetensors")
    if name not in ("frozen", "head"):
        return
    for member in NAMES:
        end = load_file(folder / name / "model" / member / "model.safetensors")
        for key, value in start.items():
            if "layer.0." in key or ("layer.1." in key and name == "head"):
                assert end[f"bert.{key}"].equal(value), key
