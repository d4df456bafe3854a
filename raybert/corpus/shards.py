"""Cutting a file into shards: row ranges that follow from the file's content alone."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa


@dataclass(frozen=True)
class Shard:
    """Rows [start, end) of a file, and where its bytes lie.

    Line formats: [begin, stop) is their range in the (decompressed) file. Parquet: the range of the row groups that
    hold them, so shards of one row group share `begin`. Other formats: both are 0.
    """

    start: int
    end: int
    begin: int = 0
    stop: int = 0


@dataclass(frozen=True)
class Scan:
    """What a file holds: its number of rows, its columns with their types, and its shards in order."""

    rows: int
    columns: tuple[str, ...]
    types: dict[str, pa.DataType]
    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class Size:
    """How large the shards of a file may be: rows, and bytes of text.

    With `first_bytes` the first shard has at most that, and each next one may have twice as much, up to `bytes`.
    """

    rows: int
    bytes: int
    first_bytes: int | None = None

    def of(self, number: int) -> int:
        """Bytes that shard `number` (from 0) may have."""
        if self.first_bytes is None:
            return self.bytes
        return min(self.bytes, self.first_bytes << min(number, 40))


def cut(pieces: Iterable[tuple[int, int]], size: Size) -> tuple[Shard, ...]:
    """Cut consecutive pieces of (rows, bytes) into shards.

    The bytes of a piece count as spread evenly over its rows. A shard holds at least one row.
    """
    shards: list[Shard] = []
    start = row = used = 0
    for rows, held in pieces:
        each = -(-held // rows) if rows else 0
        while rows:
            fits = rows if not each else max(0, size.of(len(shards)) - used) // each
            take = min(rows, size.rows - (row - start), fits)
            if take == 0 and row > start:
                shards.append(Shard(start, row))
                start, used = row, 0
                continue
            take = max(1, take)
            row, rows, used = row + take, rows - take, used + take * each
    return (*shards, Shard(start, row)) if row > start else tuple(shards)


class Cutter:
    """Shards of a line format, from the byte offsets at which its records end, as they are found."""

    def __init__(self, size: Size, begin: int) -> None:
        self._size = size
        self._shards: list[Shard] = []
        self._begin = self._last_end = begin
        self._start = self.rows = 0

    def add(self, ends: np.ndarray) -> None:
        """`ends`: ascending int64 offsets, each one past the last byte of the next record."""
        i = 0
        while i < len(ends):
            most = self._begin + self._size.of(len(self._shards))
            fits = int(np.searchsorted(ends, most, side="right"))
            to = min(i + self._size.rows - (self.rows - self._start), fits, len(ends))
            if to <= i and self.rows > self._start:
                self._close()
                continue
            to = max(to, i + 1)
            self.rows += to - i
            self._last_end = int(ends[to - 1])
            i = to

    def finish(self) -> tuple[Shard, ...]:
        """All shards; the last one may be short."""
        if self.rows > self._start:
            self._close()
        return tuple(self._shards)

    def _close(self) -> None:
        self._shards.append(Shard(self._start, self.rows, self._begin, self._last_end))
        self._start, self._begin = self.rows, self._last_end
