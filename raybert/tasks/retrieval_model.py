"""Models that find documents: an encoder of queries and documents, and the ranking loss over the global batch."""

from collections.abc import Mapping

from torch import Tensor

from raybert.config.pair_tasks import RetrievalSettings
from raybert.tasks.base_model import TaskSums
from raybert.tasks.bi_encoder_model import AUTO, BiEncoder, Predictor, configure, finish
from raybert.tasks.contrastive_model import Members, Ranking, ranking_sums

__all__ = ["AUTO", "Model", "Predictor", "configure", "finish"]


class Model(BiEncoder):
    """A target is a query. See `BiEncoder`."""

    @staticmethod
    def sums_type(settings: RetrievalSettings) -> type:
        """The loss, and the queries that find their own document first."""
        del settings
        return TaskSums

    @staticmethod
    def share(
        settings: RetrievalSettings, vectors: Tensor, targets: Mapping[str, Tensor], count: int
    ) -> TaskSums:
        """See `BiEncoder.share`."""
        del count
        real = targets["role"] >= 0
        members = Members(*(targets[name][real] for name in ("example", "role", "key")))
        ranking = Ranking(
            settings.scale, settings.symmetric, tuple(settings.dimensions), tuple(settings.weights)
        )
        found = ranking_sums(vectors[real], members, ranking)
        return TaskSums(found.loss_sum, found.correct)
