"""Attention on packed rows against softmax(q k' / sqrt(d) + bias) v, text by text."""

import numpy as np
import pytest
import torch

from raybert.encoder.attention import Rows, attend

# of one length and of many, shorter and longer than a vector register, and no token at all
LENGTHS = np.array([70, 64, 33, 33, 33, 17, 16, 5, 5, 1, 1, 0])


def formula(qkv, lengths, bias=None, window=None):
    """float64 [tokens, heads * d], text by text."""
    out = []
    for q, k, v in (part.unbind(1) for part in qkv.double().split(lengths.tolist())):
        scores = torch.einsum("qhd,khd->hqk", q, k) / q.shape[-1] ** 0.5
        if bias is not None:
            scores = scores + bias[:, : len(q), : len(q)].double()
        if window is not None:
            at = torch.arange(len(q))
            scores = scores.masked_fill((at[:, None] - at).abs() > window, float("-inf"))
        out.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), v).flatten(1))
    return torch.cat(out)


def _qkv(dtype):
    return torch.randn(int(LENGTHS.sum()), 3, 4, 8, generator=torch.Generator().manual_seed(0)).to(dtype)


@pytest.mark.parametrize("window", [None, 4])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_attention_is_itsformula(dtype, tolerance, biased, window):
    qkv = _qkv(dtype)
    bias = torch.randn(4, 70, 70, generator=torch.Generator().manual_seed(1)) if biased else None
    found = attend(qkv, Rows(LENGTHS), bias=bias, window=window)
    assert found.dtype == dtype
    expected = formula(qkv, LENGTHS, bias, window)
    assert (found.double() - expected).abs().max() < tolerance


def test_scores_computed_a_piece_at_a_time_are_the_same(monkeypatch):
    qkv = _qkv(torch.bfloat16)
    whole = attend(qkv, Rows(LENGTHS))
    monkeypatch.setattr("raybert.encoder.attention._CACHED_BYTES", 1)
    assert torch.equal(attend(qkv, Rows(LENGTHS)), whole)


def test_texts_do_not_see_each_other():
    qkv = _qkv(torch.float32)
    before = attend(qkv, Rows(LENGTHS))
    qkv[:70] = 100.0
    assert torch.equal(attend(qkv, Rows(LENGTHS))[70:], before[70:])


def test_rows_know_where_texts_lie():
    rows = Rows(np.array([3, 3, 2, 0]))
    assert rows.offsets.tolist() == [0, 3, 6, 8, 8]
    assert rows.positions.tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert rows.runs == [(0, 6, 3), (6, 8, 2)]
    assert rows.cumulative.tolist() == rows.offsets.tolist()
    assert (rows.longest, Rows(np.zeros(0, int)).longest, Rows(np.zeros(0, int)).runs) == (3, 1, [])
