"""Every pooling against a plain loop in numpy."""

import numpy as np
import pytest
import torch

from raybert.encoder.pooling import POOLINGS, combine_layers, normalize, parse_layers, pool, truncate

FORMULAS = {
    "cls": lambda x: x[0],
    "last": lambda x: x[-1],
    "mean": lambda x: x.sum(0) / len(x),
    "max": lambda x: x.max(0),
    "mean_sqrt_len_tokens": lambda x: x.sum(0) / len(x) ** 0.5,
    "weightedmean": lambda x: (x * np.arange(1, len(x) + 1)[:, None]).sum(0) / np.arange(1, len(x) + 1).sum(),
}
LENGTHS = (1, 3, 6, 0, 6, 2)


def _batch():
    """Token vectors of texts of LENGTHS: one by one, and packed with their lengths."""
    random = np.random.default_rng(0)
    rows = [random.normal(size=(n, 4)).astype(np.float32) for n in LENGTHS]
    return rows, torch.from_numpy(np.concatenate(rows)), torch.tensor(LENGTHS)


@pytest.mark.parametrize("mode", POOLINGS)
def test_pooling_is_its_formula(mode):
    rows, hidden, lengths = _batch()
    expected = np.stack([FORMULAS[mode](row) if len(row) else np.zeros(4) for row in rows])
    assert np.abs(pool(hidden, lengths, mode).numpy() - expected).max() < 1e-6
    assert pool(hidden[:0], lengths[:0], mode).shape == (0, 4)


@pytest.mark.parametrize("mode", ["cls", "last", "mean", "max", "mean_sqrt_len_tokens"])
def test_skipped_tokens_do_not_count(mode):
    rows, hidden, lengths = _batch()
    expected = np.stack([FORMULAS[mode](row[2:]) if len(row) > 2 else np.zeros(4) for row in rows])
    assert np.abs(pool(hidden, lengths, mode, skip=2).numpy() - expected).max() < 1e-6


def test_skipping_keeps_the_weights_of_positions():
    rows, hidden, lengths = _batch()
    weights = np.arange(1, 7)[2:, None]
    expected = (rows[2][2:] * weights).sum(0) / weights.sum()
    assert np.abs(pool(hidden, lengths, "weightedmean", skip=2)[2].numpy() - expected).max() < 1e-6


def test_joined_poolings_are_concatenated_in_order():
    _, hidden, lengths = _batch()
    joined = pool(hidden, lengths, "mean+cls")
    assert torch.equal(joined, torch.cat([pool(hidden, lengths, "mean"), pool(hidden, lengths, "cls")], -1))
    with pytest.raises(ValueError, match="pooling 'middle'"):
        pool(hidden, lengths, "mean+middle")


def test_pooling_is_in_float32():
    hidden = torch.full((4096, 1), 1.001, dtype=torch.bfloat16)
    hidden[0] = 2.0
    exact = hidden.double().mean().item()
    assert abs(pool(hidden, torch.tensor([4096]), "mean").item() - exact) < 1e-6


def test_layers_combine():
    states = [torch.full((1, 2, 3), float(i)) for i in range(5)]
    for layers, value in [
        ("last", 4),
        ("0", 0),
        ("-2", 3),
        ("sum:last4", 10),
        ("mean:last4", 2.5),
        ("sum:0,-1", 4),
    ]:
        combined = combine_layers(states, layers)
        assert (combined.shape, combined[0, 0, 0].item()) == ((1, 2, 3), value), layers
    assert combine_layers(states, "concat:-1,1")[0, 0].tolist() == [4, 4, 4, 1, 1, 1]
    assert parse_layers("concat:last4") == ("concat", [-4, -3, -2, -1])
    for wrong in ("", "first", "sum:", "sum:last0", "concat:1,", "mean:last", "1.5", "sum:last4,1"):
        with pytest.raises(ValueError, match="not understood"):
            parse_layers(wrong)
    for outside in ("5", "-6", "sum:last6"):
        with pytest.raises(ValueError, match="the model has 5"):
            combine_layers(states, outside)


def test_truncate_and_normalize():
    vectors = torch.tensor([[3.0, 4.0, 12.0], [0.0, 0.0, 0.0]])
    assert truncate(vectors, None) is vectors
    assert normalize(truncate(vectors, 2)).tolist() == [[pytest.approx(0.6), pytest.approx(0.8)], [0, 0]]
    for wrong in (0, 4, -1):
        with pytest.raises(ValueError, match=f"dimensions is {wrong}"):
            truncate(vectors, wrong)
