"""Encoder: order, batches, families, settings, errors."""

import json
import shutil
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from raybert.encoder import Encoder
from raybert.encoder.tokenizing import Tokenized
from tests.encoder.tiny import FAMILIES, HIDDEN, POSITIONS


@pytest.fixture(scope="module")
def load(tiny_folder):
    """load(family, **tiny options) -> a float32 encoder, made once."""
    made = {}

    def make(family="bert", settings=(), **options):
        key = repr((family, settings, sorted(options.items())))
        if key not in made:
            made[key] = Encoder.load(tiny_folder(family, **options), dtype="float32", **dict(settings))
        return made[key]

    return make


@pytest.mark.parametrize("family", FAMILIES)
def test_a_batch_gives_what_each_text_gives_alone(family, load, texts):
    encoder = load(family)
    together = encoder.encode(texts, batch_tokens=700)
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    assert np.abs(together - alone).max() < 1e-5
    # a random model must tell texts apart, or the line above shows nothing
    assert np.abs(together[:, None] - together[None]).max() > 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_the_folder_tells_the_limit_of_positions(family, tiny_folder, load):
    folder = tiny_folder(family, max_seq_length=None)
    encoder = load(family, max_seq_length=None)
    assert encoder.max_length == POSITIONS
    assert encoder.encode("word " * 500).shape == (1, HIDDEN)
    with pytest.raises(ValueError, match=f"max_length is {POSITIONS + 1}.*{POSITIONS} positions"):
        Encoder.load(folder, max_length=POSITIONS + 1)


def test_order_is_restored_and_equal_texts_are_encoded_once(load, texts, monkeypatch):
    encoder = load()
    seen = []
    monkeypatch.setattr(
        encoder, "encode_ids", lambda t, **k: seen.append(len(t)) or Encoder.encode_ids(encoder, t, **k)
    )
    vectors = encoder.encode([*texts, *reversed(texts)], batch_tokens=300)
    assert seen == [len(texts)]
    assert np.array_equal(vectors[: len(texts)], vectors[len(texts) :][::-1])
    assert np.abs(vectors[:1] - encoder.encode(texts[0])).max() < 1e-5


def test_the_same_call_gives_the_same_bits(load, texts):
    encoder = load("roberta")
    ids = encoder.tokenizer()(texts)
    assert np.array_equal(
        encoder.encode_ids(ids, batch_tokens=200), encoder.encode_ids(ids, batch_tokens=200)
    )


def test_several_threads_give_the_same_vectors_and_leave_torch_as_it_was(load, texts):
    encoder, before = load(), torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = encoder.encode(texts, batch_tokens=100)
        torch.set_num_threads(3)
        together = [encoder.encode(texts, batch_tokens=100) for _ in range(3)]
        assert all(np.array_equal(found, alone) for found in together)
        assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as pool:  # a new thread too
            assert pool.submit(torch.get_num_threads).result() == 3
    finally:
        torch.set_num_threads(before)


def test_no_texts_give_no_vectors(load):
    encoder = load()
    assert encoder.encode([]).shape == (0, HIDDEN)
    assert encoder.encode([], dimensions=8).dtype == np.float32
    assert encoder.encode([], output="tokens") == []
    assert encoder.encode("").shape == (1, HIDDEN)


def test_what_is_no_text_is_named(load):
    with pytest.raises(ValueError, match=r"texts\[1\] is int"):
        load().encode(["a", 3])


def test_tokens_output_pools_to_the_sentence(load, texts):
    encoder = load()
    tokens = encoder.encode(texts, output="tokens", batch_tokens=300)
    lengths = encoder.tokenizer()(texts).lengths
    assert [t.shape for t in tokens] == [(n, HIDDEN) for n in lengths]
    means = np.stack([t.mean(0) for t in tokens])
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    assert np.abs(means - encoder.encode(texts)).max() < 1e-5
    with pytest.raises(ValueError, match="tokens"):
        encoder.encode(texts, output="tokens", dimensions=8)
    with pytest.raises(ValueError, match="output"):
        encoder.encode(texts, output="words")


