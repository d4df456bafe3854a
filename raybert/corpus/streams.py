"""The bytes of a file, decompressed: a position in them, and the lines from there on, in bounded memory."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pyarrow as pa

from raybert.corpus.filesystems import resolve
from raybert.corpus.sources import File, compression_of

BLOCK = 4 << 20
BOM = b"\xef\xbb\xbf"
# Arrow reports broken content as OSError too; these words tell it from a network that failed.
_BROKEN = re.compile(
    r"thrift|parquet|corrupt|zstd|zlib|bz2|snappy|lz4|brotli|truncated|decompress|unexpected end|expected to|ipc|page|crypt",
    re.I,
)

Line = bytes | int
"""A line without its newline; one that is too long is only its length in bytes."""


@contextmanager
def naming(file: File) -> Iterator[None]:
    """Turn an error about broken content into a ValueError of one line that names the file."""
    try:
        yield
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"{file.uri}: cannot be read as {file.format}: {_first_line(error)}") from None
    except OSError as error:
        if error.errno is not None or not _BROKEN.search(str(error)):
            raise
        raise ValueError(f"{file.uri}: cannot be read as {file.format}: {_first_line(error)}") from None


class Cursor:
    """A position in the decompressed bytes of a file. Moves back only where the file is not compressed."""

    def __init__(self, file: File) -> None:
        fs, inner = resolve(file.path)
        codec = compression_of(file.uri)
        self.seekable = codec is None
        self.at = 0
        self._file = file
        self._source = (
            fs.open_input_file(inner) if self.seekable else fs.open_input_stream(inner, compression=codec)
        )

    def __enter__(self) -> "Cursor":
        return self

    def __exit__(self, *error: object) -> None:
        self._source.close()

    def move(self, offset: int) -> None:
        """Go to a byte offset, by seeking or by reading on. ValueError if the file ends before."""
        if self.seekable and offset <= self._source.size():
            self._source.seek(offset)
            self.at = offset
        while self.at < offset:
            if self.seekable or not self.read(min(BLOCK, offset - self.at)):
                raise ValueError(f"{self._file.uri}: shorter than when it was planned")

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, less only at the end of the file."""
        with naming(self._file):
            data = self._source.read(size)
            while len(data) < size and (more := self._source.read(size - len(data))):
                data += more
        self.at += len(data)
        return data

    def skip_bom(self) -> None:
        """At the start of a file: go past a UTF-8 byte order mark."""
        found = self.read(len(BOM)) == BOM
        if not found and self.seekable:
            self.move(0)
        elif not found:
            self._source.close()
            self.__init__(self._file)


def newlines(block: bytes) -> np.ndarray:
    """Offsets of the newlines in a block of bytes, int64."""
    return np.flatnonzero(np.frombuffer(block, dtype=np.uint8) == 10)


def lines(cursor: Cursor, stop: int | None, limit: int) -> Iterator[list[Line]]:
    """The lines from the cursor to byte offset `stop` (None: to the end), a block at a time.

    A line of more than `limit` bytes is not held: only its length comes out. Carriage returns stay.
    """
    splitter = Splitter(limit)
    while stop is None or cursor.at < stop:
        block = cursor.read(BLOCK if stop is None else min(BLOCK, stop - cursor.at))
        if not block:
            break
        if found := splitter.add(block):
            yield found
    if last := splitter.finish():
        yield last


class Splitter:
    """Splits blocks of bytes at newlines; holds what follows the last one, up to a limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: list[bytes] = []
        self._size = 0

    def add(self, block: bytes) -> list[Line]:
        """The lines that end in this block."""
        first, *others = block.split(b"\n")
        self._hold(first)
        if not others:
            return []
        found = [self._release()]
        self._hold(others.pop())
        if max(map(len, others), default=0) > self._limit:
            others = [line if len(line) <= self._limit else len(line) for line in others]
        return found + others

    def finish(self) -> list[Line]:
        """The last line, where it has no newline."""
        return [self._release()] if self._size else []

    def _hold(self, piece: bytes) -> None:
        self._size += len(piece)
        if self._size > self._limit:
            self._held.clear()
        else:
            self._held.append(piece)

    def _release(self) -> Line:
        line = b"".join(self._held) if self._size <= self._limit else self._size
        self._held, self._size = [], 0
        return line


def line_limit(max_chars: int | None) -> int:
    """Longest line, in bytes, that is held in memory: room for escapes and for columns beside the text."""
    return (256 << 20) if max_chars is None else 8 * max_chars + (1 << 20)


def too_long(limit: int) -> str:
    """The reason given for a line over the limit."""
    return f"line longer than {limit} bytes"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].removesuffix(".")
