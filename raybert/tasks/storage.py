"""Examples as a Parquet file or a column of a table, and back: what was made once is what every worker reads."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raybert.tasks.examples import Examples, Lists

_OWN = ("ids", "boundary", "row")
_TRUTH = "truth."
_CUT = "cut"


def to_table(examples: Examples) -> pa.Table:
    """A row a sequence. Targets of tokens are lists, [n, k] fixed-size lists, [n] plain columns."""
    columns = {
        "ids": _column(examples.ids),
        "boundary": pa.array(examples.boundary),
        "row": pa.array(examples.row),
        **({} if examples.cut is None else {_CUT: pa.array(examples.cut)}),
        **{name: _column(target) for name, target in examples.targets.items()},
        **{_TRUTH + name: _column(values) for name, values in examples.truth.items()},
    }
    own = len(_OWN) + (examples.cut is not None)
    assert len(columns) == own + len(examples.targets) + len(examples.truth), (
        "a target has the name of a column of our own"
    )
    return pa.table(columns)


def from_table(table: pa.Table) -> Examples:
    """The inverse of `to_table`."""
    names = [name for name in table.column_names if name not in (*_OWN, _CUT)]
    ids = _target(table["ids"])
    assert isinstance(ids, Lists)
    return Examples(
        ids=ids,
        boundary=table["boundary"].to_numpy(),
        row=table["row"].to_numpy(),
        targets={name: _target(table[name]) for name in names if not name.startswith(_TRUTH)},
        truth={name.removeprefix(_TRUTH): _target(table[name]) for name in names if name.startswith(_TRUTH)},
        cut=table[_CUT].to_numpy() if _CUT in table.column_names else None,
    )


def to_bytes(examples: Examples) -> pa.Buffer:
    """`to_table` as a Parquet file; the same bytes for the same examples."""
    sink = pa.BufferOutputStream()
    pq.write_table(to_table(examples), sink, compression="zstd")
    return sink.getvalue()


def from_bytes(data: bytes) -> Examples:
    """The inverse of `to_bytes`."""
    return from_table(pq.read_table(pa.BufferReader(data)))


def to_column(examples: Examples, rows: int) -> pa.Array:
    """Lists of structs, one list for each of the `rows` of a table that `examples.row` counts, in ascending order."""
    assert (np.diff(examples.row) >= 0).all(), "the sequences of a row must lie together, rows in order"
    table = to_table(examples).combine_chunks()
    columns = [_whole(table[name]) for name in table.column_names]
    offsets = np.searchsorted(examples.row, np.arange(rows + 1))
    return pa.LargeListArray.from_arrays(
        pa.array(offsets, pa.int64()), pa.StructArray.from_arrays(columns, table.column_names)
    )


def from_column(column: pa.ChunkedArray) -> Examples:
    """The inverse of `to_column`, of any of its rows; `row` is the place in this column."""
    lists = _whole(column)
    found = from_table(pa.Table.from_struct_array(lists.flatten()))
    return replace(
        found, row=np.repeat(np.arange(len(lists)), lists.value_lengths().to_numpy(zero_copy_only=False))
    )


def _column(values: np.ndarray | Lists) -> pa.Array:
    if isinstance(values, Lists):
        return pa.LargeListArray.from_arrays(pa.array(values.offsets), _column(values.values))
    if values.ndim == 2:
        flat = pa.array(np.ascontiguousarray(values).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, values.shape[1])
    return pa.array(values, pa.large_string()) if values.dtype == object else pa.array(values)


def _target(column: pa.ChunkedArray) -> np.ndarray | Lists:
    array = _whole(column)
    if pa.types.is_fixed_size_list(array.type):
        return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), array.type.list_size)
    if pa.types.is_large_list(array.type) or pa.types.is_list(array.type):
        offsets = array.offsets.to_numpy().astype(np.int64)
        values = array.values.to_numpy(zero_copy_only=False)
        return Lists(values[offsets[0] : offsets[-1]], offsets - offsets[0])
    return array.to_numpy(zero_copy_only=False)


def _whole(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    if isinstance(array, pa.ChunkedArray):  # of no rows
        array = pa.concat_arrays(array.chunks) if array.num_chunks else pa.array([], column.type)
    return array
