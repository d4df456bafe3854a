"""The k best rows of a folder of vectors for every query: numpy over streamed Parquet, a batch of rows at a time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raybert.corpus.filesystems import public_uri
from raybert.corpus.filters import Filter
from raybert.corpus.ledger import DATA
from raybert.corpus.store import Store
from raybert.corpus.vectors import embedding_matrix, read_metadata

_BATCH_BYTES = 16 << 20  # of decoded vectors held at once
_READ_BYTES = 8 << 20  # of a column read ahead, however large its row group
_QUERIES_AT_ONCE = 512
# What makes two vectors comparable. Files that differ in one of these cannot be ranked together.
_SPACE = ("dimension", "stored_dtype", "scale", "normalized", "digest")


@dataclass(frozen=True)
class VectorFolder:
    """A folder written by `raybert embed`: its data files in order of name, and what the first one says of itself."""

    store: Store
    path: str
    sizes: dict[str, int]
    schema: pa.Schema
    metadata: dict[str, Any]

    @classmethod
    def open(cls, path: str, setting: str = "data.path") -> "VectorFolder":
        """Raises ValueError, which names the setting, for a folder that is missing, holds no vectors, or was not written
        by raybert."""
        store = Store(path)
        try:
            sizes = {n: size for n, size in sorted(store.sizes(DATA).items()) if n.endswith(".parquet")}
        except (NotADirectoryError, OSError) as error:
            raise ValueError(f"{setting}={public_uri(path)} cannot be read: {_one_line(error)}") from None
        if not sizes:
            raise ValueError(
                f"{setting}={public_uri(path)} holds no {DATA}/*.parquet: is it a folder written by raybert embed?"
            )
        with open_vectors(store, next(iter(sizes))) as file:
            return cls(store, path, sizes, file.schema_arrow, read_metadata(file.schema_arrow))

    @property
    def dimension(self) -> int:
        """Numbers of a vector before it was packed."""
        return self.metadata["dimension"]

    @property
    def columns(self) -> list[str]:
        """Columns that tell a hit: id, kept and chunk columns. What follows `embedding` is about its making."""
        return self.schema.names[: self.schema.get_field_index("embedding")]

    @property
    def filterable(self) -> pa.Schema:
        """Columns that a filter may name."""
        return pa.schema([field for field in self.schema if field.name != "embedding"])


def open_vectors(store: Store, name: str) -> pq.ParquetFile:
    """A data file, to be closed. Raises ValueError, with its name, if it is broken or not of raybert."""
    try:
        source = store.fs.open_input_file(store.path(f"{DATA}/{name}"))
        file = pq.ParquetFile(source, buffer_size=_READ_BYTES)
        read_metadata(file.schema_arrow)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ValueError(f"{store.path(DATA)}/{name}: {_one_line(error)}") from None
    return file


def decode(stored: np.ndarray, metadata: dict[str, Any]) -> np.ndarray:
    """float32 [n, dimension] from stored vectors; the bits of binary ones become +1 and -1."""
    if metadata["stored_dtype"] == "binary":
        return np.unpackbits(stored, axis=1).astype(np.float32) * 2 - 1
    vectors = stored.astype(np.float32, copy=False)
    return vectors * np.float32(metadata["scale"]) if metadata["stored_dtype"] == "int8" else vectors


def prepare_queries(vectors: np.ndarray, metadata: dict[str, Any]) -> np.ndarray:
    """Queries float64 [q, dimension]: of length 1, or the signs for binary folders. A zero query scores 0 everywhere."""
    vectors = vectors.astype(np.float64)
    if metadata["stored_dtype"] == "binary":
        return np.where(vectors > 0, 1.0, -1.0)
    return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300)


class Best:
    """The k best rows of every query so far. Equal scores rank by file, then row: the order of adding does not matter."""

    def __init__(self, queries: int, k: int) -> None:
        self.k = k
        self.floor = np.full(queries, -np.inf)  # a row below cannot be among the k best; may lag behind
        self._kept = tuple(np.zeros(0, kind) for kind in (np.int64, np.float64, np.int64, np.int64))
        self._waiting: list[tuple[np.ndarray, ...]] = []

    def add(self, query: np.ndarray, score: np.ndarray, file: np.ndarray, row: np.ndarray) -> None:
        """Offer rows: parallel arrays."""
        self._waiting.append((query, score, file, row))
        # sorting costs as much as the k best of all queries, so let some gather
        if sum(len(part[0]) for part in self._waiting) >= self.k * len(self.floor):
            self.columns()

    def columns(self) -> tuple[np.ndarray, ...]:
        """(query, score, file, row) of the k best, ordered by query and rank."""
        query, score, file, row = map(np.concatenate, zip(self._kept, *self._waiting, strict=True))
        order = np.lexsort((row, file, -score, query))
        rank = np.arange(len(order)) - np.searchsorted(query[order], query[order])
        last = order[rank == self.k - 1]
        self.floor[query[last]] = score[last]
        order = order[rank < self.k]
        self._kept, self._waiting = (query[order], score[order], file[order], row[order]), []
        return self._kept


Reader = Callable[[VectorFolder, str, Filter | None], Iterator[tuple[np.ndarray, np.ndarray]]]
"""What `read_vectors` is one of."""


def read_vectors(
    folder: VectorFolder, name: str, where: Filter | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The rows of a data file that pass, a batch at a time: their numbers, ascending, and vectors float32 [n, dimension].

    Raises ValueError for a file that is broken or whose vectors cannot be compared with the folder's others.
    """
    with open_vectors(folder.store, name) as file:
        _check_space(folder, name, read_metadata(file.schema_arrow))
        try:
            for rows, stored in _batches(file, folder, where):
                yield rows, decode(stored, folder.metadata)
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{folder.store.path(DATA)}/{name}: {_one_line(error)}") from None


