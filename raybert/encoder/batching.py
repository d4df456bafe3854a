"""Which texts go together in one forward pass: batches bounded in tokens, over texts of similar length."""

import numpy as np


def plan_batches(lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Row numbers of every batch, int64 arrays, the longest texts first.

    Rows are sorted by length, so a batch has little padding, and a batch that does not fit in memory fails first
    and not an hour later. In each batch rows x longest <= batch_tokens; a row longer than that goes alone.
    Equal lengths keep their input order, so the plan depends on nothing but its two arguments.
    """
    if batch_tokens < 1:
        raise ValueError(f"batch_tokens is {batch_tokens}; it must be at least 1")
    order = np.argsort(-np.asarray(lengths, np.int64), kind="stable")
    batches, start = [], 0
    while start < len(order):
        longest = max(int(lengths[order[start]]), 1)
        rows = max(batch_tokens // longest, 1)
        batches.append(order[start : start + rows])
        start += rows
    return batches


def pad(
    values: np.ndarray, offsets: np.ndarray, rows: np.ndarray, pad_id: int
) -> tuple[np.ndarray, np.ndarray]:
    """The ids of some rows as a rectangle: (ids int64 [b, t] padded on the right, mask bool [b, t])."""
    starts = offsets[rows]
    lengths = offsets[rows + 1] - starts
    columns = np.arange(max(int(lengths.max(initial=0)), 1))  # a model needs one column even for no token
    mask = columns < lengths[:, None]
    ids = np.full(mask.shape, pad_id, np.int64)
    ids[mask] = values[(starts[:, None] + columns)[mask]]
    return ids, mask
