"""Parquet and Arrow files, read as a stream of record batches and cut at the bounds of the shards."""

from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import accumulate

import pyarrow as pa
import pyarrow.parquet as pq

from raybert.corpus.columns import Reasons, conform, plain_type, text_of_column
from raybert.corpus.filesystems import is_local, resolve
from raybert.corpus.shards import Scan, Shard, Size, cut
from raybert.corpus.sources import File

_BATCH_BYTES = 8 << 20
_BATCH_ROWS = 8192
_BUFFER = 1 << 20


def scan_parquet(file: File, size: Size, text_columns: list[str]) -> Scan:
    """Rows, columns and shards from the footer alone."""
    with _parquet(file) as parquet:
        footer, schema = parquet.metadata, parquet.schema_arrow
        groups = [footer.row_group(i) for i in range(footer.num_row_groups)]
        pieces = [(group.num_rows, _group_bytes(group, text_columns)) for group in groups]
        first_rows = [0, *accumulate(rows for rows, _ in pieces)]
        extents = [_extent(group) for group in groups]
    shards = []
    for shard in cut(pieces, size):
        first = bisect_right(first_rows, shard.start) - 1
        last = bisect_right(first_rows, shard.end - 1) - 1
        shards.append(replace(shard, begin=extents[first][0], stop=max(extents[first][0], extents[last][1])))
    return Scan(first_rows[-1], tuple(schema.names), _types(schema), tuple(shards))


def scan_arrow(file: File, size: Size, text_columns: list[str]) -> Scan:
    """Rows and shards from the record batches, of which only the text columns are loaded."""
    with _arrow(file, text_columns) as (schema, batches):
        pieces = [(batch.num_rows, sum(column.nbytes for column in batch.columns)) for batch in batches]
    shards = cut(pieces, size)
    return Scan(sum(rows for rows, _ in pieces), tuple(schema.names), _types(schema), shards)


def read_columnar(
    file: File,
    shards: list[Shard],
    columns: list[str],
    *,
    types: dict[str, pa.DataType],
    text_columns: list[str],
) -> Iterator[tuple[dict[str, pa.ChunkedArray], Reasons]]:
    """The columns of each shard, in one pass over the row groups or batches that hold them."""
    source = _parquet_batches if file.format == "parquet" else _arrow_batches
    for table in _cut_batches(file, source(file, shards, columns), shards):
        reasons = Reasons(table.num_rows)
        out = {}
        for name in columns:
            column = table[name]
            if name in text_columns:
                out[name] = text_of_column(column, reasons)
            else:
                out[name] = conform(name, column, types.get(name, plain_type(column.type)), reasons)
        yield out, reasons


def _cut_batches(
    file: File, batches: Iterator[tuple[int, pa.RecordBatch]], shards: list[Shard]
) -> Iterator[pa.Table]:
    """Regroup (first row, batch) pairs into one table a shard; rows between shards are dropped."""
    waiting = iter(shards)
    shard = next(waiting, None)
    parts: list[pa.RecordBatch] = []
    for first, batch in batches:
        while shard is not None and shard.start < first + batch.num_rows:
            begin = max(shard.start - first, 0)
            parts.append(batch.slice(begin, min(shard.end - first, batch.num_rows) - begin))
            if shard.end > first + batch.num_rows:
                break
            yield pa.Table.from_batches(parts)
            parts, shard = [], next(waiting, None)
        if shard is None:
            return
    if shard is not None:
        raise ValueError(f"{file.uri}: shorter than when it was planned")


def _parquet_batches(
    file: File, shards: list[Shard], columns: list[str]
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Batches of about 8 MiB, so that a huge row group is never held whole."""
    with _parquet(file) as parquet:
        _require(file, parquet.schema_arrow, columns)
        first = 0
        for i in range(parquet.metadata.num_row_groups):
            group = parquet.metadata.row_group(i)
            after = first + group.num_rows
            if group.num_rows and any(shard.start < after and shard.end > first for shard in shards):
                each = max(1, _group_bytes(group, columns) // group.num_rows)
                rows = max(1, min(_BATCH_ROWS, _BATCH_BYTES // each))
                for batch in parquet.iter_batches(rows, row_groups=[i], columns=columns):
                    yield first, batch
                    first += batch.num_rows
            first = after


def _arrow_batches(
    file: File, shards: list[Shard], columns: list[str]
) -> Iterator[tuple[int, pa.RecordBatch]]:
    first = 0
    with _arrow(file, columns) as (schema, batches):
        _require(file, schema, columns)
        for batch in batches:
            yield first, batch
            first += batch.num_rows


@contextmanager
def _parquet(file: File) -> Iterator[pq.ParquetFile]:
    fs, inner = resolve(file.path)
    # Without pre-buffering, a column of a row group is read through a small buffer, not loaded whole.
    with (
        fs.open_input_file(inner) as source,
        pq.ParquetFile(source, buffer_size=_BUFFER, pre_buffer=False) as parquet,
    ):
        yield parquet


@contextmanager
def _arrow(file: File, columns: list[str]) -> Iterator[tuple[pa.Schema, Iterator[pa.RecordBatch]]]:
    """The whole schema, and the batches with only `columns`. Both kinds of IPC file: with a footer and without."""
    fs, inner = resolve(file.path)
    if not file.size:
        yield pa.schema([]), iter(())
        return
    with pa.memory_map(inner) if is_local(fs) else fs.open_input_file(inner) as source:
        magic = source.read(6)
        source.seek(0)
        opened = pa.ipc.open_file if magic == b"ARROW1" else pa.ipc.open_stream
        schema = opened(source).schema
        source.seek(0)
        fields = [schema.get_field_index(name) for name in columns if schema.get_field_index(name) >= 0]
        reader = opened(source, options=pa.ipc.IpcReadOptions(included_fields=fields))
        if magic == b"ARROW1":
            yield schema, (reader.get_batch(i) for i in range(reader.num_record_batches))
        else:
            yield schema, iter(reader)


def _require(file: File, schema: pa.Schema, columns: list[str]) -> None:
    for name in columns:
        if schema.get_field_index(name) < 0:
            raise ValueError(f"{file.uri}: no column {name!r}, or more than one")


def _group_bytes(group: pq.RowGroupMetaData, columns: list[str]) -> int:
    """Uncompressed bytes of some columns; a nested column is stored as `name.part`."""
    chunks = (group.column(i) for i in range(group.num_columns))
    return sum(
        chunk.total_uncompressed_size
        for chunk in chunks
        if any(
            chunk.path_in_schema == name or chunk.path_in_schema.startswith(name + ".") for name in columns
        )
    )


def _extent(group: pq.RowGroupMetaData) -> tuple[int, int]:
    """Where the bytes of a row group begin and end in the file."""
    chunks = [group.column(i) for i in range(group.num_columns)]
    begins = [min(filter(None, (c.dictionary_page_offset, c.data_page_offset)), default=0) for c in chunks]
    ends = [begin + chunk.total_compressed_size for begin, chunk in zip(begins, chunks, strict=True)]
    return min(begins, default=0), max(ends, default=0)


def _types(schema: pa.Schema) -> dict[str, pa.DataType]:
    return {field.name: plain_type(field.type) for field in schema}