def passing_rows(folder: VectorFolder, name: str, where: Filter) -> np.ndarray:
    """The numbers, ascending, of the rows of a data file that pass. Raises ValueError for a broken file."""
    with open_vectors(folder.store, name) as file:
        try:
            return where.rows(file.read(columns=list(where.columns), use_threads=False))
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{folder.store.path(DATA)}/{name}: {_one_line(error)}") from None


def scan(
    folder: VectorFolder,
    files: Sequence[tuple[int, str]],
    queries: np.ndarray,
    k: int,
    where: Filter | None,
    read: Reader = read_vectors,
) -> Best:
    """The k best rows of some files of a folder, exactly.

    Candidates are found in float32, with room for its rounding, and ranked by float64 scores that do not depend on the
    batch a row came in: equal vectors get equal scores.

    Args:
        files: (number, name); the number stands for the file in the result.
        queries: from `prepare_queries`.
        read: where vectors come from.

    Raises:
        ValueError: a file that is broken or whose vectors cannot be compared with the folder's others.
    """
    best = Best(len(queries), k)
    for number, name in files:
        for rows, vectors in read(folder, name, where):
            _add_batch(best, queries, vectors, folder.metadata, number, rows)
    return best


def fetch(folder: VectorFolder, name: str, rows: np.ndarray) -> pa.Table:
    """`folder.columns` of the given rows (ascending) of a data file; reads only the row groups that hold them."""
    tables, start = [], 0
    with open_vectors(folder.store, name) as file:
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            inside = rows[(rows >= start) & (rows < end)]
            if len(inside):
                table = file.read_row_group(group, columns=folder.columns, use_threads=False)
                tables.append(table.take(inside - start))
            start = end
    return pa.concat_tables(tables)


def _check_space(folder: VectorFolder, name: str, metadata: dict[str, Any]) -> None:
    for key in _SPACE:
        if metadata.get(key) != folder.metadata.get(key):
            raise ValueError(
                f"{folder.store.path(DATA)}/{name} has {key}={metadata.get(key)}, other files of the folder have "
                f"{folder.metadata.get(key)}: vectors of different runs cannot be ranked together"
            )


