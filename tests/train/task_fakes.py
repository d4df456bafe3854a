"""Small examples of a task, made on the spot."""

import numpy as np

from raybert.tasks.examples import Examples, Lists
from raybert.train.example_stream import ExampleMicro
from tests.train.fakes import VOCABULARY


def examples_of(
    seed: int, n: int = 5, *, kind: str = "single", pairs: bool = True, weight: np.ndarray | None = None
) -> Examples:
    """Random sequences of 3 to 14 tokens with labels of 3."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, 15, n)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    labels = rng.integers(0, 3, n)
    targets = {"labels": labels}
    if kind == "multi":
        targets = {"labels": rng.integers(0, 2, (n, 3)).astype(np.float32)}
    if kind == "regression":
        targets = {"labels": rng.normal(size=n).astype(np.float32)}
    if weight is not None:
        targets["weight"] = weight[labels].astype(np.float32)
    ids = rng.integers(5, VOCABULARY, offsets[-1]).astype(np.int32)
    boundary = lengths // 2 if pairs else lengths
    return Examples(Lists(ids, offsets), boundary.astype(np.int32), np.arange(n), targets)


def micro_of(seed: int, n: int = 5, **options) -> ExampleMicro:
    """All of `examples_of` in one batch."""
    return ExampleMicro(examples_of(seed, n, **options))
