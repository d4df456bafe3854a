"""One optimizer step over the micro batches of one rank: the loss, its normalisation, the dropout seeds.

The loss of a step is (sum over predicted tokens) / (their number in the global batch) + the same for pairs. So neither
the size of a micro batch nor the number of workers changes the gradients.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from raybert.train.packed import Micro, empty_batch, pack
from raybert.train.pretraining_model import Sums

# (bin number, content); None stands for the empty batch of a rank that has one less
Micros = Sequence[tuple[int, Micro] | None]


@dataclass(frozen=True)
class Counts:
    """What a global batch holds, over all ranks."""

    predictions: int
    pairs: int
    tokens: int
    sequences: int


@dataclass(frozen=True)
class Figures:
    """What one step, or an evaluation, found: means over the global batch; nan where there was nothing to count."""

    loss: float
    mlm_loss: float
    mlm_accuracy: float
    pair_loss: float
    pair_accuracy: float
    tokens: int
    predictions: int
    grad_norm: float = float("nan")

    @property
    def perplexity(self) -> float:
        """exp of the MLM loss."""
        return float(np.exp(self.mlm_loss))

    def as_dict(self) -> dict[str, float]:
        """The figures that are numbers, by name."""
        found = {**asdict(self), "perplexity": self.perplexity}
        return {name: value for name, value in found.items() if value == value}


def count(micros: Micros) -> Counts:
    """The counts of one rank; their sum over the ranks is the global one."""
    real = [entry[1] for entry in micros if entry is not None]
    return Counts(
        predictions=sum(len(micro.labels) for micro in real),
        pairs=sum(int((micro.pair_labels >= 0).sum()) for micro in real),
        tokens=sum(len(micro.ids) for micro in real),
        sequences=sum(len(micro.lengths) for micro in real),
    )


def even_out(micros: Sequence[tuple[int, Micro]], bins: int, world: int) -> Micros:
    """As many micro batches as the busiest rank has: ceil(bins / world)."""
    missing = -(-bins // world) - len(micros)
    assert missing >= 0
    return [*micros, *[None] * missing]


def loss_of(sums: Sums, counts: Counts) -> Tensor:
    """This batch's share of the global loss."""
    return sums.mlm_sum / max(1, counts.predictions) + sums.pair_sum / max(1, counts.pairs)


def seed_dropout(seed: int, step: int, number: int) -> None:
    """Torch's generators for bin `number` of `step`: dropout does not depend on which rank computes it, or when."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, number)).generate_state(1, np.uint64)[0] >> 1))


def accumulate(
    model: Callable[..., Sums],
    micros: Micros,
    counts: Counts,
    *,
    seed: int,
    step: int,
    device: str | torch.device = "cpu",
    backward: Callable[[Tensor], object] = Tensor.backward,
    scale: float = 1.0,
) -> Tensor:
    """Forward and backward of all micro batches of one rank.

    Args:
        model: batch -> Sums.
        counts: of the global batch.
        backward: takes the loss of a micro batch, times `scale`.

    Returns:
        float64 [6]: the `Sums` of this rank, added up, on the device.
    """
    totals = torch.zeros(len(Sums._fields), dtype=torch.float64, device=device)
    for entry in micros:
        number, batch = (0, empty_batch(device)) if entry is None else (entry[0], pack(entry[1], device))
        seed_dropout(seed, step, number)
        sums = Sums(*model(batch))
        backward(loss_of(sums, counts) * scale)
        totals += torch.stack([value.detach() for value in sums]).double()
    return totals


def figures(totals: Sequence[float], counts: Counts, grad_norm: float = float("nan")) -> Figures:
    """The figures of a global batch from its summed `Sums`."""
    sums = Sums(*totals)  # type: ignore[arg-type]

    def mean(total: float, over: float) -> float:
        return float(total / over) if over else float("nan")

    return Figures(
        loss=float(sums.mlm_sum / max(1, counts.predictions) + sums.pair_sum / max(1, counts.pairs)),
        mlm_loss=mean(sums.mlm_sum, counts.predictions),
        mlm_accuracy=mean(sums.mlm_correct, counts.predictions),
        pair_loss=mean(sums.pair_sum, counts.pairs),
        pair_accuracy=mean(sums.pair_correct, counts.pairs),
        tokens=counts.tokens,
        predictions=counts.predictions,
        grad_norm=grad_norm,
    )


def train_step(
    model: nn.Module,
    optimizer: Optimizer,
    micros: Micros,
    *,
    lr: float,
    seed: int,
    step: int,
    clip: float | None = None,
    device: str | torch.device = "cpu",
) -> Figures:
    """One update in one process, with neither Ray nor DeepSpeed: for benchmarks and as the reference in tests.

    `clip` bounds the norm of the whole gradient; no update is made where that is not finite.
    """
    counts = count(micros)
    optimizer.zero_grad()
    totals = accumulate(model, micros, counts, seed=seed, step=step, device=device)
    norm = clip_grad_norm_(model.parameters(), clip or float("inf"))
    for group in optimizer.param_groups:
        group["lr"] = lr
    if torch.isfinite(norm):
        optimizer.step()
    return figures(totals.tolist(), counts, float(norm))
