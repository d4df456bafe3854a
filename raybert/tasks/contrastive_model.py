"""The contrastive losses of retrieval: every query against all documents of the global batch.

The convention is that of the rest of training: what a rank returns is its share, a sum over its own queries; shares of
all ranks divided by their number of queries are the loss, and the sum of the ranks' gradients is its gradient.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

QUERY, POSITIVE = 0, 1


class RankingSums(NamedTuple):
    """Over this rank's queries, every one a tensor of shape []: the loss, their number, how many rank their document first."""

    loss_sum: Tensor
    count: Tensor
    correct: Tensor


@dataclass(frozen=True)
class Members:
    """What the sequences of a batch are, all int64 [n].

    Attributes:
        example: the example that a sequence belongs to, unique in the global batch.
        role: 0 its query, 1 its document, 2 and more its hard negatives.
        key: a digest of the text: equal for equal texts, so that a document is no negative of a query that it answers.
    """

    example: Tensor
    role: Tensor
    key: Tensor

    def stacked(self) -> Tensor:
        """int64 [n, 3]."""
        return torch.stack([self.example, self.role, self.key], dim=1)

    @classmethod
    def of(cls, stacked: Tensor) -> "Members":
        """From `stacked`."""
        return cls(*stacked.unbind(1))


@dataclass(frozen=True)
class Ranking:
    """Settings of the loss.

    Attributes:
        scale: factor of the cosine, 1 / temperature: 20 in sentence-transformers, 50 in FlagEmbedding.
        symmetric: documents find their queries, too; the mean of both directions.
        dimensions: Matryoshka's nested sizes (Kusupati et al. 2022, arXiv 2205.13147), with the whole width among them;
            none for the whole width alone.
        weights: of their losses, which are added; 1 each if none.
    """

    scale: float = 20.0
    symmetric: bool = False
    dimensions: tuple[int, ...] = ()
    weights: tuple[float, ...] = ()


def ranking_sums(vectors: Tensor, members: Members, settings: Ranking) -> RankingSums:
    """Multiple negatives ranking (Henderson et al. 2017, arXiv 1705.00652; InfoNCE) over the batches of all ranks.

    For query i: -log of the softmax over all documents and hard negatives j of scale * cos(q_i, d_j), at its own document.
    Not counted as negatives are copies of the own document, and the documents of other examples with the same query.

    Args:
        vectors: [n, width], of this rank; they need not have norm 1. n may be 0 on a rank.
        members: what they are. A query's document may be on another rank.

    Raises:
        ValueError: Matryoshka's sizes do not fit the width, or a query has no document.
    """
    sizes = _sizes(settings, vectors.shape[1])
    everyone = Members.of(gather_rows(members.stacked()))
    if not len(everyone.role):  # an update of nothing makes the optimizer's state
        nothing = vectors.sum() * 0.0
        return RankingSums(nothing, nothing, nothing)
    # queries, then their documents, then negatives, each by example: nothing depends on the number of ranks
    order = torch.argsort(everyone.role * (everyone.example.max() + 1) + everyone.example)
    gathered = gather_rows(vectors)[order]
    everyone = Members.of(everyone.stacked()[order])
    own = members.role == QUERY
    against = _against(Members.of(members.stacked()[own]), everyone)
    loss = vectors.sum() * 0.0  # a rank without queries has its backward pass, too
    correct = torch.zeros((), device=vectors.device)
    for size, weight in sizes:
        found, right = _ranking(vectors[own, :size], gathered[:, :size], against, settings)
        loss = loss + weight * found
        if size == vectors.shape[1]:
            correct = right
    return RankingSums(loss, own.sum().float(), correct)


def gather_rows(x: Tensor) -> Tensor:
    """The rows [n, ...] of all ranks, one rank after the other; n may differ. Differentiable on every rank.

    The gradient of a row is the sum of those that all ranks have for it. Every rank must call this, and its backward.
    """
    if not (dist.is_initialized() and dist.get_world_size() > 1):
        return x
    found = _Gather.apply(x)
    assert isinstance(found, Tensor)
    return found


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        own = torch.tensor([len(x)], dtype=torch.int64, device=x.device)
        sizes = [torch.empty_like(own) for _ in range(dist.get_world_size())]
        dist.all_gather(sizes, own)
        lengths = [int(size) for size in sizes]
        padded = x.new_zeros(max(lengths), *x.shape[1:])
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in lengths]
        dist.all_gather(parts, padded)
        first = sum(lengths[: dist.get_rank()])
        ctx.rows = slice(first, first + len(x))  # type: ignore[attr-defined]
        return torch.cat([part[:n] for part, n in zip(parts, lengths, strict=True)])

    @staticmethod
    def backward(ctx: object, *gradients: Tensor) -> Tensor:
        whole = gradients[0].contiguous().clone()
        dist.all_reduce(whole)
        return whole[ctx.rows]  # type: ignore[attr-defined]


class _Against(NamedTuple):
    """What b queries of this rank are compared with: B queries and d >= B documents, that of query i the i-th."""

    place: Tensor  # int64 [b], the own query among the queries, and the own document among the documents
    others: Tensor  # bool [b, d], documents that are no negatives of the query
    askers: Tensor  # bool [b, B], queries that are no negatives of the query's document


def _against(own: Members, everyone: Members) -> _Against:
    queries, documents = everyone.role == QUERY, everyone.role != QUERY
    examples, count = everyone.example[queries], int(queries.sum())
    if not torch.equal(examples, everyone.example[everyone.role == POSITIVE]):
        raise ValueError("every query of a batch needs exactly one document of its example in the same batch")
    place = torch.searchsorted(examples, own.example.contiguous())
    keys = everyone.key[documents]
    asked = own.key[:, None] == everyone.key[queries]
    copies = keys[place][:, None] == keys
    others, askers = copies.clone(), asked | copies[:, :count]
    others[:, :count] |= asked
    rows = torch.arange(len(place), device=place.device)
    others[rows, place] = askers[rows, place] = False
    return _Against(place, others, askers)


def _ranking(own: Tensor, everyone: Tensor, against: _Against, settings: Ranking) -> tuple[Tensor, Tensor]:
    """The sum of the losses of own queries [b, size], and how many rank their document first.

    everyone: [B + d, size], queries and then documents.
    """
    count = against.askers.shape[1]
    unit = F.normalize(everyone.float(), dim=-1)
    queries, documents = unit[:count], unit[count:]
    scores = settings.scale * F.normalize(own.float(), dim=-1) @ documents.T
    scores = scores.masked_fill(against.others, float("-inf"))
    loss = F.cross_entropy(scores, against.place, reduction="sum")
    if settings.symmetric:
        back = settings.scale * documents[against.place] @ queries.T
        back = back.masked_fill(against.askers, float("-inf"))
        loss = (loss + F.cross_entropy(back, against.place, reduction="sum")) / 2
    return loss, (scores.argmax(1) == against.place).sum().float()


def _sizes(settings: Ranking, width: int) -> Sequence[tuple[int, float]]:
    """(size, weight) of every nested loss."""
    sizes = settings.dimensions or (width,)
    if max(sizes) != width or min(sizes) < 1 or len(set(sizes)) < len(sizes):
        raise ValueError(
            f"task.dimensions={list(sizes)} must be different sizes up to the width of the vectors, {width}, and have it"
        )
    weights = settings.weights or (1.0,) * len(sizes)
    if len(weights) != len(sizes):
        raise ValueError(f"task.weights has {len(weights)} numbers for the {len(sizes)} of task.dimensions")
    return list(zip(sizes, weights, strict=True))
