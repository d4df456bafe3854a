"""Rows of a corpus that were not used: one row each in the rejects file, with the reason."""

import numpy as np
import pyarrow as pa

from raybert.corpus.vectors import REJECT_SCHEMA


def rejects_table(
    ids: pa.Array | pa.ChunkedArray, rows: np.ndarray, reasons: np.ndarray, source: str
) -> pa.Table | None:
    """The rows [n] that have a reason (others have None), each once; None if there is none.

    `rows` are row numbers of the file, ascending; what stands in several places (a document's windows) counts once.
    """
    bad = np.array([reason is not None for reason in reasons], bool)
    if len(rows):
        bad &= np.r_[True, rows[1:] != rows[:-1]]
    if not bad.any():
        return None
    columns = [
        ids.filter(pa.array(bad)).cast(pa.string(), safe=False),
        pa.array([source] * int(bad.sum())),
        pa.array(rows[bad]),
        pa.array(reasons[bad], pa.string()),
    ]
    return pa.table(columns, schema=REJECT_SCHEMA)


def count_reasons(rejects: pa.Table | None) -> dict[str, int]:
    """How often each kind of reason occurs; what follows a colon is the row's own."""
    if rejects is None:
        return {}
    kinds = [reason.partition(":")[0] for reason in rejects["reason"].to_pylist()]
    return {kind: kinds.count(kind) for kind in sorted(set(kinds))}
