"""A labelled table as the corpus readers find it, in any format: one table with a row for every row of its files."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from raybert.config import CorpusSettings
from raybert.corpus.readers import REASON, read, scan
from raybert.corpus.rejects import rejects_table
from raybert.corpus.shards import Scan
from raybert.corpus.sources import File, discover
from raybert.corpus.texts import row_ids
from raybert.corpus.vectors import REJECT_SCHEMA


@dataclass(frozen=True)
class Labelled:
    """Rows of files, in order.

    Attributes:
        table: the columns that were asked for.
        reasons: object [rows], why a row could not be read; None where it could.
        ids: string [rows]. sources: the files. file, row: int64 [rows], the number of a row's file, and its number there.
    """

    table: pa.Table
    reasons: np.ndarray
    ids: pa.Array
    sources: list[str]
    file: np.ndarray
    row: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def take(self, rows: np.ndarray) -> "Labelled":
        """Some rows, in the given order."""
        return Labelled(
            self.table.take(rows),
            self.reasons[rows],
            self.ids.take(pa.array(rows)),
            self.sources,
            self.file[rows],
            self.row[rows],
        )

    def rejects(self, reasons: np.ndarray) -> pa.Table:
        """The rows that have a reason, as embed's rejects: id, source, row, reason."""
        parts = []
        for number, source in enumerate(self.sources):
            of = self.file == number
            found = rejects_table(self.ids.filter(pa.array(of)), self.row[of], reasons[of], source)
            if found is not None:
                parts.append(found)
        return pa.concat_tables(parts) if parts else REJECT_SCHEMA.empty_table()


def read_table(
    paths: list[str], data: CorpusSettings, *, texts: Sequence[str], columns: dict[str, str]
) -> Labelled:
    """Read the files behind `paths`.

    Args:
        texts: columns that hold text.
        columns: all columns to read, those among them, each with the setting that names it: {"label": "data.label"}.

    Raises:
        ValueError: nothing is there, a column is missing, or files hold different types in one column.
    """
    parts: list[pa.Table] = []
    reasons, ids, numbers, rows, sources = [], [], [], [], []
    left = data.limit
    for file in discover(paths, data.format):
        if left == 0:
            break
        found = scan(file, rows_per_shard=4096, text_columns=list(texts), max_chars=data.max_chars)
        _check_columns(file, found, columns)
        part = _read(file, found, data, list(texts), list(columns))
        part = part.slice(0, left) if left is not None else part
        left = None if left is None else left - part.num_rows
        ids.append(_ids(part, data, file))
        reasons.append(np.array(part[REASON].to_pylist(), object))
        numbers.append(np.full(part.num_rows, len(sources), np.int64))
        rows.append(np.arange(part.num_rows))
        sources.append(file.uri)
        parts.append(part.select([name for name in part.column_names if name != REASON]))
    return Labelled(
        _concatenate(parts),
        np.concatenate([np.zeros(0, object), *reasons]),
        pa.concat_arrays(ids) if ids else pa.array([], pa.string()),
        sources,
        np.concatenate([np.zeros(0, np.int64), *numbers]),
        np.concatenate([np.zeros(0, np.int64), *rows]),
    )


def _read(file: File, found: Scan, data: CorpusSettings, texts: list[str], columns: list[str]) -> pa.Table:
    wanted = list(dict.fromkeys([*columns, *([data.id] if data.id else [])]))
    tables = read(
        file,
        list(found.shards),
        wanted,
        types={name: found.types[name] for name in wanted if name in found.types},
        text_columns=texts,
        max_chars=data.max_chars,
    )
    empty = pa.table({name: pa.array([], pa.string()) for name in [*wanted, REASON]})
    return pa.concat_tables([*tables] or [empty])


def _ids(part: pa.Table, data: CorpusSettings, file: File) -> pa.Array:
    ids = row_ids(part, data, 0, file.uri)
    ids = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    return ids.cast(pa.string(), safe=False)


def _concatenate(parts: list[pa.Table]) -> pa.Table:
    parts = [part for part in parts if part.num_rows] or parts[:1]
    try:
        return pa.concat_tables(parts, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"data.path: its files do not fit together: {error}") from None


def _check_columns(file: File, found: Scan, columns: dict[str, str]) -> None:
    if not found.rows or not found.columns:  # no column at all: every row is unreadable and says why
        return
    for name, setting in columns.items():
        if name not in found.columns or name == REASON:
            names = ", ".join(found.columns[:20]) + (", ..." if len(found.columns) > 20 else "")
            raise ValueError(f"{setting}={name}: there is no such column in {file.uri}; it has: {names}")
