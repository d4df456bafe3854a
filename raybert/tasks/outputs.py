"""What a model gave for sequences or their tokens, by name: some of it, and whether it is finite. Without torch."""

from collections.abc import Iterator, Mapping

import numpy as np

from raybert.tasks.examples import Examples, Lists


def take(values: np.ndarray, lengths: np.ndarray, some: np.ndarray) -> np.ndarray:
    """What was given for some of n sequences of these lengths, in the order of `some`.

    Args:
        values: [n, ...] of sequences or [tokens, ...] of their tokens, told apart by how many there are.
    """
    if len(values) == len(lengths):
        return values[some]
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    assert len(values) == offsets[-1], "outputs are of sequences or of tokens"
    return Lists(values, offsets).take(some).values


def finite_rows(outputs: Mapping[str, np.ndarray], examples: Examples) -> np.ndarray:
    """bool [n]: the sequences of rows for which all outputs are finite."""
    good = np.ones(len(examples), bool)
    if not len(examples):
        return good
    for values in outputs.values():
        if values.dtype == object:  # texts
            continue
        fine = np.isfinite(values).reshape(len(values), -1).all(1)
        if len(values) != len(examples):
            fine = np.logical_and.reduceat(fine, examples.ids.offsets[:-1])
        good &= fine
    starts = np.flatnonzero(examples.first)
    return np.logical_and.reduceat(good, starts)[examples.number]


def blocks(examples: Examples, size: int) -> Iterator[np.ndarray]:
    """Numbers of all sequences in order, in blocks of `size` or, where a row does not end there, a few more."""
    starts = np.append(np.flatnonzero(examples.first), len(examples))
    at = 0
    while at < len(examples):
        end = int(starts[np.searchsorted(starts, min(at + size, len(examples)))])
        yield np.arange(at, end)
        at = end
