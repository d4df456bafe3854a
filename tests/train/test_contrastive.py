"""The ranking loss against its formula, written with loops over cosines."""

import math

import pytest
import torch
from torch import Tensor

from raybert.tasks.contrastive_model import Members, Ranking, ranking_sums


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


def members(example: list[int], role: list[int], key: list[int] | None = None) -> Members:
    keys = list(range(len(example))) if key is None else key
    return Members(torch.tensor(example), torch.tensor(role), torch.tensor(keys))


def vectors(n: int, width: int = 8, seed: int = 0) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def nll(scores: list[float], target: int) -> float:
    return -scores[target] + math.log(sum(map(math.exp, scores)))


# queries 0 1 2 and their documents, two hard negatives of example 1, in no order
MIXED = members([1, 0, 2, 1, 0, 2, 1, 1], [0, 0, 0, 1, 1, 1, 2, 3])
QUERIES, DOCUMENTS = [1, 0, 2], [4, 3, 5, 6, 7]  # rows, by example


@pytest.mark.parametrize("scale", [20.0, 50.0, 1.0])
def test_the_formula(scale):
    e = vectors(8)
    expected = sum(nll([scale * cosine(e[q], e[d]) for d in DOCUMENTS], i) for i, q in enumerate(QUERIES))
    found = ranking_sums(e, MIXED, Ranking(scale=scale))
    assert float(found.loss_sum) == pytest.approx(expected, rel=1e-5)
    assert int(found.count) == 3
    first = sum(
        max(DOCUMENTS, key=lambda d: cosine(e[q], e[d])) == DOCUMENTS[i] for i, q in enumerate(QUERIES)
    )
    assert int(found.correct) == first


def test_both_directions():
    e = vectors(8)
    there = sum(nll([20 * cosine(e[q], e[d]) for d in DOCUMENTS], i) for i, q in enumerate(QUERIES))
    back = sum(nll([20 * cosine(e[DOCUMENTS[i]], e[q]) for q in QUERIES], i) for i in range(len(QUERIES)))
    found = ranking_sums(e, MIXED, Ranking(symmetric=True))
    assert float(found.loss_sum) == pytest.approx((there + back) / 2, rel=1e-5)


def test_the_order_of_the_sequences_does_not_matter():
    e, order = vectors(8), torch.randperm(8, generator=torch.Generator().manual_seed(1))
    found = ranking_sums(e, MIXED, Ranking(symmetric=True))
    other = ranking_sums(e[order], Members.of(MIXED.stacked()[order]), Ranking(symmetric=True))
    torch.testing.assert_close(found.loss_sum, other.loss_sum)
    assert found.correct == other.correct


def test_copies_are_no_negatives():
    """Documents 0 and 1 are one text, and a hard negative of 2 is document 0's text; queries 1 and 2 are one text."""
    e = vectors(7)
    batch = members([0, 1, 2, 0, 1, 2, 2], [0, 0, 0, 1, 1, 1, 2], [10, 11, 11, 20, 20, 21, 20])
    rows = {0: [3, 5], 1: [4], 2: [5, 6]}  # its document, and what is left against it
    # query 1: document 0 and the negative are copies of its own, document 2 answers the same query
    # query 2: document 1 answers the same query
    rows[2] = [5, 3, 6]
    expected = sum(nll([20 * cosine(e[q], e[d]) for d in ds], 0) for q, ds in rows.items())
    assert float(ranking_sums(e, batch, Ranking()).loss_sum) == pytest.approx(expected, rel=1e-5)
    # documents 0 and 1 are one text, so queries 0 and 1 are no negatives of them; queries 1 and 2 are one text
    askers = {0: [0, 2], 1: [1], 2: [2, 0]}
    back = sum(nll([20 * cosine(e[3 + i], e[q]) for q in qs], 0) for i, qs in askers.items())
    both = ranking_sums(e, batch, Ranking(symmetric=True)).loss_sum
    assert float(both) == pytest.approx((expected + back) / 2, rel=1e-5)


def test_matryoshka():
    e = vectors(8)
    expected = sum(
        weight
        * float(ranking_sums(e[:, :size] / e[:, :size].norm(dim=1, keepdim=True), MIXED, Ranking()).loss_sum)
        for size, weight in [(8, 1.0), (4, 0.5), (2, 0.25)]
    )
    found = ranking_sums(e, MIXED, Ranking(dimensions=(8, 4, 2), weights=(1.0, 0.5, 0.25)))
    assert float(found.loss_sum) == pytest.approx(expected, rel=1e-5)
    assert found.correct == ranking_sums(e, MIXED, Ranking()).correct
    summed = ranking_sums(e, MIXED, Ranking(dimensions=(8, 4))).loss_sum
    alone = [ranking_sums(e[:, :size], MIXED, Ranking()).loss_sum for size in (8, 4)]
    torch.testing.assert_close(summed, sum(alone))


@pytest.mark.parametrize("dimensions", [(4, 2), (16, 8), (8, 8), (8, 0)])
def test_sizes_that_do_not_fit(dimensions):
    with pytest.raises(ValueError, match=r"task.dimensions=\[.*\] must be different sizes up to the width"):
        ranking_sums(vectors(8), MIXED, Ranking(dimensions=dimensions))


def test_as_many_weights_as_sizes():
    with pytest.raises(ValueError, match=r"task.weights has 1 numbers for the 2 of task.dimensions"):
        ranking_sums(vectors(8), MIXED, Ranking(dimensions=(8, 4), weights=(1.0,)))


@pytest.mark.parametrize("roles", [[0, 0, 1], [0, 1, 1]])
def test_a_query_without_a_document(roles):
    with pytest.raises(ValueError, match="every query of a batch needs exactly one document"):
        ranking_sums(vectors(3), members([0, 1, 0], roles), Ranking())
