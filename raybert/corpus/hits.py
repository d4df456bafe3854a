"""Search hits: from rows that were found, and how they are printed: a table that fits the terminal, or JSON."""

import base64
import json
import math
import shutil
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from raybert.corpus.nearest import VectorFolder

_GAP = "  "
_NARROWEST = 8  # cells; narrower columns tell nothing


@dataclass(frozen=True)
class Hit:
    """A row that was found: its score, its id, and its kept (and chunk) columns."""

    score: float
    id: Any
    columns: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Values that JSON can hold."""
        return {"score": self.score, "id": _plain(self.id), "columns": _plain(self.columns)}


def wanted_rows(folder: VectorFolder, found: tuple[np.ndarray, ...]) -> list[tuple[str, np.ndarray]]:
    """Data files that hold hits, and their rows, ascending; `found` is of `raybert.corpus.nearest.Best.columns`."""
    _, _, file, row = found
    names = list(folder.sizes)
    return [(names[number], np.unique(row[file == number])) for number in np.unique(file)]


def join_hits(
    folder: VectorFolder, found: tuple[np.ndarray, ...], tables: Sequence[pa.Table], queries: int
) -> list[list[Hit]]:
    """The hits of every query; `tables` hold the columns of `wanted_rows`, in their order."""
    query, score, file, row = found
    numbers = {name: number for number, name in enumerate(folder.sizes)}
    rows = {
        (numbers[name], int(at)): values
        for (name, ats), table in zip(wanted_rows(folder, found), tables, strict=True)
        for at, values in zip(ats, table.to_pylist(), strict=True)
    }
    binary = folder.metadata["stored_dtype"] == "binary"
    hits: list[list[Hit]] = [[] for _ in range(queries)]
    for which, value, number, at in zip(
        query.tolist(), score.tolist(), file.tolist(), row.tolist(), strict=True
    ):
        columns = dict(rows[number, at])
        hits[which].append(Hit((value + 1) / 2 if binary else value, columns.pop("id"), columns))
    return hits


def print_hits(hits: Sequence[Sequence[Hit]], queries: Sequence[str], style: str) -> None:
    """Print the hits of every query to stdout. `style`: "json" is a list of lists of hits, "table" is for reading."""
    if style == "json":
        print(json.dumps([[hit.to_dict() for hit in found] for found in hits], ensure_ascii=False, indent=1))
        return
    width = shutil.get_terminal_size().columns
    for i, (query, found) in enumerate(zip(queries, hits, strict=True)):
        if len(hits) > 1:
            print(("\n" if i else "") + _cut(f"# {_fold(query)}", width))
        print(table(found, width))


def table(hits: Sequence[Hit], width: int) -> str:
    """Hits as lines of at most `width` cells; long values are cut, columns for which there is no room are named below."""
    if not hits:
        return "no hits"
    names = ["score", "id", *hits[0].columns]
    rows = [[f"{hit.score:.4f}", *(_fold(v) for v in (hit.id, *hit.columns.values()))] for hit in hits]
    shown = names[: max(2, (width + len(_GAP)) // (_NARROWEST + len(_GAP)))]
    cells = [shown, *(row[: len(shown)] for row in rows)]
    widths = _widths([max(map(_cells, column)) for column in zip(*cells, strict=True)], width)
    lines = [
        _GAP.join(_pad(_cut(cell, w), w) for cell, w in zip(row, widths, strict=True)).rstrip()
        for row in cells
    ]
    if len(shown) < len(names):
        lines.append(_cut(f"not shown: {', '.join(names[len(shown) :])} (search.format=json)", width))
    return "\n".join(lines)


def _widths(natural: list[int], total: int) -> list[int]:
    """Shrink the widest columns, evenly, until all fit."""
    room = total - len(_GAP) * (len(natural) - 1)
    low, high = 1, max(natural)
    while low < high:  # the largest limit at which they fit
        middle = (low + high + 1) // 2
        low, high = (middle, high) if sum(min(n, middle) for n in natural) <= room else (low, middle - 1)
    return [min(n, low) for n in natural]


def _fold(value: Any) -> str:
    """One line. What a terminal might obey (escape sequences) or cannot show becomes a space."""
    if value is None:
        return ""
    text = value if isinstance(value, str) else str(_plain(value))
    text = text[:2000]  # more than any terminal is wide
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _cell(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _cells(text: str) -> int:
    return sum(map(_cell, text))


def _cut(text: str, width: int) -> str:
    if _cells(text) <= width:
        return text
    used, kept = 1, []  # the ellipsis takes a cell
    for character in text:
        used += _cell(character)
        if used > width:
            break
        kept.append(character)
    return "".join(kept).rstrip() + "…"


def _pad(text: str, width: int) -> str:
    return text + " " * (width - _cells(text))


def _plain(value: Any) -> Any:
    """What JSON has a word for; the rest as text, bytes as base64."""
    if isinstance(value, dict):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    return value if value is None or isinstance(value, str | int) else str(value)
