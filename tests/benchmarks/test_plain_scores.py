"""The scores that comparisons are made with, and raybert's own, written apart, agree on random predictions."""

import random
from collections import Counter

import numpy as np
import pytest

from raybert.tasks.answer_scores import AnswerScores
from raybert.tasks.examples import Lists
from raybert.tasks.relation_scores import RelationScores
from raybert.tasks.tags import EntityScores
from raybert.tasks.words import offsets_of
from tests.benchmarks import plain_scores

TAGS = ["B-a", "B-b", "I-a", "I-b", "O"]


def lists(rows):
    numbers = [TAGS.index(tag) for row in rows for tag in row]
    return Lists(np.array(numbers, np.int64), offsets_of(np.array([len(row) for row in rows])))


@pytest.mark.parametrize("seed", range(5))
def test_entities(seed):
    rng = random.Random(seed)
    true = [rng.choices(TAGS, k=rng.randint(1, 12)) for _ in range(50)]
    found = [[tag if rng.random() < 0.8 else rng.choice(TAGS) for tag in row] for row in true]
    own = EntityScores(TAGS)
    own.add(lists(true), lists(found))
    plain = plain_scores.entity_scores(true, found)
    assert 0 < plain["f1"] < 1
    assert plain == pytest.approx({name: own.result()[name] for name in plain})


def test_relations():
    rng = random.Random(0)
    labels = ["Cause-Effect(e1,e2)", "Cause-Effect(e2,e1)", "Other", "Part(e1,e2)", "Part(e2,e1)"]
    true = rng.choices(labels, k=300)
    found = [label if rng.random() < 0.6 else rng.choice(labels) for label in true]
    own = RelationScores(labels)
    own.add(*(np.array([labels.index(label) for label in of]) for of in (true, found)))
    plain = plain_scores.relation_scores(true, found)
    assert plain == pytest.approx({name: own.result()[name] for name in plain})
    assert plain["macro_f1"] != pytest.approx(plain["accuracy"])


def test_answers():
    rng = random.Random(0)
    words = ["The", "end,", "a", "7:30", "pm", "p.m.", "of", "May!", "--"]
    pairs = [[" ".join(rng.choices(words, k=rng.randint(1, 4))) for _ in range(2)] for _ in range(300)]
    for true, found in pairs:
        own = AnswerScores()
        own.add([[true]], [found])
        a, b = plain_scores.answer_words(true), plain_scores.answer_words(found)
        assert own.result()["exact_match"] == (a == b)
        assert own.result()["f1"] == pytest.approx(plain_scores.word_f1(a, b))
    assert Counter(a == b for a, b in pairs)[True] < 100
