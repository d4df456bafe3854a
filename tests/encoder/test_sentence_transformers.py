"""The same vectors as the real sentence-transformers, reading its folders and writing them."""

import json
import random

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer

from raybert.encoder import Encoder
from tests.encoder.tiny import FAMILIES, HIDDEN

BOTH = [{"dialect": "old"}, {"dialect": "new"}]


def theirs(folder, texts, **options) -> np.ndarray:
    return SentenceTransformer(str(folder), device="cpu").encode(texts, **options)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(family, tiny_folder, texts):
    folder = tiny_folder(family)
    assert np.abs(Encoder.load(folder, dtype="float32").encode(texts) - theirs(folder, texts)).max() < 1e-5


@pytest.mark.parametrize("dialect", ["old", "new"])
@pytest.mark.parametrize(
    "pooling",
    ["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "last", ("cls", "mean")],
)
def test_every_pooling_in_both_dialects(pooling, dialect, tiny_folder, texts):
    folder = tiny_folder(pooling=pooling, dialect=dialect, normalize=False)
    encoder = Encoder.load(folder, dtype="float32")
    assert encoder.pooling == (pooling if isinstance(pooling, str) else "+".join(pooling))
    assert np.abs(encoder.encode(texts) - theirs(folder, texts)).max() < 1e-5


@pytest.mark.parametrize("dialect", ["old", "new"])
@pytest.mark.parametrize("normalize", [True, False])
def test_dense(dialect, normalize, tiny_folder, texts):
    folder = tiny_folder(dense=12, dialect=dialect, normalize=normalize)
    encoder = Encoder.load(folder, dtype="float32")
    assert (encoder.dimension, encoder.normalized) == (12, normalize)
    assert np.abs(encoder.encode(texts) - theirs(folder, texts)).max() < 1e-5
    with pytest.raises(ValueError, match="Dense module takes 32 numbers, but pooling gives 64"):
        Encoder.load(folder, pooling="cls+mean")


def test_modules_written_by_sentence_transformers_itself(tiny_folder, texts, tmp_path):
    from sentence_transformers.sentence_transformer import modules

    model = SentenceTransformer(str(tiny_folder(normalize=False)), device="cpu")
    torch.manual_seed(0)
    norm = modules.LayerNorm(HIDDEN)
    norm.norm.weight.data.uniform_(0.5, 2)
    model.append(norm)
    model.append(modules.Dropout(0.5))
    model.append(modules.Normalize())
    model.append(modules.Dense(HIDDEN, 10, bias=False, activation_function=torch.nn.Identity()))
    model.append(modules.Dense(10, 6, activation_function=torch.nn.GELU(), use_residual=True))
    model.save(str(tmp_path))
    encoder = Encoder.load(tmp_path, dtype="float32")
    assert (encoder.dimension, encoder.normalized) == (6, False)
    assert np.abs(encoder.encode(texts) - theirs(tmp_path, texts)).max() < 1e-5


def test_an_activation_that_is_not_listed_is_refused(tiny_folder, tmp_path):
    import shutil

    folder = shutil.copytree(tiny_folder(dense=12), tmp_path / "model")
    config = folder / "2_Dense" / "config.json"
    config.write_text(config.read_text().replace("torch.nn.modules.activation.Tanh", "os.system"))
    with pytest.raises(ValueError, match=r"activation 'os\.system'"):
        Encoder.load(folder)
    (folder / "2_Dense" / "model.safetensors").rename(folder / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no model\.safetensors"):
        Encoder.load(folder)


def test_prompts_and_left_out_prompts(tiny_folder, texts):
    prompts = {"query": "query: the ", "passage": "passage: "}
    for include in (True, False):
        folder = tiny_folder(prompts=prompts, default_prompt_name="query", include_prompt=include)
        encoder = Encoder.load(folder, dtype="float32")
        assert np.abs(encoder.encode(texts) - theirs(folder, texts)).max() < 1e-5
        found = encoder.encode(texts, prompt_name="passage")
        assert np.abs(found - theirs(folder, texts, prompt_name="passage")).max() < 1e-5


SAVED = [
    ("bert", {}, {}),
    ("roberta", {"pooling": "cls", "normalize": False}, {}),
    ("xlm-roberta", {"dialect": "new"}, {"max_length": 20}),
    ("distilbert", {"pooling": ("cls", "mean")}, {}),
    ("mpnet", {"dense": 12}, {"dimensions": 7}),
    ("electra", {"pooling": "last"}, {"normalize": False, "dimensions": 9}),
    ("albert", {"st": False}, {"pooling": "max", "normalize": True}),
    ("modernbert", {"pooling": "weightedmean", "do_lower_case": True}, {"prompt": "query: "}),
    ("bert", {"prompts": {"q": "the "}, "include_prompt": False, "dialect": "new"}, {"prompt_name": "q"}),
]


@pytest.mark.parametrize(("family", "options", "settings"), SAVED)
def test_a_saved_folder_gives_the_same_vectors(family, options, settings, tiny_folder, texts, tmp_path):
    encoder = Encoder.load(tiny_folder(family, **options), dtype="float32", **settings)
    expected = encoder.encode(texts)
    encoder.save(tmp_path / "saved")
    assert np.abs(theirs(tmp_path / "saved", texts) - expected).max() < 1e-5
    again = Encoder.load(tmp_path / "saved", dtype="float32")
    assert np.abs(again.encode(texts) - expected).max() < 1e-5
    assert (again.dimension, again.normalized, again.prompt) == (
        encoder.dimension,
        encoder.normalized,
        encoder.prompt,
    )
    entries = json.loads((tmp_path / "saved" / "modules.json").read_text())
    assert all(entry["type"].startswith("sentence_transformers.models.") for entry in entries)
    assert any(json.loads((tmp_path / "saved" / "1_Pooling" / "config.json").read_text()).values())


@pytest.mark.parametrize("stored", ["float32", "float16"])
def test_saving_keeps_the_precision_of_the_weights(stored, tiny_folder, tmp_path):
    from safetensors.torch import load_file

    source = tiny_folder(dtype=stored)
    Encoder.load(source, dtype="bfloat16").save(tmp_path / "saved")
    before, after = (
        load_file(source / "model.safetensors"),
        load_file(tmp_path / "saved" / "model.safetensors"),
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[k], after[k]) and after[k].dtype == getattr(torch, stored) for k in before)


def test_what_the_format_cannot_say_is_not_saved(tiny_folder, tmp_path):
    with pytest.raises(ValueError, match=r"model\.layers 'sum:last2' cannot be written"):
        Encoder.load(tiny_folder(), layers="sum:last2").save(tmp_path / "a")
    with pytest.raises(ValueError, match="'cls\\+mean' can"):
        Encoder.load(tiny_folder(), pooling="mean+cls").save(tmp_path / "b")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(ValueError, match="not empty"):
        Encoder.load(tiny_folder()).save(tmp_path / "full")
    assert not (tmp_path / "a").exists()


def varied(n: int) -> list[str]:
    draw = random.Random(1)
    words = [
        "Rivers",
        "carry",
        "unbelievable",
        "42,000",
        "tons",
        "naïve",
        "machine-learning",
        "it's",
        "of",
        "☕",
        "中文",
    ]
    return [" ".join(draw.choices(words, k=draw.randint(1, 220))) + draw.choice(".!? ") for _ in range(n)]


@pytest.fixture(scope="module")
def real(minilm, texts):
    model = SentenceTransformer(minilm, device="cpu")
    given = texts + varied(60)
    return model, given, model.encode(given)


def test_the_real_minilm_in_float32(real, minilm):
    model, given, expected = real
    encoder = Encoder.load(minilm, dtype="float32")
    assert (encoder.dimension, encoder.max_length, encoder.pooling, encoder.normalized) == (
        384,
        256,
        "mean",
        True,
    )
    features = model.preprocess(given)
    tokenized = encoder.tokenizer()(given)
    for i in range(len(given)):
        assert np.array_equal(
            tokenized.ids(i), features["input_ids"][i][features["attention_mask"][i].bool()].numpy()
        )
    assert tokenized.truncated.sum() > 5
    assert np.abs(encoder.encode_ids(tokenized) - expected).max() < 1e-5


def test_the_real_minilm_in_bfloat16(real, minilm):
    _, given, expected = real
    found = Encoder.load(minilm, dtype="bfloat16").encode(given)
    assert (found * expected).sum(1).min() >= 0.9995
