"""Folders with an adapter: made by training's own functions, read as if they were models."""

import json
import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification

from raybert.encoder import Encoder
from raybert.encoder.adapted import load_adapted
from raybert.encoder.adapter_folder import way_to
from raybert.encoder.folders import read_folder
from raybert.encoder.loading import quiet_transformers
from tests.encoder.tiny import tiny_model

TEXTS = ["the quick brown fox", "many people", "a", "the world of music and the language of science " * 3]
ALL = [
    *(("prefix", family) for family in ("bert", "roberta")),
    *(("bottleneck", family) for family in ("bert", "distilbert", "modernbert")),
    *(("bitfit", family) for family in ("bert", "mpnet")),
]


def made(folder, name: str, family: str = "bert"):
    """`folder`/base and `folder`/adapter, with weights moved at random; the module as training had it."""
    from raybert.train.adapters import add_adapter, save_adapter

    base = tiny_model(folder / "base", family)
    settings = SimpleNamespace(name=name, rank=4, alpha=8.0, dropout=0.1, target_rank=2, tokens=5, width=6)
    with quiet_transformers(), torch.random.fork_rng():
        torch.manual_seed(0)
        plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=3, dtype=torch.float32)
        model = add_adapter(plain, settings).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter += 0.2 * torch.randn(parameter.shape)
    at = {"name": str(base), "revision": None, "digest": read_folder(base).digest()}
    save_adapter(model, folder / "adapter", {**at, "beside": way_to(str(base), str(folder / "adapter"))})
    for file in base.glob("tokenizer*"):
        shutil.copy(file, folder / "adapter")
    return model


def inputs(folder) -> dict[str, torch.Tensor]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder / "base")
    return tokenizer(TEXTS, padding=True, truncation=True, max_length=40, return_tensors="pt")


@pytest.mark.parametrize(("name", "family"), ALL)
def test_logits_and_vectors_are_those_of_the_trained_module(tmp_path, name, family):
    model = made(tmp_path, name, family)
    seen: list[torch.Tensor] = []
    plain = model.get_base_model() if name == "prefix" else model
    plain.base_model.register_forward_hook(lambda _, __, out: seen.append(out.last_hidden_state))
    given = inputs(tmp_path)
    given.pop("token_type_ids", None)
    with torch.no_grad():
        logits = model(**given).logits
        with quiet_transformers():
            again = load_adapted(AutoModelForSequenceClassification, tmp_path / "adapter", torch.float32)
        torch.testing.assert_close(again(**given).logits, logits, atol=1e-5, rtol=1e-5)
    mask = given["attention_mask"][..., None]
    expected = torch.nn.functional.normalize((seen[0] * mask).sum(1) / mask.sum(1), dim=1).numpy()
    encoder = Encoder.load(tmp_path / "adapter", dtype="float32", max_length=40)
    assert encoder.normalized  # as the base says
    assert encoder.pooling == "mean"
    found = encoder.encode(TEXTS)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.abs(found - Encoder.load(tmp_path / "base", max_length=40).encode(TEXTS)).max() > 0.05
    if name == "bitfit":
        assert encoder.kernels != "transformers"
    else:
        assert (encoder.kernels, encoder.kernels_note) == ("transformers", f"it has a {name} in its layers")


def test_a_prefix_takes_positions(tmp_path):
    made(tmp_path, "prefix")
    with pytest.raises(ValueError, match=r"model\.max_length is 60, but this model has 59 positions"):
        Encoder.load(tmp_path / "adapter", max_length=60)
    Encoder.load(tmp_path / "adapter", max_length=59, dtype="float32").encode(["fox " * 80])


def test_kernels_that_know_no_adapter_are_refused(tmp_path):
    made(tmp_path, "bottleneck")
    with pytest.raises(ValueError, match="not there for this model \\(it has a bottleneck in its layers"):
        Encoder.load(tmp_path / "adapter", kernels="onednn")


def test_the_base_is_found_where_both_were_moved_together(tmp_path):
    made(tmp_path / "here", "bitfit")
    before = Encoder.load(tmp_path / "here" / "adapter", dtype="float32")
    vectors, digest = before.encode(TEXTS), before.digest
    os.rename(tmp_path / "here", tmp_path / "there")
    after = Encoder.load(tmp_path / "there" / "adapter", dtype="float32")
    np.testing.assert_array_equal(after.encode(TEXTS), vectors)
    assert after.digest == digest


def one_line(folder, words: str) -> None:
    with pytest.raises(ValueError, match=words) as error:
        Encoder.load(folder)
    assert "\n" not in str(error.value)


def test_a_base_that_is_missing_or_changed_is_refused(tmp_path):
    made(tmp_path, "bitfit")
    before = read_folder(tmp_path / "adapter").digest()
    tiny_model(tmp_path / "base", seed=1)
    one_line(tmp_path / "adapter", "was trained on other weights than are in .*base now")
    assert read_folder(tmp_path / "adapter").digest() != before
    shutil.rmtree(tmp_path / "base")
    one_line(tmp_path / "adapter", "belongs to the model .*base, which is not there")


def test_weights_that_do_not_fit_are_refused(tmp_path):
    made(tmp_path, "bottleneck")
    record = tmp_path / "adapter" / "raybert_adapter.json"
    was = json.loads(record.read_text())
    for change in ({"width": 7}, {"name": "bitfit"}):
        record.write_text(json.dumps({**was, "settings": {**was["settings"], **change}}))
        one_line(tmp_path / "adapter", "does not fit its base: .*adapter.* differs between them")
    record.write_text("{}")
    one_line(tmp_path / "adapter", r"raybert_adapter\.json cannot be read")
    record.write_text(json.dumps(was))
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    one_line(tmp_path / "adapter", r"holds no adapter_model\.safetensors")


def test_a_head_that_the_base_has_does_not_matter(tmp_path):
    """The base may be a model of another task; the trained head is taken."""
    model = made(tmp_path, "bottleneck")
    with quiet_transformers():
        other = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=7)
        other.save_pretrained(tmp_path / "base")
    record = tmp_path / "adapter" / "raybert_adapter.json"
    was = json.loads(record.read_text())
    was["base"]["digest"] = read_folder(tmp_path / "base").digest()
    record.write_text(json.dumps(was))
    with quiet_transformers():
        again = load_adapted(AutoModelForSequenceClassification, tmp_path / "adapter", torch.float32)
    given = inputs(tmp_path)
    torch.testing.assert_close(again(**given).logits, model(**given).logits, atol=1e-5, rtol=1e-5)


def test_an_adapter_is_not_written_as_sentence_transformers_would(tmp_path):
    made(tmp_path, "bitfit")
    with pytest.raises(ValueError, match="is an adapter, which sentence-transformers cannot read"):
        Encoder.load(tmp_path / "adapter").save(tmp_path / "other")
