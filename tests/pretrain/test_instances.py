"""Instances of a shard. Tokens are numbered through the corpus, so that every piece shows where it comes from."""

import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybert.pretrain.counter import Draws
from raybert.pretrain.google import create_instances
from raybert.pretrain.instances import (
    Documents,
    Special,
    full_sentences,
    next_sentence_pairs,
    sentence_order_pairs,
    whole_documents,
)
from raybert.pretrain.pairs import _cut_pair

SPECIAL = Special(cls=-1, sep=-2)


def make(lengths: list[list[int]], *, first: int = 0, keys: list[int] | None = None) -> Documents:
    """Documents with sentences of these lengths; token ids count from `first`, two in three begin a word."""
    flat = [length for document in lengths for length in document]
    values = np.arange(sum(flat), dtype=np.int32) + first
    return Documents(
        values=values,
        starts=values % 3 != 2,
        sentences=np.cumsum([0, *flat]),
        documents=np.cumsum([0, *map(len, lengths)]),
        keys=np.array(range(100, 100 + len(lengths)) if keys is None else keys, np.uint64),
    )


def corpus(seed: int, documents: int, longest: int) -> list[list[int]]:
    rng = random.Random(seed)
    return [[rng.randint(1, longest) for _ in range(rng.randint(1, 12))] for _ in range(documents)]


def ids(instances, i: int) -> list[int]:
    return instances.values[instances.offsets[i] : instances.offsets[i + 1]].tolist()


def segments(instances) -> list[list[list[int]]]:
    """Per instance the tokens between its special tokens."""
    found = []
    for i in range(len(instances)):
        row = ids(instances, i)
        assert row[0] == -1
        assert row[-1] == -2
        cuts = [at for at, token in enumerate(row) if token < 0]
        found.append([row[a + 1 : b] for a, b in pairwise(cuts)])
    return found


def owner(documents: Documents, token: int) -> int:
    ends = documents.sentences[documents.documents[1:]]
    return int(np.searchsorted(ends, token - int(documents.values[0]), side="right"))


def check_form(instances, max_length: int) -> None:
    lengths = np.diff(instances.offsets)
    assert lengths.max() <= max_length
    assert instances.starts[instances.values < 0].all()
    plain = instances.values >= 0
    assert (instances.starts[plain] == (instances.values[plain] % 3 != 2)).all()
    for i, parts in enumerate(segments(instances)):
        assert all(part == list(range(part[0], part[0] + len(part))) for part in parts)
        single = instances.label[i] == -1
        assert instances.boundary[i] == (lengths[i] if single else len(parts[0]) + 2)
        assert single or len(parts) == 2


@pytest.mark.parametrize("duplicates", [1, 3])
def test_next_sentence_pairs(duplicates):
    text = make(corpus(1, 80, 15))
    made = next_sentence_pairs(text, text, SPECIAL, max_length=64, duplicates=duplicates, seed=5)
    check_form(made, 64)
    for i, (first, second) in enumerate(segments(made)):
        here, there = owner(text, first[0]), owner(text, second[0])
        assert here == made.document[i]
        assert (here == there) == (made.label[i] == 0)
        if made.label[i] == 0:
            assert first[-1] < second[0]
            # all that lies between was cut for length
            assert second[0] == first[-1] + 1 or len(first) + len(second) == 61
    assert len(set(made.label.tolist())) == 2


def test_pairs_are_like_those_of_the_google_script():
    lengths = corpus(2, 150, 20)
    text = make(lengths)
    made = next_sentence_pairs(text, text, SPECIAL, max_length=64, short_probability=0.6, duplicates=10)
    words = iter(range(10**9))
    sentences = [[[str(next(words)) for _ in range(n)] for n in document] for document in lengths]
    expected = create_instances(
        sentences, ["x"], random.Random(1), max_length=64, duplicates=10, short_probability=0.6
    )
    sizes = np.array([[len(parts[0]), len(parts[1])] for parts in segments(made)])
    others = np.array([[t.segment_ids.count(0) - 2, t.segment_ids.count(1) - 1] for t in expected])
    # means of some 4000 instances each, drawn from one distribution: within 4 standard errors
    for ours, theirs in ((sizes, others), (made.label, np.array([t.is_random_next for t in expected]))):
        error = np.sqrt(ours.var(axis=0) / len(ours) + theirs.var(axis=0) / len(theirs))
        assert (np.abs(ours.mean(axis=0) - theirs.mean(axis=0)) < 4 * error).all()
    assert abs(len(made) / len(expected) - 1) < 0.05