def _batches(
    file: pq.ParquetFile, folder: VectorFolder, where: Filter | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(row numbers, stored vectors) of the rows that pass. Vectors are not read where no row passes."""
    size = max(64, _BATCH_BYTES // (4 * folder.dimension))
    start = 0
    for group in range(file.num_row_groups):
        end = start + file.metadata.row_group(group).num_rows
        passing = None
        if where is not None:
            narrow = file.read_row_group(group, columns=list(where.columns), use_threads=False)
            passing = start + where.rows(narrow)
        at = start
        if passing is None or len(passing):
            for batch in file.iter_batches(
                size, row_groups=[group], columns=["embedding"], use_threads=False
            ):
                stored = embedding_matrix(batch.column(0))
                rows = np.arange(at, at + len(stored))
                if passing is not None:
                    rows = passing[(passing >= at) & (passing < at + len(stored))]
                    stored = stored[rows - at]
                at += batch.num_rows
                yield rows, stored
        start = end


def _add_batch(
    best: Best,
    queries: np.ndarray,
    vectors: np.ndarray,
    metadata: dict[str, Any],
    file: int,
    rows: np.ndarray,
) -> None:
    """Offer a batch of vectors float32 [n, d] to the best of every query."""
    lengths = _lengths(vectors, metadata)
    rounding = (
        vectors.shape[1] * 2.0**-22
    )  # four times the worst error of a float32 dot product of unit vectors
    for first in range(0, len(queries), _QUERIES_AT_ONCE):
        block = queries[first : first + _QUERIES_AT_ONCE]
        scores = block.astype(np.float32) @ vectors.T / lengths.astype(np.float32)
        which, at = _candidates(scores, best.k, best.floor[first : first + len(block)], rounding)
        exact = _exact(block, vectors, which, at, metadata)
        sound = np.isfinite(exact)
        best.add(which[sound] + first, exact[sound], np.full(int(sound.sum()), file), rows[at[sound]])


def _lengths(vectors: np.ndarray, metadata: dict[str, Any]) -> np.ndarray:
    """What a dot product with a query is divided by to be a cosine: float64 [n] or [1]. A zero vector scores 0."""
    if metadata["stored_dtype"] == "binary":
        return np.array([float(vectors.shape[1])])  # query and vector hold signs
    if metadata["normalized"]:
        return np.ones(1)
    squares = vectors.astype(np.float64)
    squares *= squares
    return np.maximum(np.sqrt(squares.sum(axis=1)), 1e-30)


def _candidates(
    scores: np.ndarray, k: int, floor: np.ndarray, rounding: float
) -> tuple[np.ndarray, np.ndarray]:
    """(query, row) of every score [q, n] that may be among the k best; what is not a number never is."""
    np.nan_to_num(scores, copy=False, nan=-np.inf)
    bar = floor.copy()
    fresh = np.isneginf(bar)
    if fresh.any() and scores.shape[1] > k:
        bar[fresh] = np.partition(scores[fresh], -k, axis=1)[:, -k]
    return np.nonzero(scores >= (bar - rounding).astype(np.float32)[:, None])


def _exact(
    queries: np.ndarray, vectors: np.ndarray, which: np.ndarray, at: np.ndarray, metadata: dict[str, Any]
) -> np.ndarray:
    """Cosines float64 of (query, row) pairs, each summed on its own and so independent of its neighbours."""
    out = np.empty(len(which))
    step = max(1, _BATCH_BYTES // (8 * queries.shape[1]))
    for a in range(0, len(which), step):
        rows = vectors[at[a : a + step]].astype(np.float64)
        dots = (rows * queries[which[a : a + step]]).sum(axis=1)
        out[a : a + step] = dots / _lengths(rows, metadata)
    return out


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
