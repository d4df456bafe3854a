"""predict, evaluate and embed load a folder of an adapter as they load a model: what a worker does, in this process."""

import shutil

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from raybert.config import EmbedConfig, PredictConfig, load
from raybert.config.serving import ServedModelSettings
from raybert.resolve import load_as_resolved as load_encoder
from raybert.resolve_head import load_as_resolved, resolve_head
from raybert.serve.loading import load_engine
from tests.encoder.test_adapted import TEXTS, inputs, made
from tests.encoder.tiny import tiny_model
from tests.heads import sequences


def settings(folder) -> dict[str, str]:
    names = {"model.name": str(folder / "adapter"), "data.path": "x", "output.path": "y"}
    return {**names, "model.dtype": "float32", "model.max_length": 40}


@pytest.mark.parametrize("name", ["prefix", "bottleneck", "bitfit"])
def test_predictions_are_those_of_the_trained_module(tmp_path, name):
    model = made(tmp_path, name)
    config = load(PredictConfig, settings=settings(tmp_path))
    resolved, text = resolve_head(config, 1)
    assert resolved["padded"] == (name == "prefix")
    assert resolved["labels"] == ["LABEL_0", "LABEL_1", "LABEL_2"]
    tokenizer = Tokenizer.from_str(text)
    tokenizer.no_padding()
    tokenizer.enable_truncation(40)
    ids = [encoding.ids for encoding in tokenizer.encode_batch(TEXTS)]
    lengths = np.array([len(row) for row in ids])
    examples = sequences(np.concatenate(ids).astype(np.int32), lengths, lengths.astype(np.int32))
    found = load_as_resolved(config.model, resolved)(examples)["logits"]
    with torch.no_grad():
        expected = model(**inputs(tmp_path)).logits.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(found, axis=0).min() > 1e-3


@pytest.mark.parametrize("name", ["prefix", "bottleneck", "bitfit"])
def test_a_service_answers_with_the_head_of_the_adapter(tmp_path, name):
    model = made(tmp_path, name)
    given = {"model.name": str(tmp_path / "adapter"), "model.dtype": "float32", "workers.cpus": 1}
    engine = load_engine(load(ServedModelSettings, settings=given))
    assert engine.task == "classification"
    prepared = engine.tokenize(TEXTS, engine.way(None))
    (found,) = engine.run(engine.way(None), [(prepared, 0, len(TEXTS))])
    with torch.no_grad():
        expected = model(**inputs(tmp_path)).logits.numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_workers_refuse_a_base_that_changed_meanwhile(tmp_path):
    made(tmp_path, "bitfit")
    config = load(PredictConfig, settings=settings(tmp_path))
    resolved, _ = resolve_head(config, 1)
    tiny_model(tmp_path / "base", seed=1)
    with pytest.raises(
        ValueError, match=r"the weights of .*adapter on this worker .* are not those of the plan"
    ):
        load_as_resolved(config.model, resolved)
    with pytest.raises(ValueError, match="was trained on other weights than are in") as error:
        resolve_head(config, 1)
    assert "\n" not in str(error.value)
    shutil.rmtree(tmp_path / "base")
    with pytest.raises(ValueError, match="which is not there") as error:
        resolve_head(config, 1)
    assert "\n" not in str(error.value)


def test_a_prefix_leaves_fewer_positions(tmp_path):
    made(tmp_path, "prefix")
    with pytest.raises(ValueError, match=r"model\.max_length=60, but .* takes 59 tokens"):
        resolve_head(load(PredictConfig, settings={**settings(tmp_path), "model.max_length": 60}), 1)


def test_embedding_says_why_kernels_are_slow(tmp_path):
    from raybert.resolve import resolve_here

    made(tmp_path, "bottleneck")
    config = load(EmbedConfig, settings=settings(tmp_path))
    resolved, _ = resolve_here(config, 1, [])
    assert resolved["kernels"] == "transformers"
    assert resolved["kernels_note"] == "it has a bottleneck in its layers"
    encoder = load_encoder(config.model, resolved)
    assert encoder.encode(TEXTS).shape == (4, 32)
