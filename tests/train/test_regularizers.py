"""R-Drop, label smoothing and elastic weights against their formulas."""

import math

import pytest
import torch
from torch import Tensor, nn

from raybert.train.regularizers import (
    ElasticWeights,
    divergence,
    fisher,
    smoothed_cross_entropy,
    symmetric_kl,
    symmetric_kl_of_labels,
)


def kl(p: list[float], q: list[float]) -> float:
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))


def softmax(row: list[float]) -> list[float]:
    total = sum(map(math.exp, row))
    return [math.exp(x) / total for x in row]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


A, B = torch.tensor([[1.0, -0.5, 0.3], [0.2, 2.0, -1.0]]), torch.tensor([[0.5, 0.5, -0.7], [0.1, 1.0, 1.0]])


def test_symmetric_divergence():
    expected = [
        kl(softmax(a), softmax(b)) + kl(softmax(b), softmax(a))
        for a, b in zip(A.tolist(), B.tolist(), strict=True)
    ]
    assert symmetric_kl(A, B).tolist() == pytest.approx(expected, rel=1e-5)
    assert symmetric_kl(A, A).tolist() == [0, 0]


def test_symmetric_divergence_of_labels():
    def both(x: float, y: float) -> float:
        p, q = [sigmoid(x), 1 - sigmoid(x)], [sigmoid(y), 1 - sigmoid(y)]
        return kl(p, q) + kl(q, p)

    expected = [sum(map(both, a, b)) for a, b in zip(A.tolist(), B.tolist(), strict=True)]
    assert symmetric_kl_of_labels(A, B).tolist() == pytest.approx(expected, rel=1e-5)


def test_r_drops_divergence():
    expected = [
        (kl(softmax(a), softmax(b)) + kl(softmax(b), softmax(a))) / 2
        for a, b in zip(A.tolist(), B.tolist(), strict=True)
    ]
    assert divergence(A, B).tolist() == pytest.approx(expected, rel=1e-5)
    of_labels = (symmetric_kl_of_labels(A, B) / 2).tolist()
    assert divergence(A, B, "labels").tolist() == pytest.approx(of_labels, rel=1e-6)


def test_r_drops_divergence_of_numbers():
    x, y = torch.tensor([[1.0], [2.0]]), torch.tensor([[4.0], [2.5]])
    assert divergence(x, y, "regression").tolist() == [9, 0.25]


def test_r_drop_has_gradients_in_both_passes():
    a, b = A.clone().requires_grad_(), B.clone().requires_grad_()
    divergence(a, b).sum().backward()
    assert a.grad.abs().max() > 0.01
    assert b.grad.abs().max() > 0.01


def test_smoothed_cross_entropy():
    labels = torch.tensor([2, -100])
    p = softmax(A[0].tolist())
    target = [0.1 / 3, 0.1 / 3, 0.9 + 0.1 / 3]
    expected = -sum(q * math.log(x) for q, x in zip(target, p, strict=True))
    found = smoothed_cross_entropy(A, labels, 0.1)
    assert found.tolist() == pytest.approx([expected, 0])
    torch.testing.assert_close(
        smoothed_cross_entropy(A, torch.tensor([2, 1]), 0.1).mean(),
        nn.functional.cross_entropy(A, torch.tensor([2, 1]), label_smoothing=0.1),
    )


def logistic() -> nn.Linear:
    """p(1 | x) = sigmoid(w x), written as two logits 0 and w x: by hand F_w = E p (1 - p) x^2."""
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(0.8)
    return model


def two_logits(model: nn.Linear, x: float) -> Tensor:
    one = model(torch.tensor([[x]]))
    return torch.cat([torch.zeros_like(one), one], dim=1)


def test_fisher_information_of_a_logistic_regression():
    model, xs = logistic(), [0.5, -1.0, 2.0, 3.0] * 1500
    found = fisher(model, xs, lambda x: two_logits(model, x), generator=torch.Generator().manual_seed(0))
    expected = sum(sigmoid(0.8 * x) * (1 - sigmoid(0.8 * x)) * x * x for x in xs) / len(xs)
    assert float(found["weight"]) == pytest.approx(expected, rel=0.1)
    # the square of the mean gradient would be near 0, and true labels (all 1) would give something else
    empirical = sum(((1 - sigmoid(0.8 * x)) * x) ** 2 for x in xs) / len(xs)
    assert abs(empirical - expected) > 0.2 * expected


def test_fisher_leaves_dropout_and_gradients_as_they_were():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 3))
    x = torch.ones(1, 4)
    found = fisher(model, [x] * 3, model)
    assert model.training
    assert all(p.grad is None for p in model.parameters())
    assert {name: value.shape for name, value in found.items()} == {"1.weight": (3, 4), "1.bias": (3,)}
    assert len(found["1.weight"].unique(dim=1).T) == 1  # no column was dropped


def test_elastic_penalty():
    model = nn.Linear(2, 1)
    information = {"weight": torch.tensor([[2.0, 3.0]]), "bias": torch.tensor([5.0])}
    anchor = {name: p.detach().clone() for name, p in model.named_parameters()}
    elastic = ElasticWeights(anchor, information, strength=4.0)
    assert float(elastic.penalty(model).detach()) == 0
    with torch.no_grad():
        model.weight += torch.tensor([[0.1, -0.2]])
        model.bias += 0.3
    penalty = elastic.penalty(model)
    assert float(penalty.detach()) == pytest.approx(4 / 2 * (2 * 0.01 + 3 * 0.04 + 5 * 0.09), rel=1e-5)
    penalty.backward()
    assert model.weight.grad[0].tolist() == pytest.approx([4 * 2 * 0.1, -4 * 3 * 0.2], rel=1e-5)
