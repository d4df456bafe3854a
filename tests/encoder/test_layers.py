"""Packed layers against transformers' own, family by family."""

import json
import shutil

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModel

from raybert.encoder import Encoder
from raybert.encoder.attention import Rows
from raybert.encoder.layers import PackedModel
from raybert.encoder.loading import load_model
from raybert.encoder.tokenizing import Tokenized
from tests.encoder.tiny import FAMILIES, tiny_model


def _both(folder, **settings):
    return [Encoder.load(folder, kernels=kernels, **settings) for kernels in ("auto", "transformers")]


@pytest.mark.parametrize("layers", ["last", "0", "concat:last3"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_give_what_padded_rows_give(family, layers, tiny_folder, texts):
    packed, padded = _both(tiny_folder(family), dtype="float32", layers=layers)
    assert (packed.kernels, padded.kernels) == ("onednn", "transformers")
    difference = packed.encode(texts, batch_tokens=300) - padded.encode(texts, batch_tokens=300)
    assert np.abs(difference).max() < 1e-6


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_torch_computes_the_same(family, tiny_folder, texts):
    folder = tiny_folder(family)
    found = Encoder.load(folder, dtype="float32", kernels="torch").encode(texts)
    assert np.abs(found - Encoder.load(folder, dtype="float32", kernels="onednn").encode(texts)).max() < 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_stays_as_near_to_float32_as_transformers_does(family, tiny_folder, texts):
    folder = tiny_folder(family)
    exact = Encoder.load(folder, dtype="float32").encode(texts)
    packed, padded = ((e.encode(texts) * exact).sum(1) for e in _both(folder, dtype="bfloat16"))
    assert packed.min() > 0.9995
    assert 1 - packed.min() < 1.5 * (1 - padded.min())


@pytest.mark.parametrize("kernels", ["onednn", "torch"])
@pytest.mark.parametrize("activation", ["gelu", "gelu_new", "relu", "silu"])
def test_every_activation(kernels, activation, tiny_folder, texts, tmp_path):
    folder = shutil.copytree(tiny_folder(), tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": activation}))
    found = Encoder.load(folder, dtype="float32", kernels=kernels).encode(texts)
    expected = Encoder.load(folder, dtype="float32", kernels="transformers").encode(texts)
    assert np.abs(found - expected).max() < 1e-6


def test_a_text_without_a_token_gets_zeros(tiny_folder):
    for encoder in _both(tiny_folder(), dtype="float32"):
        ids = Tokenized(np.zeros(0, np.int32), np.array([0, 0]), np.array([False]))
        assert not encoder.encode_ids(ids).any()


def test_a_shorter_bias_put_there_by_another_thread_is_not_taken(tiny_folder):
    class Raced(PackedModel):
        """As if a thread with shorter texts came right after every bias that is kept."""

        @property
        def _bias(self):
            return self.__dict__.get("kept")

        @_bias.setter
        def _bias(self, bias):
            self.__dict__["kept"] = None if bias is None else bias[..., :8, :8]

    model = load_model(tiny_folder("mpnet"), "float32", "cpu", trust_remote_code=False)
    ids, rows = torch.full((30,), 5), Rows(np.array([30]))
    with torch.inference_mode():
        assert torch.equal(Raced.of(model)(ids, rows), PackedModel.of(model)(ids, rows))


def test_without_onednn_torch_computes(tiny_folder, texts, monkeypatch):
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    encoder = Encoder.load(tiny_folder(), dtype="float32")
    assert encoder.kernels == "torch"
    with pytest.raises(ValueError, match="kernels 'onednn' are not there"):
        Encoder.load(tiny_folder(), dtype="float32", kernels="onednn")
    with pytest.raises(ValueError, match="kernels is 'fast'; use auto"):
        Encoder.load(tiny_folder(), kernels="fast")


def test_other_models_go_through_transformers(tmp_path, texts):
    folder = tiny_model(tmp_path / "m")
    config = json.loads((folder / "config.json").read_text())
    # a family that is not in the table of layers
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "megatron-bert"}))
    model = AutoModel.from_config(AutoConfig.from_pretrained(folder), dtype=torch.float32)
    model.save_pretrained(folder)
    encoder = Encoder.load(folder, dtype="float32")
    assert encoder.kernels == "transformers"
    together, alone = encoder.encode(texts), [encoder.encode(text)[0] for text in texts]
    assert np.abs(together - np.stack(alone)).max() < 1e-5
    with pytest.raises(ValueError, match="'torch' are not there for this model \\(megatron-bert\\)"):
        Encoder.load(folder, dtype="float32", kernels="torch")


def test_weights_shared_by_layers_are_kept_once(tiny_folder):
    model = load_model(tiny_folder("albert", layers=4), "float32", "cpu", trust_remote_code=False)
    packed = PackedModel.of(model)
    assert len(packed.layers) == 4
    assert len({id(layer) for layer in packed.layers}) == 1