def test_every_token_is_in_one_instance_where_nothing_is_cut():
    text = make(corpus(3, 50, 9))
    made = next_sentence_pairs(text, text, SPECIAL, max_length=10_000, short_probability=1.0)
    rows = zip(segments(made), made.label, strict=True)
    seen = [token for (first, second), label in rows for token in (first if label else first + second)]
    assert sorted(seen) == list(range(len(text.values)))
    made = sentence_order_pairs(text, SPECIAL, max_length=10_000, short_probability=1.0)
    seen = [token for parts in segments(made) for part in parts for token in part]
    lost = set(range(len(text.values))) - set(seen)
    assert len(seen) == len(set(seen))
    # a sentence of one token cannot be cut in two
    assert all(token in text.sentences and token + 1 in text.sentences for token in lost)


@pytest.mark.parametrize("kind", ["next", "order"])
def test_a_document_is_treated_alike_in_any_shard(kind):
    lengths = corpus(4, 12, 15)
    whole = make(lengths)
    begin = sum(map(sum, lengths[:5]))
    part = make(lengths[5:8], first=begin, keys=[105, 106, 107])

    def rows(text, **settings):
        if kind == "next":
            made = next_sentence_pairs(text, whole, SPECIAL, max_length=40, **settings)
        else:
            made = sentence_order_pairs(text, SPECIAL, max_length=40, **settings)
        return made, [(ids(made, i), int(made.label[i])) for i in range(len(made))]

    together, rows_together = rows(whole)
    _, rows_apart = rows(part)
    assert rows_apart == [
        row for row, d in zip(rows_together, together.document, strict=True) if d in (5, 6, 7)
    ]
    assert rows(whole)[1] == rows_together
    assert rows(whole, seed=1)[1] != rows_together
    twice = rows(whole, duplicates=2)[1]
    assert twice[: len(rows_together)] == rows_together
    assert twice[len(rows_together) :] != rows_together


def test_without_another_document_pairs_are_in_order():
    alone = make([[5, 6, 7, 8]])
    copies = make([[5, 6, 7, 8], [0], [], [3]], first=1000, keys=[100, 7, 8, 100])
    for donors in (alone, copies, make([], keys=[])):
        made = next_sentence_pairs(alone, donors, SPECIAL, max_length=20, duplicates=30)
        assert set(made.label.tolist()) == {-1, 0}
        assert made.values.max() < len(alone.values)
    single = next_sentence_pairs(make([[9]]), make([[9]]), SPECIAL)
    assert single.label.tolist() == [-1]
    assert ids(single, 0) == [-1, *range(9), -2]
    assert single.boundary.tolist() == [11]


