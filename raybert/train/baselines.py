"""What a model that looks at nothing would reach on held-out data: figures below these are worth nothing."""

from collections.abc import Iterable

import numpy as np
import torch
import torch.distributed as dist

from raybert.train.step import Micros


def baselines(micros: Micros, vocabulary: int, device: str | torch.device = "cpu") -> dict[str, float]:
    """Of the held-out batches of all ranks, every one calling this in step.

    Returns:
        `unigram_accuracy`: of always predicting the commonest of the masked tokens. `unigram_loss`: the entropy of
        their distribution, which no model of single tokens undercuts. `pair_majority`: share of the commoner kind of
        pair; missing where there are none.
    """
    real = [entry[1] for entry in micros if entry is not None]
    tokens = _count((micro.per_position["labels"] for micro in real), vocabulary, device)
    pairs = _count((micro.per_sequence["pair_labels"] for micro in real), 2, device)
    share = tokens[tokens > 0] / tokens.sum()
    found = {"unigram_accuracy": float(share.max()), "unigram_loss": float(-(share * share.log()).sum())}
    if pairs.sum():
        found["pair_majority"] = float(pairs.max() / pairs.sum())
    return found


def _count(labels: Iterable[np.ndarray], kinds: int, device: str | torch.device) -> torch.Tensor:
    """How often each label from 0 on occurs on all ranks; float64 [kinds]."""
    own = np.zeros(kinds)
    for values in labels:
        own += np.bincount(values[values >= 0], minlength=kinds)
    counts = torch.from_numpy(own).to(device)
    dist.all_reduce(counts)
    return counts
