"""Values to clean Arrow columns: what does not fit becomes null and its row gets a reason."""

import json
from typing import Any

import pyarrow as pa

TEXT = pa.large_string()
BAD_UTF8 = "invalid UTF-8"
_ARROW_ERRORS = (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError, OverflowError, UnicodeError)
# Python types a JSON value may have to count as an Arrow type without loss.
_FITS = {pa.int64(): (int,), pa.float64(): (int, float), pa.bool_(): (bool,)}


class Reasons:
    """Why rows are rejected; the first reason of a row counts."""

    def __init__(self, rows: int) -> None:
        self.rows = rows
        self._why: dict[int, str] = {}

    def add(self, row: int, why: str) -> None:
        """Reject a row, unless it already is."""
        self._why.setdefault(row, why)

    def array(self) -> pa.Array:
        """One string a row, null where the row is fine."""
        return pa.array([self._why.get(row) for row in range(self.rows)], pa.string())


def plain_type(kind: pa.DataType) -> pa.DataType:
    """The type a kept column is given: dictionaries, views and extensions as what they stand for."""
    if isinstance(kind, pa.BaseExtensionType):
        return plain_type(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return plain_type(kind.value_type)
    if pa.types.is_string_view(kind) or pa.types.is_null(kind):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(kind) else kind


def infer_type(values: list[Any]) -> pa.DataType:
    """The type of a column of JSON values: int64, float64, bool or string; string for everything mixed or nested."""
    kinds = {type(value) for value in values if value is not None}
    if kinds == {bool}:
        return pa.bool_()
    if kinds == {int}:
        return pa.int64() if all(v is None or -(2**63) <= v < 2**63 for v in values) else pa.string()
    if kinds and kinds <= {int, float}:
        exact = all(type(v) is not int or abs(v) <= 2**53 for v in values)
        return pa.float64() if exact else pa.string()
    return pa.string()


def text_of_values(values: list[Any], reasons: Reasons) -> pa.Array:
    """Python values as a text column: only str counts as text."""
    try:
        return pa.array(values, TEXT)
    except _ARROW_ERRORS:
        pass
    out: list[str | None] = []
    for row, value in enumerate(values):
        out.append(None)
        if isinstance(value, str):
            if is_utf8(value):
                out[-1] = value
            else:
                reasons.add(row, BAD_UTF8)
        elif value is not None:
            reasons.add(row, f"not text: {type(value).__name__}")
    return pa.array(out, TEXT)


def column_of_values(name: str, values: list[Any], kind: pa.DataType, reasons: Reasons) -> pa.Array:
    """JSON values as a column of type `kind`; in a string column, what is not a string is JSON-encoded."""
    if kind not in _FITS:
        values = [v if v is None or type(v) is str else json.dumps(v, ensure_ascii=False) for v in values]
        return conform(
            name, pa.chunked_array([text_of_values(values, reasons)]), kind, reasons
        ).combine_chunks()
    fits = _FITS[kind]
    try:
        if all(v is None or type(v) in fits for v in values):
            return pa.array(values, kind)
    except _ARROW_ERRORS:
        pass
    out: list[Any] = []
    for row, value in enumerate(values):
        out.append(value)
        try:
            whole = type(value) is float and value.is_integer() and int in fits
            if value is not None and type(value) not in fits and not whole:
                raise OverflowError
            pa.scalar(value, kind)
        except _ARROW_ERRORS:
            out[-1] = None
            reasons.add(row, misfit(name, value, kind))
    return pa.array(out, kind)


def text_of_column(column: pa.ChunkedArray, reasons: Reasons) -> pa.ChunkedArray:
    """An Arrow column as a text column. Strings are not trusted to be UTF-8; bytes are decoded."""
    kind = plain_type(column.type)
    chunks, offset = [], 0
    for chunk in column.chunks:
        chunks.append(_text_of_chunk(chunk, kind, reasons, offset))
        offset += len(chunk)
    return pa.chunked_array(chunks, TEXT)


def conform(name: str, column: pa.ChunkedArray, kind: pa.DataType, reasons: Reasons) -> pa.ChunkedArray:
    """A column as type `kind`, by a cast that loses nothing; rows that do not fit become null."""
    chunks, offset = [], 0
    for chunk in column.chunks:
        chunks.append(_conform_chunk(name, chunk, kind, reasons, offset))
        offset += len(chunk)
    return pa.chunked_array(chunks, kind)


def misfit(name: str, value: Any, kind: pa.DataType) -> str:
    """The reason for a value that does not fit the type of its column."""
    shown = repr(value)
    shown = shown if len(shown) <= 40 else shown[:37] + "..."
    return f"column {name!r}: {shown.encode(errors='replace').decode()} is not {kind}"


def is_utf8(text: str) -> bool:
    """Whether a str can be stored: JSON escapes may produce lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _text_of_chunk(chunk: pa.Array, kind: pa.DataType, reasons: Reasons, offset: int) -> pa.Array:
    chunk = _plain(chunk)
    is_bytes = (
        pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind)
    )
    if not (is_bytes or pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        for row in range(len(chunk)):
            if chunk[row].is_valid:
                reasons.add(offset + row, f"not text: {kind}")
        return pa.nulls(len(chunk), TEXT)
    raw = chunk.cast(pa.binary()) if pa.types.is_fixed_size_binary(kind) else chunk
    raw = raw.cast(pa.large_binary())
    try:
        return raw.cast(TEXT)
    except pa.ArrowInvalid:
        pass
    out: list[str | None] = []
    for row, value in enumerate(raw.to_pylist()):
        try:
            out.append(None if value is None else value.decode())
        except UnicodeDecodeError:
            out.append(None)
            reasons.add(offset + row, BAD_UTF8)
    return pa.array(out, TEXT)


def _plain(chunk: pa.Array) -> pa.Array:
    if isinstance(chunk, pa.ExtensionArray):
        return _plain(chunk.storage)
    return _plain(chunk.dictionary_decode()) if pa.types.is_dictionary(chunk.type) else chunk


def _conform_chunk(name: str, chunk: pa.Array, kind: pa.DataType, reasons: Reasons, offset: int) -> pa.Array:
    chunk = _plain(chunk)
    if _sound(chunk):
        try:
            return chunk if chunk.type == kind else chunk.cast(kind)
        except _ARROW_ERRORS:
            pass
    keep: list[int | None] = []
    for row in range(len(chunk)):
        one = chunk.take([row])
        why = None
        if not _sound(one):
            why = BAD_UTF8
        elif one.null_count == 0:
            try:
                one.cast(kind)
            except _ARROW_ERRORS:
                why = misfit(name, one[0].as_py(), kind)
        if why:
            reasons.add(offset + row, why)
        keep.append(None if why or one.null_count else row)
    if all(row is None for row in keep):
        return pa.nulls(len(chunk), kind)
    return chunk.take(pa.array(keep, pa.int64())).cast(kind)


def _sound(array: pa.Array) -> bool:
    """Whether strings, nested ones too, are UTF-8: files by other writers may hold anything."""
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True