def test_donors_are_drawn_evenly_and_from_any_sentence():
    text = make([[4]])
    donors = make([[2, 2, 2], [2, 2, 2]], first=100, keys=[1, 2])
    made = next_sentence_pairs(text, donors, SPECIAL, max_length=9, short_probability=0.0, duplicates=1200)
    assert (made.label == 1).all()
    starts = np.bincount([(parts[1][0] - 100) // 2 for parts in segments(made)], minlength=6)
    # chi squared with 5 degrees of freedom
    assert np.sum((starts - 200) ** 2 / 200) < 20.5


def test_sentences_longer_than_the_sequence():
    text = make([[1000], [700, 3, 900], [2]])
    for made in (
        next_sentence_pairs(text, text, SPECIAL, max_length=32, duplicates=3),
        sentence_order_pairs(text, SPECIAL, max_length=32, duplicates=3),
    ):
        check_form(made, 32)
        assert set(made.document.tolist()) == {0, 1, 2}
    alone = next_sentence_pairs(make([[1000]]), make([]), SPECIAL, max_length=32)
    assert np.diff(alone.offsets).tolist() == [32]


@given(st.integers(1, 50), st.integers(1, 50), st.integers(2, 60))
def test_truncation_takes_from_the_longer(first, second, room):
    a, b = first, second
    while a + b > room:
        if a > b:
            a -= 1
        else:
            b -= 1
    begin, end, begin_b, end_b = _cut_pair((10, 10 + first), (100, 100 + second), room, Draws(first, second))
    assert (end - begin, end_b - begin_b) == (a, b)
    assert begin >= 10
    assert end <= 10 + first
    assert begin_b >= 100
    assert end_b <= 100 + second


def test_sentence_order_pairs():
    text = make(corpus(5, 300, 15))
    made = sentence_order_pairs(text, SPECIAL, max_length=64, short_probability=0.2, duplicates=2)
    check_form(made, 64)
    swapped = made.label == 1
    assert set(made.label.tolist()) == {0, 1}
    assert abs(swapped.mean() - 0.5) < 4 * np.sqrt(0.25 / len(made))
    for i, (first, second) in enumerate(segments(made)):
        former, latter = (second, first) if swapped[i] else (first, second)
        assert owner(text, former[0]) == owner(text, latter[0]) == made.document[i]
        assert former[-1] < latter[0]
        assert latter[0] == former[-1] + 1 or len(first) + len(second) == 61


def test_a_single_sentence_is_cut_at_the_word_nearest_its_middle():
    # words begin at 0, 1, 3, 4, 6, 7, ...: the middle of 10 tokens is inside a word
    text = make([[10], [2], [1]])
    assert not text.starts[5]
    made = sentence_order_pairs(text, SPECIAL, max_length=32, short_probability=0.0)
    assert [sorted(parts) for parts in segments(made)] == [
        [[0, 1, 2, 3], [4, 5, 6, 7, 8, 9]],
        [[10], [11]],
    ]
    assert made.document.tolist() == [0, 1]


def test_full_sentences_by_hand():
    text = make([[3, 2], [0], [], [1, 9, 2]])
    made = full_sentences(text, SPECIAL, max_length=8)
    assert [ids(made, i) for i in range(len(made))] == [
        [-1, 0, 1, 2, 3, 4, -2],
        [-1, 5, -2],
        [-1, 6, 7, 8, 9, 10, 11, -2],
        [-1, 12, 13, 14, 15, 16, -2],
    ]
    assert made.document.tolist() == [0, 3, 3, 3]
    across = full_sentences(make([[3], [2]]), SPECIAL, max_length=8)
    assert ids(across, 0) == [-1, 0, 1, 2, -2, 3, 4, -2]
    assert across.boundary.tolist() == [8]
    # with one token less of room the separator does not fit, and no row begins with it
    assert segments(full_sentences(make([[3], [2]]), SPECIAL, max_length=7)) == [[[0, 1, 2]], [[3, 4]]]


@pytest.mark.parametrize("max_length", [3, 10, 64])
def test_full_sentences(max_length):
    text = make(corpus(6, 60, 20))
    made = full_sentences(text, SPECIAL, max_length=max_length)
    parts = segments(made)
    assert [t for row in parts for part in row for t in part] == list(range(len(text.values)))
    assert np.diff(made.offsets).max() <= max_length
    assert (made.label == -1).all()
    assert (made.boundary == np.diff(made.offsets)).all()
    sentence = np.searchsorted(text.sentences, np.arange(len(text.values)), side="right") - 1
    for row, following in pairwise(parts):
        assert all(owner(text, a[-1]) != owner(text, b[0]) for a, b in pairwise(row))
        # full: the next sentence would not have fitted, and it is not cut unless it never fits
        size = int(np.sum(sentence == sentence[following[0][0]]))
        border = owner(text, row[-1][-1]) != owner(text, following[0][0])
        used = sum(map(len, row)) + len(row) - 1
        assert used + min(size, max_length - 2) + border > max_length - 2 or size > max_length - 2
        assert following[0][0] in text.sentences or size > max_length - 2
    assert made.document.tolist() == [owner(text, row[0][0]) for row in parts]


def test_whole_documents():
    text = make([[4, 3], [], [0], [12], [2, 2, 2]])
    made = whole_documents(text, SPECIAL, max_length=8)
    assert segments(made) == [
        [[0, 1, 2, 3, 4, 5]],
        [[6]],
        [[7, 8, 9, 10, 11, 12]],
        [[13, 14, 15, 16, 17, 18]],
        [[19, 20, 21, 22, 23, 24]],
    ]
    assert made.document.tolist() == [0, 0, 3, 3, 4]
    check_form(made, 8)


@pytest.mark.parametrize("text", [make([]), make([[], [0]])])
def test_nothing_makes_nothing(text):
    for made in (
        next_sentence_pairs(text, text, SPECIAL),
        sentence_order_pairs(text, SPECIAL),
        full_sentences(text, SPECIAL, max_length=8),
        whole_documents(text, SPECIAL, max_length=8),
    ):
        assert len(made) == 0
        assert made.offsets.tolist() == [0]
        assert made.values.dtype == np.int32


def test_lengths_that_cannot_be():
    text = make([[3, 3]])
    for function in (sentence_order_pairs, lambda t, s, **k: next_sentence_pairs(t, t, s, **k)):
        with pytest.raises(ValueError, match="max_length is 4"):
            function(text, SPECIAL, max_length=4)
        assert len(function(text, SPECIAL, max_length=5)) > 0
    for function in (full_sentences, whole_documents):
        with pytest.raises(ValueError, match="max_length is 2"):
            function(text, SPECIAL, max_length=2)
