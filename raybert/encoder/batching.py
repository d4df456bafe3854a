"""Which texts go together in one forward pass: batches bounded in tokens, over texts of similar length."""

import numpy as np


def plan_batches(lengths: np.ndarray, batch_tokens: int, *, padded: bool = False) -> list[np.ndarray]:
    """Row numbers of every batch, int64 arrays, the longest texts first.

    Rows are sorted by length, so that neighbours are of one length or nearly so, and a batch that does not fit in
    memory fails first and not an hour later. The tokens of a batch are at most batch_tokens; with `padded`, rows x
    longest are. A row longer than that goes alone. Equal lengths keep their input order, so the plan depends on
    nothing but its arguments.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens is {batch_tokens}; it must be at least 1")
    lengths = np.asarray(lengths, np.int64)
    order = np.argsort(-lengths, kind="stable")
    ends = np.cumsum(lengths[order])
    batches, start = [], 0
    while start < len(order):
        if padded:
            rows = batch_tokens // max(int(lengths[order[start]]), 1)
        else:
            before = ends[start - 1] if start else 0
            rows = int(np.searchsorted(ends, before + batch_tokens, side="right")) - start
        batches.append(order[start : start + max(rows, 1)])
        start += max(rows, 1)
    return batches


def computed_tokens(lengths: np.ndarray, batch_tokens: int, *, padded: bool = False) -> int:
    """Tokens that go through the model: the texts' own, with `padded` those of padding too."""
    if not padded:
        return int(np.sum(lengths))
    batches = plan_batches(lengths, batch_tokens, padded=True)
    return sum(len(rows) * int(lengths[rows].max()) for rows in batches)


def filled(tokens: int) -> int:
    """`tokens` rounded up to one of 16 numbers between a power of two and the next, a multiple of 8.

    On a CPU oneDNN builds a kernel for every new number of rows: 2 ms each for AMX, in which that multiplies a thousand
    rows. Filled batches meet few numbers, and its kernels stay few enough to be kept.
    """
    step = max(8, 1 << max(tokens.bit_length() - 5, 0))
    return -(-tokens // step) * step


def pack(values: np.ndarray, offsets: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """The ids of some rows one after the other: int64 [tokens]."""
    starts = offsets[rows]
    lengths = offsets[rows + 1] - starts
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if len(ends) else 0
    return values[np.arange(total) + np.repeat(starts - (ends - lengths), lengths)].astype(np.int64)
