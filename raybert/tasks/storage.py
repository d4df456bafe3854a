"""Examples as a Parquet file, and back: what the driver made is what every worker reads."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raybert.tasks.examples import Examples, Lists

_OWN = ("ids", "boundary", "row")
_TRUTH = "truth."


def to_bytes(examples: Examples) -> pa.Buffer:
    """The same bytes for the same examples. Targets of tokens are lists, [n, k] fixed-size lists, [n] plain columns."""
    columns = {
        "ids": _column(examples.ids),
        "boundary": pa.array(examples.boundary),
        "row": pa.array(examples.row),
        **{name: _column(target) for name, target in examples.targets.items()},
        **{_TRUTH + name: _column(values) for name, values in examples.truth.items()},
    }
    assert len(columns) == len(_OWN) + len(examples.targets) + len(examples.truth), (
        "a target has the name of a column of our own"
    )
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns), sink, compression="zstd")
    return sink.getvalue()


def from_bytes(data: bytes) -> Examples:
    """The inverse of `to_bytes`."""
    table = pq.read_table(pa.BufferReader(data))
    names = [name for name in table.column_names if name not in _OWN]
    ids = _target(table["ids"])
    assert isinstance(ids, Lists)
    return Examples(
        ids=ids,
        boundary=table["boundary"].to_numpy(),
        row=table["row"].to_numpy(),
        targets={name: _target(table[name]) for name in names if not name.startswith(_TRUTH)},
        truth={name.removeprefix(_TRUTH): _target(table[name]) for name in names if name.startswith(_TRUTH)},
    )


def _column(values: np.ndarray | Lists) -> pa.Array:
    if isinstance(values, Lists):
        return pa.LargeListArray.from_arrays(pa.array(values.offsets), _column(values.values))
    if values.ndim == 2:
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.array(values, pa.large_string()) if values.dtype == object else pa.array(values)


def _target(column: pa.ChunkedArray) -> np.ndarray | Lists:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # of no rows
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    if pa.types.is_fixed_size_list(array.type):
        return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), array.type.list_size)
    if pa.types.is_large_list(array.type) or pa.types.is_list(array.type):
        offsets = array.offsets.to_numpy().astype(np.int64)
        values = array.values.to_numpy(zero_copy_only=False)
        return Lists(values[offsets[0] : offsets[-1]], offsets - offsets[0])
    return array.to_numpy(zero_copy_only=False)