def test_dimensions_cut_and_normalise_again(load, tiny_folder, texts):
    encoder = load()
    whole, cut = encoder.encode(texts), encoder.encode(texts, dimensions=8)
    expected = whole[:, :8] / np.linalg.norm(whole[:, :8], axis=1, keepdims=True)
    assert np.abs(cut - expected).max() < 1e-6
    fixed = load(settings=(("dimensions", 8),))
    assert (fixed.dimension, fixed.width) == (8, HIDDEN)
    assert np.abs(fixed.encode(texts) - cut).max() < 1e-6
    for wrong in (0, HIDDEN + 1):
        with pytest.raises(ValueError, match=f"dimensions is {wrong}"):
            encoder.encode(texts, dimensions=wrong)
        with pytest.raises(ValueError, match=f"dimensions is {wrong}"):
            Encoder.load(tiny_folder(), dimensions=wrong)


def test_normalize_is_the_folders_the_settings_or_the_calls(load, texts):
    raw = load(normalize=False)
    assert not raw.normalized
    assert load().normalized
    plain = raw.encode(texts)
    assert np.abs(np.linalg.norm(plain, axis=1) - 1).min() > 1e-3
    unit = plain / np.linalg.norm(plain, axis=1, keepdims=True)
    assert np.abs(raw.encode(texts, normalize=True) - unit).max() < 1e-6
    assert np.abs(load(settings=(("normalize", False),)).encode(texts) - plain).max() < 1e-6
    assert np.abs(load(normalize=False, settings=(("normalize", True),)).encode(texts) - unit).max() < 1e-6


def test_prompts(load, tiny_folder, texts):
    prompts = {"query": "query: the ", "passage": "passage: "}
    encoder = load(prompts=prompts, default_prompt_name="query")
    assert (encoder.prompts, encoder.prompt) == (prompts, "query: the ")
    plain = load()
    for call, text in [({}, "query: the "), ({"prompt_name": "passage"}, "passage: "), ({"prompt": ""}, "")]:
        expected = plain.encode([text + t for t in texts])
        assert np.abs(encoder.encode(texts, **call) - expected).max() < 1e-6, call
    assert Encoder.load(tiny_folder(prompts=prompts), prompt_name="passage").prompt == "passage: "
    assert Encoder.load(tiny_folder(prompts=prompts), prompt="own ").prompt == "own "
    with pytest.raises(ValueError, match=r"prompt_name 'nope'.*query, passage"):
        encoder.encode(texts, prompt_name="nope")


def test_a_prompt_that_must_not_count_is_left_out_of_pooling(load, texts):
    prompts = {"q": "query: the "}
    skipping = load(prompts=prompts, default_prompt_name="q", include_prompt=False, normalize=False)
    counting = load(prompts=prompts, default_prompt_name="q", normalize=False)
    count = skipping.tokenizer().prompt_tokens
    tokens = counting.encode(texts, output="tokens")
    expected = np.stack([t[count:].mean(0) for t in tokens])
    assert count == 7  # [CLS] q ##u ##er ##y : the
    assert np.abs(skipping.encode(texts) - expected).max() < 1e-5
    assert np.abs(counting.encode(texts) - expected).max() > 1e-2
    # ids that went through a file have lost the number: it is the default prompt's
    ids = skipping.tokenizer()(texts)
    bare = Tokenized(ids.values, ids.offsets, ids.truncated)
    assert np.array_equal(skipping.encode_ids(bare), skipping.encode_ids(ids))


@pytest.mark.parametrize(
    ("layers", "formula"),
    [
        ("last", lambda s: s[-1]),
        ("-2", lambda s: s[1]),
        ("0", lambda s: s[0]),
        ("sum:last2", lambda s: s[1] + s[2]),
        ("mean:last2", lambda s: (s[1] + s[2]) / 2),
        ("concat:-1,0", lambda s: torch.cat([s[2], s[0]], -1)),
    ],
)
def test_layers(layers, formula, load, tiny_folder):
    from transformers import AutoModel

    encoder = load(settings=(("layers", layers),), normalize=False)
    ids = encoder.tokenizer()(["the quick brown fox"]).ids(0)
    model = AutoModel.from_pretrained(tiny_folder(normalize=False))
    with torch.no_grad():
        states = model(torch.tensor(ids[None].astype(np.int64)), output_hidden_states=True).hidden_states
    expected = formula(states)[0].mean(0).numpy()
    found = encoder.encode("the quick brown fox")[0]
    assert encoder.dimension == len(expected)
    assert np.abs(found - expected).max() < 1e-5


