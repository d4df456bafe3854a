"""Every lever by itself on a toy table: it trains, tells what it trains, goes on exactly, and its folder is read back."""

import numpy as np
import pytest

from raybert.config.finetune import ClassificationSettings
from raybert.tasks.heads import Head
from raybert.tasks.predictor_model import Predictor
from raybert.tasks.storage import from_bytes
from tests.train.lever_runs import LEVERS, RESUMED, STEPS
from tests.train.ranks import run

HEAD = 32 * 32 + 32 + 2 * 32 + 2  # the pooler and two classes
LAYER = 4 * (32 * 32 + 32) + (32 * 64 + 64) + (64 * 32 + 32) + 2 * 64
TRAINED = {
    "freeze_all": HEAD,
    "lora": HEAD + 2 * 2 * 2 * 4 * 32,  # layers, queries and values, A and B
    "adalora": HEAD + 2 * (4 * (2 * 4 * 32 + 4) + 2 * (4 * 32 + 4 * 64 + 4)),
    "prefix": HEAD + 3 * 2 * 2 * 32,  # tokens, layers, keys and values
    "bottleneck": HEAD + 2 * 2 * (2 * 4 * 32 + 4 + 32) + 5 * 2 * 32,  # and the norms
    "bitfit": HEAD + 32 + 2 * (4 * 32 + 32 + 64 + 32 + 32),
}
KEPT_APART = ("prefix", "bottleneck", "bitfit")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("levers")


@pytest.fixture(scope="module")
def found(folder):
    return run(1, folder, "levers", timeout=900)


@pytest.mark.parametrize("name", [name for name in LEVERS if name != "patience"])
def test_it_trains(found, name):
    assert found[name]["figures"]["steps"] == LEVERS[name].get("train.steps", STEPS)
    losses = found[name]["losses"]
    assert np.mean(losses[-4:]) < 0.95 * losses[0]


@pytest.mark.parametrize("name", RESUMED)
def test_a_run_that_goes_on_ends_as_the_whole_one(found, name):
    assert found[name]["again"] == pytest.approx(found[name]["figures"], abs=1e-4)


@pytest.mark.parametrize("name", LEVERS)
def test_it_tells_what_it_trains(found, folder, name):
    figures, full = found[name]["figures"], found["plain"]["figures"]["parameters"]
    trained = figures["trained_parameters"]
    if name in TRAINED:
        assert trained == TRAINED[name]
    elif name == "freeze_layers":
        assert trained == full - LAYER
    elif name == "freeze_embeddings":
        assert trained == HEAD + 2 * LAYER
    else:
        assert trained == figures["parameters"]
    line = f"{trained:,} of {figures['parameters']:,} parameters"
    assert f"{line} are trained" in found[name]["lines"]
    assert f"{line} trained" in (folder / name / "model" / "README.md").read_text()


@pytest.mark.parametrize("name", LEVERS)
def test_the_finished_model_is_plain_or_an_adapter(found, name):
    files, apart = found[name]["files"], name in KEPT_APART
    assert set(files) >= {"README.md", "tokenizer.json", "config.json"}
    assert ("model.safetensors" in files) != apart
    assert ("adapter_model.safetensors" in files) == apart


@pytest.mark.parametrize("name", ["plain", "lora", "adalora", *KEPT_APART])
def test_predictions_have_the_figures_of_the_run(found, folder, name):
    head = Head("classification", ClassificationSettings(), ["being", "place"])
    predictor = Predictor(folder / name / "model", head, dtype="float32", device="cpu", batch_tokens=512)
    assert predictor.padded == (name == "prefix")
    examples = from_bytes((folder / name / "_raybert" / "examples" / "validation.parquet").read_bytes())
    right = predictor(examples)["logits"].argmax(1) == examples.targets["labels"]
    assert right.mean() == pytest.approx(found[name]["figures"]["held_out_accuracy"])


def test_elastic_weights_hold_what_was_known(found, folder):
    """With more strength the model stays nearer to where it began."""
    from safetensors.torch import load_file

    start = load_file(folder / "plain" / "model" / "model.safetensors")
    held = load_file(folder / "ewc" / "model" / "model.safetensors")
    kept = load_file(folder / "ewc" / "_raybert" / "ewc.safetensors")
    for name, value in start.items():
        assert np.array_equal(kept[f"anchor/plain.{name}"], value)
    assert any((held[name] - value).abs().max() > 1e-3 for name, value in start.items())


def test_a_run_without_progress_stops(found):
    assert found["patience"]["figures"]["steps"] < STEPS
    assert "without a better one" in found["patience"]["lines"][-1]
