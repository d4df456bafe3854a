"""Packing: every instance once, within the budget, bins full, in no order of size."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybert.pretrain.packing import pack


def wikipedia(count: int, seed: int = 0) -> np.ndarray:
    """Lengths like those of paragraphs, and one in five exactly 512."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(np.log(120), 1.0, count), 5, 512).astype(int)
    return np.where(rng.random(count) < 0.15, 512, lengths)


@given(st.lists(st.integers(1, 60), max_size=80), st.integers(60, 200), st.integers(0, 3))
def test_every_instance_once_and_no_bin_too_full(lengths, budget, seed):
    bins = pack(np.array(lengths, int), budget, seed=seed)
    assert sorted(np.concatenate([np.zeros(0, int), *bins]).tolist()) == list(range(len(lengths)))
    totals = [sum(lengths[i] for i in members) for members in bins]
    assert all(0 < total <= budget for total in totals)
    # no two bins could be one, up to the one that the end of the window leaves
    assert sum(total <= budget // 2 for total in totals) <= 1


@pytest.mark.parametrize("budget", [512, 2048, 4096, 8192, 16384])
def test_fill(budget):
    lengths = wikipedia(16_384)
    begin = time.process_time()
    bins = pack(lengths, budget, seed=1)
    assert time.process_time() - begin < 0.6
    assert lengths.sum() / (len(bins) * budget) >= 0.99


def test_the_order_is_random_and_neighbours_are_not_alike():
    lengths = wikipedia(16_384)
    bins = pack(lengths, 4096, seed=1)
    means = np.array([lengths[members].mean() for members in bins])
    # of random numbers it is within 4 / sqrt(n) of 0
    assert abs(np.corrcoef(means[1:], means[:-1])[0, 1]) < 4 / np.sqrt(len(means))
    assert means.std() < 0.4 * means.mean()


def test_the_bin_that_is_left_over_is_not_always_the_last():
    lengths = np.full(101, 10)
    places = [[len(members) for members in pack(lengths, 40, seed=seed)].index(1) for seed in range(40)]
    assert len(set(places)) > 10


def test_a_function_of_the_arguments():
    lengths = wikipedia(500)
    first, again, other = (pack(lengths, 2048, seed=seed) for seed in (1, 1, 2))
    assert [members.tolist() for members in first] == [members.tolist() for members in again]
    assert [members.tolist() for members in first] != [members.tolist() for members in other]


def test_limits():
    assert pack(np.zeros(0, int), 10) == []
    assert sorted(sorted(members) for members in pack(np.array([4, 6, 10]), 10)) == [[0, 1], [2]]
    with pytest.raises(ValueError, match="11 tokens does not fit in a bin of 10"):
        pack(np.array([3, 11]), 10)
    with pytest.raises(ValueError, match="without tokens"):
        pack(np.array([3, 0]), 10)