def test_layers_a_model_does_not_have_are_refused_at_once(tiny_folder):
    with pytest.raises(ValueError, match="hidden state 3, but the model has 3"):
        Encoder.load(tiny_folder(), layers="3")
    with pytest.raises(ValueError, match="not understood"):
        Encoder.load(tiny_folder(), layers="best")


def test_dtype_of_computing(tiny_folder, load, texts, monkeypatch):
    from raybert.encoder import loading

    low = Encoder.load(tiny_folder(), dtype="bfloat16")
    found, exact = low.encode(texts), load().encode(texts)
    assert (low.dtype, found.dtype) == ("bfloat16", np.float32)
    assert (found * exact).sum(1).min() > 0.99
    assert np.abs(found - exact).max() > 1e-6  # it did compute in less
    assert np.abs(np.linalg.norm(found, axis=1) - 1).max() < 1e-6  # but normalised in float32
    for has, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(loading, "cpu_has_bfloat16", lambda has=has: has)
        assert Encoder.load(tiny_folder(), device="cpu").dtype == expected


def test_cpu_flags_decide_bfloat16(tmp_path):
    from raybert.encoder.loading import cpu_has_bfloat16

    for flags, expected in [
        ("fpu avx512_bf16", True),
        ("amx_bf16", True),
        ("avx512f amx_int8", False),
        ("", False),
    ]:
        (tmp_path / "cpuinfo").write_text(f"processor: 0\nflags\t\t: {flags}\n")
        assert cpu_has_bfloat16(str(tmp_path / "cpuinfo")) is expected
    assert not cpu_has_bfloat16(str(tmp_path / "absent"))


