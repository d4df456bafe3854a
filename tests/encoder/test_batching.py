"""Batches bounded in tokens."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybert.encoder.batching import computed_tokens, filled, pack, plan_batches

LENGTHS = st.lists(st.integers(0, 300), max_size=80).map(np.array)


@given(LENGTHS, st.integers(1, 500), st.booleans())
def test_every_row_once_and_within_the_budget(lengths, budget, padded):
    batches = plan_batches(lengths, budget, padded=padded)
    rows = np.concatenate([np.zeros(0, int), *batches]).astype(int)
    assert sorted(rows) == list(range(len(lengths)))
    for batch in batches:
        tokens = len(batch) * lengths[batch].max() if padded else lengths[batch].sum()
        assert len(batch) == 1 or tokens <= budget
    assert (np.diff(lengths[rows]) <= 0).all()


def test_filled_batches_have_few_sizes():
    sizes = [filled(tokens) for tokens in range(1025)]
    assert sizes[:9] == [0, 8, 8, 8, 8, 8, 8, 8, 8]
    assert all(
        size % 8 == 0 and tokens <= size < max(tokens + 8, 1.07 * tokens) for tokens, size in enumerate(sizes)
    )
    assert len(set(sizes[512:1024])) == 17
    assert filled(16384) == 16384


@given(LENGTHS)
def test_batches_are_as_full_as_they_can_be(lengths):
    batches = plan_batches(lengths, 200)
    for batch, after in pairwise(batches):
        assert lengths[batch].sum() + lengths[after[0]] > 200
    batches = plan_batches(lengths, 200, padded=True)
    for batch in batches[:-1]:
        assert (len(batch) + 1) * max(lengths[batch].max(), 1) > 200


def test_equal_lengths_keep_their_order():
    lengths = np.array([2, 5, 2, 5, 2])
    assert [b.tolist() for b in plan_batches(lengths, 10, padded=True)] == [[1, 3], [0, 2, 4]]
    assert [b.tolist() for b in plan_batches(lengths, 12)] == [[1, 3, 0], [2, 4]]
    with pytest.raises(ValueError, match="batch_tokens is 0"):
        plan_batches(np.array([1]), 0)


def test_computed_tokens_count_padding_where_there_is_any():
    lengths = np.array([2, 5, 3])
    assert computed_tokens(lengths, 10) == 10
    assert computed_tokens(lengths, 10, padded=True) == 2 * 5 + 2
    assert computed_tokens(lengths[:0], 10) == 0


def test_pack_lays_rows_one_after_the_other():
    values, offsets = np.array([7, 8, 9, 5, 6], np.int32), np.array([0, 3, 3, 5])
    assert pack(values, offsets, np.array([2, 1, 0])).tolist() == [5, 6, 7, 8, 9]
    assert pack(values, offsets, np.array([1])).tolist() == []
    assert pack(values, offsets, np.array([0])).dtype == np.int64
