"""Batches bounded in tokens."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybert.encoder.batching import pad, plan_batches

LENGTHS = st.lists(st.integers(0, 300), max_size=80).map(np.array)


@given(LENGTHS, st.integers(1, 500))
def test_every_row_once_and_within_the_budget(lengths, budget):
    batches = plan_batches(lengths, budget)
    rows = np.concatenate([np.zeros(0, int), *batches]).astype(int)
    assert sorted(rows) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * lengths[batch].max() <= budget
    assert (np.diff(lengths[rows]) <= 0).all()


@given(LENGTHS)
def test_batches_are_as_full_as_they_can_be(lengths):
    batches = plan_batches(lengths, 200)
    for batch in batches[:-1]:
        assert (len(batch) + 1) * max(lengths[batch].max(), 1) > 200


def test_equal_lengths_keep_their_order():
    assert [b.tolist() for b in plan_batches(np.array([2, 5, 2, 5, 2]), 10)] == [[1, 3], [0, 2, 4]]
    with pytest.raises(ValueError, match="batch_tokens is 0"):
        plan_batches(np.array([1]), 0)


def test_pad_makes_a_rectangle():
    ids, mask = pad(np.array([7, 8, 9, 5, 6], np.int32), np.array([0, 3, 3, 5]), np.array([2, 0, 1]), -1)
    assert ids.tolist() == [[5, 6, -1], [7, 8, 9], [-1, -1, -1]]
    assert mask.tolist() == [[True, True, False], [True] * 3, [False] * 3]
