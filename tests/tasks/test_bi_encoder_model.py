"""Vectors in training are those of the Encoder; a finished folder gives them to every reader."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from tokenizers import Tokenizer
from torch.testing import assert_close
from transformers import AutoModel, AutoTokenizer

from raybert.config.finetune import FinetuneModelSettings
from raybert.config.pair_tasks import RetrievalSettings, SimilaritySettings
from raybert.encoder.encoder import Encoder
from raybert.encoder.folders import read_folder
from raybert.tasks import retrieval, retrieval_model, similarity, similarity_model
from raybert.tasks.bi_encoder_model import finish
from raybert.tasks.heads import Head
from raybert.train.example_stream import ExampleMicro, nothing
from raybert.train.packed import pack
from raybert.train.task_models import make_plain
from tests.encoder.tiny import tiny_model
from tests.tasks import model_fakes as fakes

ROWS = [
    {"query": "the quick fox", "positive": "some other people would look into this", "score": 1.0},
    {"query": "music", "positive": "the river of the city", "score": 0.0},
    {"query": "a long time ago", "positive": "data", "score": 0.5},
]
PROMPTS = {"query": "find: ", "document": "the text "}


def trained(folder: Path, settings=None, **options):
    """A model to train that begins with a folder, and examples of its task."""
    settings = settings or RetrievalSettings()
    settings = retrieval.settle(settings, read_folder(folder), {})
    given = FinetuneModelSettings(name=str(folder))
    model = retrieval_model.Model(
        make_plain(given, retrieval_model, [], settings), settings, **options
    ).eval()
    tok = Tokenizer.from_file(str(folder / "tokenizer.json"))
    examples, _ = retrieval.prepare(pa.Table.from_pylist(ROWS), tok, [], settings, max_length=48)
    return model, settings, examples


def vectors_of(model, examples):
    """In the order of the examples."""
    order = np.argsort(examples.ids.lengths, kind="stable")
    with torch.no_grad():
        found = model(pack(ExampleMicro(examples))).numpy()
    back = np.empty_like(found)
    back[order] = found
    return back / np.linalg.norm(back, axis=1, keepdims=True)


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("bert", {}),
        ("bert", {"pooling": "cls"}),
        ("roberta", {"pooling": ["cls", "mean"]}),
        ("mpnet", {"pooling": "max"}),
        ("modernbert", {}),
        ("distilbert", {"dense": 12, "normalize": False}),
    ],
)
def test_vectors_are_those_of_the_encoder(tmp_path, family, options):
    folder = tiny_model(tmp_path / "m", family, prompts=PROMPTS, **options)
    model, settings, examples = trained(folder)
    found = vectors_of(model, examples)
    encoder = Encoder.load(folder, dtype="float32")
    for role, name in ((0, "query"), (1, "document")):
        texts = [row["query" if role == 0 else "positive"] for row in ROWS]
        expected = encoder.encode(texts, prompt_name=name, normalize=True)
        np.testing.assert_allclose(found[examples.targets["role"] == role], expected, atol=2e-6)
    head = Head("retrieval", settings, [])
    predictor = retrieval_model.Predictor(folder, head, dtype="float32", device="cpu", batch_tokens=64)
    given = predictor(examples)["vectors"]
    given /= np.linalg.norm(given, axis=1, keepdims=True)
    np.testing.assert_allclose(given, found, atol=2e-6)
    assert predictor(examples.take(np.zeros(0, int)))["vectors"].shape == (0, found.shape[1])
    assert predictor.computed_tokens(np.array([3, 5])) >= 8


def test_padded_batches_are_the_same(tmp_path):
    folder = tiny_model(tmp_path / "m")
    packed, padded = (trained(folder, padded=padded) for padded in (False, True))
    assert (packed[0].padded, padded[0].padded) == (False, True)
    np.testing.assert_allclose(vectors_of(*packed[::2]), vectors_of(*padded[::2]), atol=2e-6)


def test_a_moved_embedding_changes_the_loss_as_its_gradient_says(tmp_path):
    folder = tiny_model(tmp_path / "m")
    settings = SimilaritySettings(first="query", second="positive", loss="cosine", low=0, high=1)
    plain = make_plain(FinetuneModelSettings(name=str(folder)), similarity_model, [], settings)
    model = similarity_model.Model(plain, settings).eval()
    tok = Tokenizer.from_file(str(folder / "tokenizer.json"))
    examples, _ = similarity.prepare(pa.Table.from_pylist(ROWS), tok, [], settings, max_length=48)
    change, expected = fakes.change_of_loss(model, examples)
    assert change == pytest.approx(expected, rel=0.05)
    sums = model(pack(nothing(examples)))
    assert sums.loss.item() == 0


def test_what_no_vector_comes_from_is_not_trained(tmp_path):
    model, _, examples = trained(tiny_model(tmp_path / "m", dense=12))
    model.train()(pack(ExampleMicro(examples))).sum().backward()
    still = {name for name, p in model.named_parameters() if p.grad is None}
    assert still == {"plain.pooler.dense.weight", "plain.pooler.dense.bias"}


@pytest.mark.parametrize("kind", ["bare", "dense", "mean"])
def test_a_finished_folder_is_read_by_all(tmp_path, kind):
    options = {
        "bare": {"st": False},
        "dense": {"dense": 12, "pooling": "cls"},
        "mean": {"prompts": {"note": "x "}},
    }
    folder = tiny_model(tmp_path / "m", **options[kind])
    width = 12 if kind == "dense" else 32
    asked = RetrievalSettings(query_prompt="find: ", document_prompt="", dimensions=[width, 8])
    model, settings, examples = trained(folder, asked)
    with torch.no_grad():
        for parameter in model.plain.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    made = tmp_path / "made"
    model.plain.save_pretrained(made)
    AutoTokenizer.from_pretrained(folder).save_pretrained(made)
    finish(str(made), FinetuneModelSettings(name=str(folder)), settings, 40)

    found = read_folder(made)
    assert found.normalized
    assert found.pooling == ("cls" if kind == "dense" else "mean")
    assert found.max_seq_length == 40
    assert found.prompts == {"query": "find: ", **({"note": "x "} if kind == "mean" else {})}
    config = json.loads((made / "config_sentence_transformers.json").read_text())
    assert config["similarity_fn_name"] == "cosine"
    assert json.loads((made / "config.json").read_text())["matryoshka_dimensions"] == [width, 8]
    expected = vectors_of(model, examples)[examples.targets["role"] == 0]
    queries = [row["query"] for row in ROWS]
    ours = Encoder.load(made, dtype="float32").encode(queries, prompt_name="query")
    np.testing.assert_allclose(ours, expected, atol=2e-6)
    st = pytest.importorskip("sentence_transformers").SentenceTransformer(str(made), device="cpu")
    np.testing.assert_allclose(st.encode(queries, prompt_name="query"), expected, atol=2e-6)
    assert st.similarity_fn_name == "cosine"
    assert_close(AutoModel.from_pretrained(made).state_dict(), model.plain.state_dict(), atol=0, rtol=0)


def test_predict_and_decode_agree_with_the_encoder(tmp_path):
    folder = tiny_model(tmp_path / "m")
    settings = similarity.settle(
        SimilaritySettings(first="query", second="positive"), read_folder(folder), {}
    )
    tok = Tokenizer.from_file(str(folder / "tokenizer.json"))
    examples, _ = similarity.prepare(pa.Table.from_pylist(ROWS), tok, None, settings, max_length=48)
    head = Head("similarity", settings, [])
    predictor = similarity_model.Predictor(folder, head, dtype="float32", device="cpu", batch_tokens=64)
    found = similarity.decode(predictor(examples), examples, [], settings)
    encoder = Encoder.load(folder, dtype="float32")
    first, second = (encoder.encode([row[name] for row in ROWS]) for name in ("query", "positive"))
    assert [row["score"] for row in found] == pytest.approx((first * second).sum(1).tolist(), abs=2e-6)
