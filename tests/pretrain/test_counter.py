"""Counter-based random numbers: the reference values of splitmix64, and that draws are what they say."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from raybert.pretrain.counter import Draws, bits, mix, permutation, uniform

# The first numbers of splitmix64 from the state 0, as its authors' C program prints them
SPLITMIX64 = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_one_part_counts_through_splitmix64():
    assert [mix(i) for i in range(3)] == SPLITMIX64
    assert bits(np.arange(3)).tolist() == SPLITMIX64


@given(st.lists(st.integers(-(2**63), 2**64 - 1), min_size=1, max_size=4))
def test_scalars_and_arrays_agree(name):
    assert bits(*name).tolist() == [mix(*name)]
    arrays = [np.array([part % 2**64, 7], np.uint64) for part in name]
    assert int(bits(*arrays)[0]) == mix(*name)


def test_parts_broadcast_and_their_order_counts():
    rows, columns = np.arange(3)[:, None], np.arange(4)
    table = bits(5, rows, columns)
    assert table.shape == (3, 4)
    assert all(int(table[i, j]) == mix(5, i, j) for i in range(3) for j in range(4))
    assert mix(1, 2) != mix(2, 1)


def test_uniform_is_uniform():
    draws = uniform(3, np.arange(100_000))
    assert 0 <= draws.min() < draws.max() < 1
    counts = np.histogram(draws, 20, (0, 1))[0]
    # chi squared with 19 degrees of freedom is above 43.8 once in a thousand
    assert np.sum((counts - 5000) ** 2 / 5000) < 43.8
    assert abs(np.corrcoef(draws[1:], draws[:-1])[0, 1]) < 0.012


def test_draws_in_turn():
    draws, again = Draws(1, 2), Draws(1, 2)
    first = [draws.uniform() for _ in range(3)]
    assert first == [again.uniform() for _ in range(3)]
    assert first == [(mix(mix(1, 2), i) >> 11) * 2.0**-53 for i in range(3)]
    assert Draws(1, 3).bits() != Draws(1, 2).bits()
    dice = np.bincount([draws.below(6) for _ in range(6000)], minlength=6)
    assert len(dice) == 6
    assert np.sum((dice - 1000) ** 2 / 1000) < 20.5


def test_heads_are_binomial():
    draws = Draws(9)
    assert draws.heads(0) == 0
    for flips in (1, 7, 64, 65, 200):
        heads = np.array([draws.heads(flips) for _ in range(4000)])
        assert 0 <= heads.min() <= heads.max() <= flips
        assert abs(heads.mean() - flips / 2) < 4 * np.sqrt(flips / 4 / 4000)
        assert abs(heads.var() / (flips / 4) - 1) < 0.12


def test_permutations():
    order = permutation(1000, 3)
    assert sorted(order.tolist()) == list(range(1000))
    assert (order == permutation(1000, 3)).all()
    assert (order != permutation(1000, 4)).any()
    assert len(permutation(0, 1)) == 0
