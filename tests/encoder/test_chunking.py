"""Windows cover the text, fit, and overlap."""

import time
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raybert.encoder.chunking import chunk, combine
from raybert.encoder.tokenizing import TextTokenizer
from tests.encoder.tiny import _tokenizer

TOKENIZERS = {
    family: TextTokenizer(_tokenizer(family)[0].to_str(), max_length=64, prompt="query: ")
    for family in ("bert", "roberta", "xlm-roberta")
}
WORDS = st.sampled_from(
    [
        "the",
        "of",
        "river",
        "unbelievably",
        "x" * 30,
        "42,000",
        "foo-bar",
        "é",
        "中文",
        "☕",
        "👩‍👩‍👧",
        "<s>",
        "?!",
        "qZ",
        "\n\n",
        " ",
    ]
)
TEXTS = st.one_of(
    st.lists(WORDS, max_size=60).map(" ".join),
    st.lists(WORDS, max_size=30).map("".join),
    st.text(max_size=80),
)
family = pytest.mark.parametrize("family", TOKENIZERS)


@family
@given(text=TEXTS, size=st.integers(1, 20), data=st.data())
@settings(max_examples=200, deadline=None)
def test_windows_fit_cover_and_go_on(family, text, size, data):
    tokenizer = TOKENIZERS[family]
    overlap = data.draw(st.integers(0, size - 1))
    spans, found = tokenizer.windows(text), chunk(tokenizer, text, size, overlap)
    covered = np.zeros(len(text), bool)
    for start, end in found:
        assert 0 <= start < end <= len(text)
        assert end - start == 1 or tokenizer.count(text[start:end]) <= size
        covered[start:end] = True
    for start, end in zip(spans.starts, spans.ends, strict=True):
        assert covered[start:end].all()
    ends = [end for _, end in found]
    assert ends == sorted(set(ends))  # every window brings something new, the last one too
    assert [start for start, _ in found] == sorted(start for start, _ in found)


@family
def test_neighbours_share_the_overlap_and_words_stay_whole(family):
    tokenizer = TOKENIZERS[family]
    text = " ".join(["the river of machine learning, and unbelievably long words"] * 20)
    found = chunk(tokenizer, text, 24, 8)
    assert len(found) > 10
    for (_, end), (start, _) in pairwise(found):
        shared = tokenizer.count(text[start:end])
        assert 8 <= shared <= 8 + tokenizer.count("unbelievably")
    for start, end in found:
        assert start == 0 or not (text[start - 1].isalnum() and text[start].isalnum())
        assert end == len(text) or not (text[end - 1].isalnum() and text[end].isalnum())


def test_simple_cases():
    tokenizer = TOKENIZERS["bert"]
    assert chunk(tokenizer, "", 4, 1) == []
    assert chunk(tokenizer, "  \n", 4, 1) == []
    assert chunk(tokenizer, " the of and to ", 4, 1) == [(0, 15)]
    assert chunk(tokenizer, "the of and to in", 4, 0) == [(0, 13), (14, 16)]
    assert chunk(tokenizer, "the of and to in", 4, 2) == [(0, 13), (7, 16)]
    # a word longer than a window is cut inside; a character longer than a window stays whole
    assert chunk(tokenizer, "qqqqqqqqqq", 4, 0) == [(0, 4), (4, 8), (8, 10)]
    assert chunk(TOKENIZERS["roberta"], "☕", 2, 0) == [(0, 1)]


@pytest.mark.parametrize(("size", "overlap"), [(4, 4), (4, 5), (4, -1), (0, 0)])
def test_sizes_that_cannot_be(size, overlap):
    with pytest.raises(ValueError, match=r"chunk\.overlap"):
        chunk(TOKENIZERS["bert"], "the", size, overlap)


def test_time_is_linear():
    tokenizer = TOKENIZERS["bert"]

    def seconds(words):
        text = "the river unbelievably " * words
        start = time.perf_counter()
        assert len(chunk(tokenizer, text, 60, 10)) > words / 30
        return time.perf_counter() - start

    seconds(500)
    assert seconds(16000) < 16 * 4 * max(seconds(1000), 0.02)


def test_combine():
    vectors, weights = np.array([[1.0, 4.0], [3.0, 0.0]], np.float32), np.array([3, 1])
    assert combine(vectors, weights).tolist() == [1.5, 3.0]
    assert combine(vectors, weights, "max").tolist() == [3.0, 4.0]
    assert combine(vectors, weights).dtype == np.float32
    for wrong, message in [
        ((vectors, weights, "sum"), "chunk.combine is 'sum'"),
        ((vectors, weights[:1]), "2 vectors"),
        ((vectors[:0], weights[:0]), "0 vectors"),
        ((vectors, np.zeros(2)), "weights"),
    ]:
        with pytest.raises(ValueError, match=message):
            combine(*wrong)
