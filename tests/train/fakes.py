"""Small models and batches for the tests of training."""

from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import torch
from transformers import AutoConfig, PreTrainedConfig

VOCABULARY = 97


@dataclass(frozen=True)
class FakeMicro:
    """As raybert.pretrain.stream.MicroBatch."""

    ids: np.ndarray
    lengths: np.ndarray
    types: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    pair_labels: np.ndarray
    digest: int = 0

    per_token = MappingProxyType({})

    @property
    def per_sequence(self) -> dict[str, np.ndarray]:
        return {"pair_labels": self.pair_labels}

    @property
    def per_position(self) -> dict[str, np.ndarray]:
        return {"labels": self.labels}


def micro(seed: int, lengths: tuple[int, ...] = (7, 12, 3, 12, 9), *, pairs: bool = True) -> FakeMicro:
    """Random sequences of these lengths, about a fifth of the tokens predicted, every third sequence no pair."""
    rng = np.random.default_rng(seed)
    tokens = sum(lengths)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    place = np.arange(tokens) - np.repeat(starts, lengths)
    types = (
        (place >= np.repeat(lengths, lengths) // 2).astype(np.int64) if pairs else np.zeros(tokens, np.int64)
    )
    positions = np.sort(rng.choice(tokens, max(1, tokens // 5), replace=False))
    pair_labels = rng.integers(0, 2, len(lengths)) if pairs else np.full(len(lengths), -100)
    pair_labels[2::3] = -100
    ids = rng.integers(5, VOCABULARY, tokens)
    labels = (ids[positions] * 7 + 3) % VOCABULARY  # learnable
    return FakeMicro(ids, np.array(lengths), types, positions, labels, pair_labels, digest=seed)


def config(family: str = "bert", *, dropout: float = 0.0, **changes: object) -> PreTrainedConfig:
    """Two layers, 32 wide."""
    shape: dict[str, object] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }
    if family == "distilbert":
        shape = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "dropout": dropout}
        shape["attention_dropout"] = dropout
    if family == "electra":
        shape["embedding_size"] = 16
    return AutoConfig.for_model(
        family,
        vocab_size=VOCABULARY,
        max_position_embeddings=64,
        pad_token_id=1 if family == "roberta" else 0,
        initializer_range=0.2,
        **{**shape, **changes},
    )


def model(family: str = "bert", *, pairs: bool = False, dropout: float = 0.0, seed: int = 0, **options):
    """A PretrainingModel with the weights of `seed`."""
    from raybert.train.pretraining_model import PretrainingModel, build_model

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return PretrainingModel(build_model(config(family, dropout=dropout), pairs=pairs), **options)
