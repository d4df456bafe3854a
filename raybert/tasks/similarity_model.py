"""Models that tell how alike two texts are: an encoder of both, and two losses of the cosines of their vectors."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from raybert.config.pair_tasks import SimilaritySettings
from raybert.tasks.bi_encoder_model import AUTO, BiEncoder, Predictor, configure, finish
from raybert.tasks.contrastive_model import gather_rows
from raybert.train.packed import PackedBatch

__all__ = ["AUTO", "Model", "Predictor", "configure", "cosent_sums", "cosine_sums", "cosines_of", "finish"]


class SimilaritySums(NamedTuple):
    """Over one batch, a tensor of shape []: the loss."""

    loss: Tensor


class Model(BiEncoder):
    """A target is a row, whose two sequences are in one batch. With task.loss=cosine `model(batch)` are the sums of the
    batch, as those of other tasks; with cosent they are vectors (see `BiEncoder`)."""

    @staticmethod
    def sums_type(settings: SimilaritySettings) -> type:
        """The loss alone."""
        del settings
        return SimilaritySums

    def forward(self, batch: PackedBatch, delta: Tensor | None = None, *, outputs: bool = False) -> Any:
        """See `Model`; with `outputs` sums, and {"vectors": [n, width]}."""
        if self._settings.loss == "cosent":
            return super().forward(batch, delta, outputs=outputs)
        vectors = self.vectors(batch, delta)
        sums = SimilaritySums(cosine_sums(vectors, batch.targets))
        return (sums, {"vectors": vectors}) if outputs else sums

    @staticmethod
    def share(
        settings: SimilaritySettings, vectors: Tensor, targets: Mapping[str, Tensor], count: int
    ) -> SimilaritySums:
        """See `BiEncoder.share`."""
        return SimilaritySums(cosent_sums(vectors, targets, settings.scale, count))


def cosines_of(vectors: Tensor, targets: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """The cosines [b] of the b pairs among vectors [n, width], in the order of `example`, and their scores [b]."""
    role, example = targets["role"], targets["example"]
    first, second = ((role == k).nonzero()[:, 0] for k in (0, 1))
    first, second = first[example[first].argsort()], second[example[second].argsort()]
    assert torch.equal(example[first], example[second]), "the two texts of a row are in one forward pass"
    return F.cosine_similarity(vectors[first], vectors[second], dim=1), targets["labels"][first]


def cosine_sums(vectors: Tensor, targets: Mapping[str, Tensor]) -> Tensor:
    """[]: the sum over pairs of (cosine - score)^2, as sentence-transformers' CosineSimilarityLoss (Reimers and Gurevych
    2019, arXiv 1908.10084, section 3)."""
    cosines, scores = cosines_of(vectors, targets)
    return (
        cosines - scores
    ).square().sum() + vectors.sum() * 0.0  # an empty batch has its backward pass, too


def cosent_sums(vectors: Tensor, targets: Mapping[str, Tensor], scale: float, count: int) -> Tensor:
    """[]: this rank's share of `count` times the loss of CoSENT over the pairs of all ranks.

    log(1 + sum over pairs i, j with score_i > score_j of exp(scale (cos_j - cos_i))) (Su Jianlin 2022,
    https://kexue.fm/archives/8847, equation 6; sentence-transformers' CoSENTLoss). It is one number for a batch, and every
    rank has an equal part of it.
    """
    cosines, scores = (gather_rows(x) for x in cosines_of(vectors, targets))
    higher = scores[:, None] > scores[None, :]
    differences = scale * (cosines[None, :] - cosines[:, None])
    terms = torch.cat([differences[higher], differences.new_zeros(1)])
    ranks = dist.get_world_size() if dist.is_initialized() else 1
    return torch.logsumexp(terms, 0) * count / ranks + vectors.sum() * 0.0