def test_threads_are_set(tiny_folder):
    before = torch.get_num_threads()
    try:
        Encoder.load(tiny_folder(), threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_plain_folder_warns_and_takes_the_mean(tiny_folder, texts, load):
    with pytest.warns(UserWarning, match="does not say how it pools"):
        encoder = Encoder.load(tiny_folder(st=False), dtype="float32")
    assert (encoder.pooling, encoder.normalized) == ("mean", False)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Encoder.load(tiny_folder(st=False), pooling="cls").pooling == "cls"
    assert (
        np.abs(encoder.encode(texts) - load(normalize=False, max_seq_length=None).encode(texts)).max() < 1e-6
    )


def test_loading_is_quiet(tiny_folder, capfd):
    for family in FAMILIES:
        Encoder.load(tiny_folder(family))
    Encoder.load(tiny_folder("bert", st=False), pooling="cls")
    printed = capfd.readouterr()
    assert (printed.out, printed.err) == ("", "")


def test_ids_longer_than_the_model_are_refused(load):
    encoder = load()
    long = Tokenized(np.ones(100, np.int32), np.array([0, 100]), np.array([False]))
    with pytest.raises(ValueError, match="100 tokens exceeds max_length 48"):
        encoder.encode_ids(long)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "middle"}, "pooling 'middle'"),
        ({"normalize": "yes"}, "model.normalize is 'yes'"),
        ({"dtype": "int4"}, "model.dtype is 'int4'"),
        ({"device": "tpu"}, "device is 'tpu'"),
        ({"max_length": 2}, "max_length is 2"),
        ({"revision": "main"}, "model.revision"),
        ({"prompt_name": "q"}, "model.prompt_name 'q'"),
    ],
)
def test_wrong_settings_are_one_line_naming_the_setting(settings, message, tiny_folder):
    with pytest.raises(ValueError, match=message) as caught:
        Encoder.load(tiny_folder(), **settings)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name", ["nobody/no-such-model", "no-such-model", "/no/such/folder", "./none", "a/b/c"]
)
def test_an_unknown_name_is_one_line(name, monkeypatch):
    with pytest.raises(ValueError, match=r"model\.name") as caught:
        Encoder.load(name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folders_that_must_not_be_loaded(tiny_folder, tmp_path):
    def broken(name, change):
        folder = shutil.copytree(tiny_folder(), tmp_path / name)
        change(folder)
        with pytest.raises(ValueError) as caught:  # noqa: PT011 (each message is checked by the caller)
            Encoder.load(folder)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    def config(folder, **changes):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    def module(folder, name):
        path = folder / "modules.json"
        path.write_text(path.read_text().replace("sentence_transformers.models.Normalize", name))

    pickled = broken("bin", lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"))
    assert "pytorch_model.bin" in pickled
    assert "save_pretrained" in pickled
    assert "no model.safetensors" in broken("weightless", lambda f: (f / "model.safetensors").unlink())
    foreign = {"AutoModel": "m.M", "AutoConfig": "m.C"}
    assert "model.trust_remote_code" in broken(
        "code", lambda f: config(f, model_type="own", auto_map=foreign)
    )
    assert "does not know model_type 'own'" in broken("unknown", lambda f: config(f, model_type="own"))
    assert "'sentence_transformers.models.CNN'" in broken(
        "cnn", lambda f: module(f, "sentence_transformers.models.CNN")
    )
    assert "'evil.Normalize'" in broken("foreign", lambda f: module(f, "evil.Normalize"))
    assert "neither modules.json nor config.json" in broken(
        "empty", lambda f: [x.unlink() for x in f.glob("*.json")]
    )
    assert "lack" in broken("deeper", lambda f: config(f, num_hidden_layers=3))


def test_digest_is_of_what_decides_vectors(tiny_folder, tmp_path):
    from raybert.encoder.folders import read_folder

    source = tiny_folder(dense=12)
    one = Encoder.load(source).digest
    moved = shutil.copytree(source, tmp_path / "moved")
    (moved / "README.md").write_text("another")
    assert Encoder.load(moved).digest == one
    assert len(one) == 64
    deciding = ["model.safetensors", "tokenizer.json", "tokenizer_config.json", "config.json", "modules.json"]
    deciding += ["1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors"]
    deciding += ["sentence_bert_config.json", "config_sentence_transformers.json"]
    for i, name in enumerate(deciding):
        folder = shutil.copytree(source, tmp_path / str(i))
        with (folder / name).open("ab") as file:
            file.write(b" ")
        assert read_folder(folder).digest() != one, name


def test_weights_in_shards_and_in_a_folder_of_their_own(tiny_folder, load, texts, tmp_path):
    from transformers import AutoModel

    folder = shutil.copytree(tiny_folder(), tmp_path / "model")
    inner = folder / "0_Transformer"
    inner.mkdir()
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "sentence_bert_config.json"):
        (folder / name).rename(inner / name)
    (folder / "model.safetensors").unlink()
    AutoModel.from_pretrained(tiny_folder()).save_pretrained(inner, max_shard_size="20KB")
    assert len(list(inner.glob("*.safetensors"))) > 1
    modules = folder / "modules.json"
    modules.write_text(modules.read_text().replace('"path": ""', '"path": "0_Transformer"'))
    encoder = Encoder.load(folder, dtype="float32")
    assert np.array_equal(encoder.encode(texts), load().encode(texts))
    encoder.save(tmp_path / "saved")
    assert np.array_equal(
        Encoder.load(tmp_path / "saved", dtype="float32").encode(texts), load().encode(texts)
    )


def test_a_cached_hub_model_is_found_with_its_commit(tiny_folder, load, texts, tmp_path, monkeypatch):
    from huggingface_hub import constants

    commit = "0123456789" * 4
    cached = tmp_path / "models--some--model"
    shutil.copytree(tiny_folder(), cached / "snapshots" / commit)
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text(commit)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    encoder = Encoder.load("some/model", dtype="float32")
    assert (encoder.name, encoder.revision, encoder.digest) == ("some/model", commit, load().digest)
    assert np.array_equal(encoder.encode(texts), load().encode(texts))
    with pytest.raises(ValueError, match="'some/model' at revision 'v2'"):
        Encoder.load("some/model", revision="v2")


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    from tests.encoder.tiny import tiny_model

    folder = tiny_model(tmp_path / "model")
    for file in folder.glob("*token*"):
        file.unlink()
    for file in folder.glob("vocab*"):
        file.unlink()
    with pytest.raises(ValueError, match="has no tokenizer"):
        Encoder.load(folder)
