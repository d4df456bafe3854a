"""CSV and TSV: records with quoted fields that may hold newlines; the first record names the columns."""

import csv
import itertools
from collections.abc import Iterable, Iterator

import numpy as np
import pyarrow as pa

from raybert.corpus.columns import Reasons, conform, is_utf8, text_of_values
from raybert.corpus.shards import Cutter, Scan, Shard, Size
from raybert.corpus.sources import File
from raybert.corpus.streams import Cursor, Line, line_limit, lines, too_long

Record = list[str] | str
"""The fields of a record, or why it has none."""

_BATCH = 1 << 14
_GIVEN_BACK = 1 << 30


def scan_delimited(file: File, size: Size, max_chars: int | None) -> Scan:
    """Count records and find where shards begin, by the same parser that reads them."""
    with Cursor(file) as cursor:
        cursor.skip_bom()
        found = _records(cursor, None, file, line_limit(max_chars))
        names, begin = _header(file, found, cursor.at)
        cutter = Cutter(size, begin)
        ends: list[int] = []
        for _, end in found:
            ends.append(end)
            if len(ends) == _BATCH:
                cutter.add(np.array(ends))
                ends = []
        cutter.add(np.array(ends, dtype=np.int64))
    return Scan(cutter.rows, tuple(names), dict.fromkeys(names, pa.string()), cutter.finish())


def read_delimited(
    file: File,
    shards: list[Shard],
    columns: list[str],
    *,
    types: dict[str, pa.DataType],
    text_columns: list[str],
    max_chars: int | None,
) -> Iterator[tuple[dict[str, pa.Array], Reasons]]:
    """The records of each shard as columns of strings, or of `types` where another file decided them."""
    limit = line_limit(max_chars)
    with Cursor(file) as cursor:
        cursor.skip_bom()
        # Only the header's own bytes are taken, so that a compressed file need not be read twice.
        names, _ = _header(file, _records(cursor, shards[0].begin, file, limit), 0)
        for shard in shards:
            cursor.move(shard.begin)
            rows = shard.end - shard.start
            found = _take(_records(cursor, shard.stop, file, limit), rows)
            if len(found) < rows:
                raise ValueError(f"{file.uri}: shorter than when it was planned")
            yield _columns(found, names, columns, types, text_columns)


def _columns(
    found: list[Record],
    names: list[str],
    columns: list[str],
    types: dict[str, pa.DataType],
    text_columns: list[str],
) -> tuple[dict[str, pa.Array], Reasons]:
    reasons = Reasons(len(found))
    good: list[list[str | None]] = []
    for row, record in enumerate(found):
        if isinstance(record, list) and len(record) != len(names):
            record = f"wrong number of fields: {len(record)}, expected {len(names)}"
        if isinstance(record, str):
            reasons.add(row, record)
            good.append([None] * len(names))
        else:
            good.append(record)
    table = {}
    for name in columns:
        at = names.index(name)
        column = text_of_values([record[at] for record in good], reasons)
        if name not in text_columns:
            kind = types.get(name, pa.string())
            column = conform(name, pa.chunked_array([column]), kind, reasons).combine_chunks()
        table[name] = column
    return table, reasons


def _take(records: Iterable[tuple[Record, int]], rows: int) -> list[Record]:
    found: list[Record] = []
    for record, _ in records:
        found.append(record)
        if len(found) == rows:
            break
    return found


def _header(file: File, records: Iterator[tuple[Record, int]], begin: int) -> tuple[list[str], int]:
    """Column names and the offset after them; no names for an empty file. ValueError if they cannot be used."""
    names, end = next(records, ([], begin))
    if isinstance(names, str):
        raise ValueError(f"{file.uri}: its first record must name the columns, but: {names}")
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise ValueError(f"{file.uri}: its first record names the column {twice!r} twice")
    if not all(map(is_utf8, names)):
        raise ValueError(f"{file.uri}: its first record must name the columns, but it is not UTF-8")
    return names, end


def _records(cursor: Cursor, stop: int | None, file: File, limit: int) -> Iterator[tuple[Record, int]]:
    """Records from the cursor to `stop`, each with the byte offset after it. Blank lines are skipped."""
    feed = _Feed(lines(cursor, stop, limit), cursor.at, limit)
    csv.field_size_limit(limit)  # of the process; the default of 128 KiB would refuse long texts
    reader = csv.reader(feed, delimiter="\t" if file.format == "tsv" else ",", strict=True)
    while True:
        feed.next_record()
        try:
            record: Record = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            record = f"invalid {file.format.upper()}: {error}"
            if feed.ended or len(feed.held) > 1:
                record = "a quote is never closed"
                feed.keep_first(file)
            if file.format == "tsv" and isinstance(feed.held[0], bytes):
                # Many writers of TSV know no quoting: a quote that makes no sense is a character like any other.
                record = _decode(feed.held[0]).removesuffix("\r").split("\t")
        if any(isinstance(line, int) for line in feed.held):
            record = too_long(limit)
        if record:
            yield record, min(feed.at, cursor.at)  # the last line may have no newline


class _Feed:
    """Lines as the csv module wants them, counting the bytes they took.

    Attributes:
        at: byte offset after the lines that were taken
        held: the lines of the record that is being read
        ended: a record asked for more lines than there are, or than `limit` bytes
    """

    def __init__(self, batches: Iterator[list[Line]], at: int, limit: int) -> None:
        self.at = at
        self.held: list[Line] = []
        self._size = 0
        self.ended = False
        self._limit = limit
        self._given_back = 0
        self._lines = (line for batch in batches for line in batch)

    def next_record(self) -> None:
        """Forget the lines of the record before."""
        self.held, self._size = [], 0

    def keep_first(self, file: File) -> None:
        """Give back all lines of the record but its first: an open quote must not swallow the rows after it."""
        first, *others = self.held
        self.held = [first]
        size = sum(map(_length, others))
        self.at -= size
        self._given_back += size
        if self._given_back > _GIVEN_BACK:  # reading on and on from each of many open quotes takes for ever
            raise ValueError(f"{file.uri}: too many quotes that are never closed")
        self.ended = False
        self._lines = itertools.chain(others, self._lines)

    def __iter__(self) -> "_Feed":
        return self

    def __next__(self) -> str:
        line = next(self._lines, None) if self._size <= self._limit else None
        if line is None:
            self.ended = True
            raise StopIteration
        self.held.append(line)
        self.at += _length(line)
        self._size += _length(line)
        if isinstance(line, int):
            return "?\n"
        return _decode(line) + "\n"


def _decode(line: bytes) -> str:
    """Surrogates stand for bytes that are not UTF-8; they are found again when the column is built."""
    return line.decode("utf-8", "surrogateescape")


def _length(line: Line) -> int:
    """Bytes of a line with its newline."""
    return 1 + (line if isinstance(line, int) else len(line))
