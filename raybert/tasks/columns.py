"""Columns of a labelled table as arrays, and the reasons why rows are rejected."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raybert.tasks.words import offsets_of


class Reasons:
    """One line a row why it is rejected, the first that is added; None while there is none."""

    def __init__(self, rows: int):
        self.lines = np.full(rows, None, object)

    @property
    def good(self) -> np.ndarray:
        """bool [rows], rows without a reason."""
        return chosen(self.lines)

    def add(self, rows: np.ndarray, line: Callable[[int], str]) -> None:
        """Reject the rows where `rows` (bool) is true; `line(row)` says why."""
        for row in np.flatnonzero(rows & self.good):
            self.lines[row] = line(int(row))

    def add_at(self, places: np.ndarray, offsets: np.ndarray, line: Callable[[int, int], str]) -> None:
        """Reject rows for an element of their list: where `places` (bool, an element each) is true, by its first.

        `line(place, row)` says why.
        """
        found = np.flatnonzero(places)
        rows, first = np.unique(np.searchsorted(offsets, found, "right") - 1, return_index=True)
        for row, place in zip(rows, found[first], strict=True):
            if self.lines[row] is None:
                self.lines[row] = line(int(place), int(row))


@dataclass(frozen=True)
class ListColumn:
    """A list column: its lists as they are, the elements one after the other, offsets int64 [rows + 1] (a null list is
    empty) and which lists are null."""

    lists: pa.Array
    values: pa.Array
    offsets: np.ndarray
    null: np.ndarray


def chosen(reasons: np.ndarray) -> np.ndarray:
    """bool [rows]: rows without a reason."""
    return np.array([reason is None for reason in reasons], bool)


def column(table: pa.Table, name: str) -> pa.Array:
    """A column in one piece; `a.b` is the field b of the structs in column a, where no column has that name.

    Raises ValueError where there is none, listing those there are.
    """
    outer, _, field = name.partition(".")
    if name not in table.column_names and not (field and outer in table.column_names):
        raise ValueError(f"there is no column {name!r}; the columns are {', '.join(table.column_names)}")
    found = table[name if name in table.column_names else outer].combine_chunks()
    if isinstance(found, pa.ChunkedArray):  # no chunks, or more than one array can hold
        found = pa.concat_arrays(found.chunks) if found.num_chunks else pa.array([], found.type)
    if name not in table.column_names:
        try:
            found = pc.struct_field(found, field.split("."))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            raise ValueError(f"column {outer!r} has no field {field!r}; it holds {found.type}") from None
    return found.dictionary_decode() if pa.types.is_dictionary(found.type) else found


def unfold(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """Columns of lists or structs that are written as JSON text, as JSON lines and CSV bring them, become such columns.

    A column of `names` stays as it is unless all its values are JSON lists or objects. Raises ValueError where they do
    not have one type.
    """
    for name in set(names) & set(table.column_names):
        kind = table[name].type
        if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            continue
        values = table[name].to_pylist()
        if not all(value is None or value.lstrip()[:1] in ("[", "{") for value in values):
            continue
        try:
            found = pa.array([None if value is None else json.loads(value) for value in values])
        except json.JSONDecodeError:
            continue
        except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
            raise ValueError(f"column {name!r} holds values of different types: {error}") from None
        table = table.set_column(table.column_names.index(name), name, found)
    return table


def list_column(table: pa.Table, name: str, of: str) -> ListColumn:
    """A column of lists `of` strings, or of structs; raises ValueError for any other type."""
    lists = column(table, name)
    if pa.types.is_null(lists.type):  # no row has a value
        lists = lists.cast(pa.list_(pa.null()))
    kind = lists.type
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)) or not _fits(kind.value_type, of):
        raise ValueError(f"column {name!r} must hold lists of {of}, not {kind}")
    if pa.types.is_null(kind.value_type) and of == "strings":  # all lists are empty
        lists = lists.cast(pa.list_(pa.string()))
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    return ListColumn(
        lists, pc.list_flatten(lists), offsets_of(lengths), pc.is_null(lists).to_numpy(zero_copy_only=False)
    )


def _fits(kind: pa.DataType, of: str) -> bool:
    if of.startswith("structs"):
        return pa.types.is_struct(kind) or pa.types.is_null(kind)
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_null(kind)


def string_column(table: pa.Table, name: str) -> pa.Array:
    """A column of strings; raises ValueError for any other type."""
    values = column(table, name)
    if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
        if not pa.types.is_null(values.type):  # that type says only that there is no value to see
            raise ValueError(f"column {name!r} must hold strings, not {values.type}")
        values = values.cast(pa.string())
    return values


def strings_of(table: pa.Table, name: str, reasons: Reasons | None = None) -> tuple[list[str], Reasons]:
    """A column of texts, "" for rows that are null, empty or white space, which get a reason.

    Raises ValueError for a column that holds no strings.
    """
    values = string_column(table, name)
    reasons = reasons or Reasons(len(table))
    null = pc.is_null(values).to_numpy(zero_copy_only=False)
    reasons.add(null, lambda _: f"{name} is null")
    texts = pc.fill_null(values, "").to_pylist()
    empty = np.array([not text or text.isspace() for text in texts], bool)
    reasons.add(empty, lambda _: f"{name} is empty")
    return texts, reasons


def refuse_unknown(found: Sequence[str], known: Sequence[str], name: str) -> None:
    """Raise ValueError listing the labels of column `name` that the model does not know."""
    unknown = sorted(set(found) - set(known))
    if unknown:
        shown = ", ".join(unknown[:10]) + (f" and {len(unknown) - 10} more" if len(unknown) > 10 else "")
        raise ValueError(f"column {name!r} has labels that are not in the training data: {shown}")


def numbers_of(table: pa.Table, name: str, reasons: Reasons) -> np.ndarray:
    """A column of finite numbers, float64 [rows]; nan in rows that get a reason. Text that says a number is one."""
    values = column(table, name).to_pylist()
    found = np.full(len(values), np.nan)
    for row, value in enumerate(values):
        try:
            found[row] = np.nan if value is None else float(value)
        except (TypeError, ValueError):
            continue
    reasons.add(
        ~np.isfinite(found),
        lambda row: (
            f"{name} is null" if values[row] is None else f"{name} is no number: {str(values[row])[:60]}"
        ),
    )
    return found
