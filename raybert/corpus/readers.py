"""Input files to shards and Arrow tables, row for row: what cannot be read becomes a row with a reason."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import pyarrow as pa

from raybert.corpus.columnar import read_columnar, scan_arrow, scan_parquet
from raybert.corpus.delimited import read_delimited, scan_delimited
from raybert.corpus.documents import read_documents, scan_documents
from raybert.corpus.lines import read_jsonl, read_text, scan_lines
from raybert.corpus.shards import Scan, Shard, Size
from raybert.corpus.sources import File, compression_of
from raybert.corpus.streams import naming

__all__ = ["REASON", "Scan", "Shard", "check_columns", "read", "reads_anywhere", "scan", "spans"]

REASON = "_reason"
"""The last column of every table: null where the row is fine."""

_TOGETHER = 8


def scan(
    file: File,
    *,
    rows_per_shard: int,
    max_bytes: int = 64 << 20,
    first_bytes: int | None = None,
    text_columns: list[str],
    max_chars: int | None = None,
) -> Scan:
    """Count the rows of a file and cut it into shards; follows from the content and these settings alone.

    Reads the footer of a Parquet file, and streams once through others. `max_bytes` bounds the text of a shard (of a
    line format: its lines), as far as whole rows allow; see `Size` for `first_bytes`.

    Raises:
        ValueError: the content is broken as a whole, e.g. a .gz that breaks off or a Parquet file without footer.
    """
    size = Size(rows_per_shard, max_bytes, first_bytes)
    with naming(file):
        if file.format == "parquet":
            return scan_parquet(file, size, text_columns)
        if file.format == "arrow":
            return scan_arrow(file, size, text_columns)
        if file.format == "documents":
            return scan_documents(file, size)
        if file.format in ("csv", "tsv"):
            return scan_delimited(file, size, max_chars)
        return scan_lines(file, size, max_chars)


def spans(file: File, shards: Sequence[Shard], pending: Iterable[Shard]) -> list[list[Shard]]:
    """Those of a file's `shards` that are pending, in runs that one task best reads in one pass. Opens nothing.

    Shards of one Parquet row group go together, as do all of a file that can only be read from its start; of others,
    up to 8 neighbours.
    """
    pending = set(pending)
    ordered = [shard for shard in shards if shard in pending]
    if not ordered or _only_from_the_start(file):
        return [ordered] if ordered else []
    runs = [ordered[:1]]
    for before, shard in pairwise(ordered):
        if file.format == "parquet":
            together = shard.begin == before.begin
        else:
            together = before.end == shard.start and len(runs[-1]) < _TOGETHER
        if together:
            runs[-1].append(shard)
        else:
            runs.append([shard])
    return runs


def read(
    file: File,
    shards: list[Shard],
    columns: list[str],
    *,
    types: dict[str, pa.DataType],
    text_columns: list[str],
    max_chars: int | None = None,
) -> Iterator[pa.Table]:
    """One table for each shard, in order, with exactly `end - start` rows.

    Args:
        shards: ascending and without overlap, best a run of `spans`.
        columns: those wanted, from `Scan.columns`.
        types: of the columns that are not text; a value that does not fit becomes null and gives its row a reason.
        text_columns: come as large_string, always valid UTF-8.
        max_chars: as given to `scan`; a line of more than 8 bytes a character (and 1 MiB) is not held.

    Returns:
        tables of `columns` and the column `REASON`.

    Raises:
        ValueError: the file is broken, became shorter, or lacks a column.
    """
    columns = list(dict.fromkeys(columns))
    found = _read(file, shards, columns, types, [name for name in columns if name in text_columns], max_chars)
    for shard in shards:
        with naming(file):
            table, reasons = next(found)
        assert reasons.rows == shard.end - shard.start
        yield pa.table({**{name: table[name] for name in columns}, REASON: reasons.array()})


def check_columns(file: File, scan: Scan, wanted: list[str]) -> None:
    """Raise ValueError if a wanted column is not in a file that has rows."""
    if not scan.rows or not scan.columns:  # no column at all: every row is unreadable and says why
        return
    for name in wanted:
        if name not in scan.columns or name == REASON:
            names = ", ".join(scan.columns[:20]) + (", ..." if len(scan.columns) > 20 else "")
            raise ValueError(
                f"data.text, data.id, data.columns or the group task: column {name!r} is not in {file.uri}; it has: {names}"
            )


def reads_anywhere(file: File) -> bool:
    """Whether a shard in the middle can be read without what is before it."""
    return not _only_from_the_start(file)


def _only_from_the_start(file: File) -> bool:
    if file.format == "arrow":  # on a disk, skipped batches are never loaded
        return "://" in file.path
    return file.format not in ("parquet", "documents") and compression_of(file.uri) is not None


def _read(
    file: File,
    shards: list[Shard],
    columns: list[str],
    types: dict[str, pa.DataType],
    text_columns: list[str],
    max_chars: int | None,
) -> Iterator[tuple[dict, object]]:
    if file.format in ("parquet", "arrow"):
        return read_columnar(file, shards, columns, types=types, text_columns=text_columns)
    if file.format == "documents":
        return read_documents(file, shards, max_chars)
    if file.format == "text":
        return read_text(file, shards, max_chars)
    reader = read_jsonl if file.format == "jsonl" else read_delimited
    return reader(file, shards, columns, types=types, text_columns=text_columns, max_chars=max_chars)
