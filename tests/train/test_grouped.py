"""Attention by groups, dropout and the cross entropy against torch's own, with their gradients."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from raybert.encoder.attention import Rows
from raybert.train.cross_entropy import cross_entropy
from raybert.train.dropout import Dropout, keep_mask, quicken_dropout
from raybert.train.grouped import attend_grouped, groups


def tensors(tokens, heads=2, d=8, count=3, dtype=torch.float64):
    torch.manual_seed(0)
    return [torch.randn(tokens, heads, d, dtype=dtype, requires_grad=True) for _ in range(count)]


@pytest.fixture(params=[0, 100, 2**30])
def waste(request, monkeypatch):
    """From a group a length to one group for all."""
    monkeypatch.setattr("raybert.train.grouped._WASTE", request.param)
    return request.param


@pytest.mark.parametrize("lengths", [[1], [5, 5, 5], [1, 2, 3, 3, 7, 8, 30, 31, 64], list(range(1, 40))])
def test_groups_cover_every_token_once(lengths, waste):
    rows = Rows(np.array(lengths))
    found = groups(rows, 2)
    assert {0: len(set(lengths)), 2**30: 1}.get(waste, len(found)) == len(found)
    assert [part.start for part in found] + [sum(lengths)] == [0] + [part.end for part in found]
    for part in found:
        x = torch.randn(sum(lengths), 2, 3)
        wide = part.spread(x)
        again = torch.zeros_like(x)
        part.gather(wide, 2, again)
        assert_close(again[part.start : part.end], x[part.start : part.end])
        assert wide.abs().sum() == pytest.approx(float(x[part.start : part.end].abs().sum()), rel=1e-5)


def test_a_group_ends_where_its_padding_costs_more_than_calls(monkeypatch):
    monkeypatch.setattr("raybert.train.grouped._WASTE", 2 * (10**2 - 8**2))
    found = groups(Rows(np.array([2, 8, 10, 10])), 2)
    assert [(part.start, part.end, part.length) for part in found] == [(0, 2, 2), (2, 30, 10)]


def test_filling_behind_the_last_sequence_gets_zeros():
    q, k, v = tensors(9)
    found = attend_grouped(q, k, v, Rows(np.array([2, 4])), 0.3, 0.0)
    assert found[6:].abs().max() == 0 < found[:6].abs().min()
    for gradient in torch.autograd.grad(found.sum(), (q, k, v)):
        assert gradient[6:].abs().max() == 0


@pytest.mark.parametrize("lengths", [[1], [5, 5, 5], [1, 2, 3, 3, 7, 8, 30, 31, 64]])
def test_attention_and_its_gradients_are_those_of_every_sequence_alone(lengths, waste):
    q, k, v = tensors(sum(lengths))
    found = attend_grouped(q, k, v, Rows(np.array(lengths)), 0.3, 0.0)
    pieces = zip(*(x.split(lengths) for x in (q, k, v)), strict=True)
    alone = [
        F.scaled_dot_product_attention(*(x.transpose(0, 1) for x in three), scale=0.3).transpose(0, 1)
        for three in pieces
    ]
    assert_close(found, torch.cat(alone))
    above = torch.randn_like(found)
    assert_close(
        torch.autograd.grad(found, (q, k, v), above), torch.autograd.grad(torch.cat(alone), (q, k, v), above)
    )


def test_attention_with_dropout_has_the_gradient_of_its_function():
    q, k, v = tensors(12, d=4)

    def attend(*three):
        torch.manual_seed(3)
        return attend_grouped(*three, Rows(np.array([2, 4, 6])), 0.5, 0.4)

    torch.autograd.gradcheck(attend, (q, k, v))
    many = [attend_grouped(q, k, v, Rows(np.array([2, 4, 6])), 0.5, 0.4) for _ in range(4000)]
    expected = attend_grouped(q, k, v, Rows(np.array([2, 4, 6])), 0.5, 0.0)
    assert_close(torch.stack(many).mean(0), expected, atol=0.08, rtol=0)


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_its_share_and_scales(p):
    torch.manual_seed(1)
    assert keep_mask((300, 1001), p).float().mean().item() == pytest.approx(1 - p, abs=0.003)
    x = torch.randn(200, 301, requires_grad=True)
    layer = Dropout(p)
    found = layer(x)
    kept = found != 0
    assert_close(found, torch.where(kept, x / (1 - p), 0))
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert_close(gradient, kept.float() / (1 - p))
    assert layer.eval()(x) is x or torch.equal(layer(x), x)


def test_every_dropout_of_a_model_is_exchanged():
    model = torch.nn.Sequential(torch.nn.Dropout(0.3), torch.nn.Sequential(torch.nn.Dropout(0.2)))
    quicken_dropout(model)
    assert [type(m) for m in model.modules() if isinstance(m, torch.nn.Dropout)] == [Dropout, Dropout]
    assert (model[0].p, model[1][0].p) == (0.3, 0.2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_cross_entropy_is_torchs(dtype, monkeypatch):
    monkeypatch.setattr("raybert.train.cross_entropy._CACHED_BYTES", 4 * 11 * 3)  # three rows at a time
    torch.manual_seed(2)
    logits = torch.randn(20, 11, dtype=dtype).requires_grad_()
    labels = torch.randint(0, 11, (20,))
    labels[::4] = -100
    total, counted, right = cross_entropy(logits, labels)
    expected = F.cross_entropy(logits.float(), labels, reduction="sum")
    assert_close(total, expected)
    assert counted == 15
    assert right == ((logits.float().argmax(1) == labels) & (labels >= 0)).sum()
    (found,) = torch.autograd.grad(total * 0.5, logits)
    assert_close(found, torch.autograd.grad(expected * 0.5, logits)[0])


def test_of_equal_logits_the_first_counts():
    assert cross_entropy(torch.zeros(3, 5), torch.tensor([0, 1, 0]))[2] == 2


def test_cross_entropy_of_nothing():
    logits = torch.zeros(0, 7, requires_grad=True)
    total, counted, right = cross_entropy(logits, torch.zeros(0, dtype=torch.int64))
    total.backward()
    assert (total, counted, right) == (0, 0, 0)
