"""A tiny classifier and its batches, for the tests of freezing, adapters, adversarial training and the like."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForSequenceClassification

from raybert.encoder.attention import Rows
from raybert.train.adversarial import with_delta
from raybert.train.packed import PACKED
from tests.train.fakes import VOCABULARY, config

FAMILIES = (
    "bert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "electra",
    "distilbert",
    "mpnet",
    "modernbert",
)
CLASSES = 3


@dataclass(frozen=True)
class Batch:
    """As raybert.train.packed.PackedBatch, with a label a sequence."""

    ids: Tensor
    places: Tensor
    rows: Rows
    labels: Tensor


class Sums(NamedTuple):
    loss_sum: Tensor
    count: Tensor


def batch(seed: int, lengths: tuple[int, ...] = (3, 7, 7, 12)) -> Batch:
    """Random sequences of these lengths, which must rise."""
    rng = np.random.default_rng(seed)
    rows = Rows(np.array(lengths, dtype=np.int64))
    ids = torch.from_numpy(rng.integers(5, VOCABULARY, (1, sum(lengths))))
    labels = torch.from_numpy(rng.integers(0, CLASSES, len(lengths)))
    return Batch(ids, torch.from_numpy(rows.positions)[None], rows, labels)


def alone(batch: Batch) -> list[tuple[Tensor, Tensor]]:
    """(ids [1, length], label [1]) of every sequence."""
    return list(zip(batch.ids.split(batch.rows.lengths.tolist(), 1), batch.labels.split(1), strict=True))


def plain_model(family: str = "bert", *, dropout: float = 0.0, seed: int = 0, **changes: object):
    """A sequence classifier of transformers with the weights of `seed`."""
    if family == "modernbert":
        changes = {"cls_token_id": 1, "sep_token_id": 2, **changes}
    if family == "albert":
        changes = {"embedding_size": 16, **changes}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        made = AutoModelForSequenceClassification.from_config(
            config(family, dropout=dropout, num_labels=CLASSES, **changes)
        )
    with torch.no_grad():  # random biases and norms, so that every parameter matters
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter += torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) / 10
    return made.train()


class Classifier(nn.Module):
    """A training model: the `Sums` of a batch by the whole transformers model, each sequence at its first token."""

    def __init__(self, plain, *, padded: bool = False) -> None:
        super().__init__()
        self.plain, self.padded = plain, padded
        plain.set_attn_implementation("sdpa" if padded else PACKED)

    def forward(self, batch: Batch, delta: Tensor | None = None, outputs: bool = False):
        with with_delta(self.plain, delta):
            logits = self.logits(batch)
        loss = nn.functional.cross_entropy(logits, batch.labels, reduction="sum")
        sums = Sums(loss, torch.tensor(float(len(batch.labels))))
        return (sums, logits) if outputs else sums

    def logits(self, batch: Batch) -> Tensor:
        lengths = batch.rows.lengths.tolist()
        if self.padded:
            rows = [row[0] for row in batch.ids.split(lengths, 1)]
            mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
            ids = pad_sequence(rows, batch_first=True)
            first = self.plain.base_model(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
        else:
            found = self.plain.base_model(input_ids=batch.ids, position_ids=batch.places, packed=batch.rows)
            first = found.last_hidden_state[0, torch.from_numpy(batch.rows.offsets[:-1])]
        if hasattr(self.plain, "bert"):
            return self.plain.classifier(self.plain.dropout(self.plain.bert.pooler(first[:, None])))
        return self.plain.classifier(first[:, None])


def gradients(model: nn.Module) -> dict[str, Tensor]:
    """Copies of what backward passes left, by name."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def largest_difference(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest |found - expected| / the largest |expected| of a tensor, over all tensors."""
    assert found.keys() == expected.keys()
    largest = {name: float(value.abs().max()) for name, value in expected.items()}
    # the gradient of a bias of keys is 0 but for rounding
    least = 1e-2 * max(largest.values())
    return max(
        float((found[name] - value).abs().max()) / max(largest[name], least)
        for name, value in expected.items()
    )
