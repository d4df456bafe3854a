"""Token ids are the model's own; nothing here costs torch."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

from raybert.encoder import tokenizing
from raybert.encoder.tokenizing import TextTokenizer
from tests.encoder.tiny import FAMILIES, _tokenizer


def _json(family: str) -> str:
    return _tokenizer(family)[0].to_str()


def test_tokenizing_and_the_rest_import_neither_torch_nor_transformers():
    code = (
        "import sys\n"
        "import raybert.encoder\n"
        "from raybert.encoder.tokenizing import TextTokenizer\n"
        "from raybert.encoder import batching, chunking, folders, hub, quantizing\n"
        "bad = {'torch', 'transformers', 'ray', 'pyarrow'} & set(sys.modules)\n"
        "assert not bad, bad\n"
        "from raybert.encoder import Encoder\n"
        "assert 'torch' in sys.modules and not {'ray', 'pyarrow.dataset'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("prompt", ["", "query: "])
def test_ids_are_those_of_sentence_transformers(family, prompt, tiny_folder, texts):
    from sentence_transformers import SentenceTransformer

    from raybert.encoder import Encoder

    folder = tiny_folder(family)
    tokenized = Encoder.load(folder, prompt=prompt).tokenizer()(texts)
    theirs = SentenceTransformer(str(folder), device="cpu").preprocess(texts, prompt=prompt or None)
    for i in range(len(texts)):
        expected = theirs["input_ids"][i][theirs["attention_mask"][i].bool()].numpy()
        assert np.array_equal(tokenized.ids(i), expected), texts[i]


def test_do_lower_case_is_followed(tiny_folder):
    from sentence_transformers import SentenceTransformer

    from raybert.encoder import Encoder

    text = "UPPER lower MiXeD"
    folder = tiny_folder("roberta", do_lower_case=True)
    found = Encoder.load(folder).tokenizer()([text]).ids(0)
    expected = SentenceTransformer(str(folder), device="cpu").preprocess([text])["input_ids"][0].numpy()
    assert np.array_equal(found, expected)
    assert not np.array_equal(found, Encoder.load(tiny_folder("roberta")).tokenizer()([text]).ids(0))


@pytest.mark.parametrize("side", ["right", "left"])
def test_truncation_keeps_special_tokens_and_is_told(side):
    tokenizer = TextTokenizer(_json("bert"), max_length=6, truncation_side=side)
    found = tokenizer(["the of and to", "the of and to in", ""])
    whole = TextTokenizer(_json("bert"), max_length=50)(["the of and to in"]).ids(0)
    assert found.truncated.tolist() == [False, True, False]
    assert found.lengths.tolist() == [6, 6, 2]
    cut = np.delete(whole, -2 if side == "right" else 1)
    assert np.array_equal(found.ids(1), cut)
    assert (found.values.dtype, found.offsets.dtype, found.truncated.dtype) == (np.int32, np.int64, bool)


def test_many_texts_are_more_than_one_call(monkeypatch, texts):
    whole = TextTokenizer(_json("bert"), max_length=16)(texts)
    monkeypatch.setattr(tokenizing, "TEXTS_PER_CALL", 7)
    parts = TextTokenizer(_json("bert"), max_length=16)(texts)
    assert np.array_equal(whole.values, parts.values)
    assert np.array_equal(whole.offsets, parts.offsets)
    none = TextTokenizer(_json("bert"), max_length=16)([])
    assert (len(none), none.values.dtype, none.offsets.tolist()) == (0, np.int32, [0])


def test_pickled_it_is_the_same(texts):
    tokenizer = TextTokenizer(_json("roberta"), max_length=16, prompt="query: ")
    again = pickle.loads(pickle.dumps(tokenizer))
    assert np.array_equal(tokenizer(texts).values, again(texts).values)
    assert (again.prompt, again.max_length, again.prompt_tokens) == ("query: ", 16, tokenizer.prompt_tokens)


def test_the_files_own_truncation_and_padding_are_ignored():
    own = _tokenizer("bert")[0]
    own.enable_truncation(4)
    own.enable_padding(length=40)
    assert TextTokenizer(own.to_str(), max_length=16)(["the of and to in"]).lengths.tolist() == [7]


def test_windows_give_the_content_tokens_as_characters():
    spans = TextTokenizer(_json("bert"), max_length=4, prompt="query: ").windows("The  looked, of")
    pieces = [
        ("The  looked, of"[s:e], w)
        for s, e, w in zip(spans.starts, spans.ends, spans.word_start, strict=True)
    ]
    assert pieces[:3] == [("The", True), ("l", True), ("o", False)]
    assert [piece for piece, first in pieces if first] == ["The", "l", ",", "of"]
    assert "".join(piece for piece, _ in pieces) == "Thelooked,of"
    assert TextTokenizer(_json("bert"), max_length=4).count("the of and to in") == 5


def test_wrong_settings():
    with pytest.raises(ValueError, match="at least 3"):
        TextTokenizer(_json("bert"), max_length=2)
    with pytest.raises(ValueError, match="truncation_side"):
        TextTokenizer(_json("bert"), max_length=8, truncation_side="middle")


def test_a_tokenizer_written_in_python_gives_the_same_shape():
    from transformers import CanineTokenizer

    from raybert.encoder.tokenizing import SlowTokenizer

    own = CanineTokenizer()
    tokenizer = SlowTokenizer(own, max_length=6, prompt="q:")
    found = pickle.loads(pickle.dumps(tokenizer))(["ab", "abcde", ""])
    assert found.lengths.tolist() == [6, 6, 4]
    assert found.truncated.tolist() == [False, True, False]
    assert found.ids(0).tolist() == own("q:ab")["input_ids"]
    assert found.prompt_tokens == 3  # [CLS] q :
    with pytest.raises(ValueError, match="chunk"):
        tokenizer.windows("ab")
