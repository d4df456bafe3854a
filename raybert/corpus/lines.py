"""JSONL and plain text: a record a line."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pyarrow as pa

from raybert.corpus.columns import (
    BAD_UTF8,
    TEXT,
    Reasons,
    column_of_values,
    infer_type,
    is_utf8,
    text_of_values,
)
from raybert.corpus.shards import Cutter, Scan, Shard, Size
from raybert.corpus.sources import File
from raybert.corpus.streams import BLOCK, Cursor, Line, Splitter, line_limit, lines, newlines, too_long

_SAMPLED = 1000
_SAMPLED_BYTES = 64 << 20


def scan_lines(file: File, size: Size, max_chars: int | None) -> Scan:
    """Count the lines of a JSONL or text file and find where its shards begin, in one pass over the bytes."""
    splitter, sample, sampled = Splitter(line_limit(max_chars)), [], 0
    with Cursor(file) as cursor:
        cursor.skip_bom()
        cutter = Cutter(size, cursor.at)
        last, sampling = b"\n", False
        while block := cursor.read(BLOCK):
            cutter.add(newlines(block) + (cursor.at - len(block) + 1))
            last = block[-1:]
            sampling = file.format == "jsonl" and len(sample) < _SAMPLED and sampled < _SAMPLED_BYTES
            if sampling:
                sample += splitter.add(block)
                sampled += len(block)
        if last != b"\n":
            cutter.add(np.array([cursor.at]))
            sample += splitter.finish() if sampling else []
    types = {"text": pa.string()} if file.format == "text" else _json_types(sample[:_SAMPLED])
    return Scan(cutter.rows, tuple(types), types, cutter.finish())


def read_text(
    file: File, shards: list[Shard], max_chars: int | None
) -> Iterator[tuple[dict[str, pa.Array], Reasons]]:
    """The lines of each shard as one column `text`; empty lines are rows too."""
    limit = line_limit(max_chars)
    for found in shard_lines(file, shards, limit):
        reasons = Reasons(len(found))
        raw = []
        for row, line in enumerate(found):
            if isinstance(line, int):
                reasons.add(row, too_long(limit))
                raw.append(None)
            else:
                raw.append(line[:-1] if line.endswith(b"\r") else line)
        yield {"text": _decoded(raw, reasons)}, reasons


def read_jsonl(
    file: File,
    shards: list[Shard],
    columns: list[str],
    *,
    types: dict[str, pa.DataType],
    text_columns: list[str],
    max_chars: int | None,
) -> Iterator[tuple[dict[str, pa.Array], Reasons]]:
    """The records of each shard as columns; a line that is no JSON object is a row of nulls with a reason."""
    limit = line_limit(max_chars)
    for found in shard_lines(file, shards, limit):
        reasons = Reasons(len(found))
        records: list[dict[str, Any]] = []
        for row, line in enumerate(found):
            record = _record(line, limit)
            if isinstance(record, str):
                reasons.add(row, record)
            records.append(record if isinstance(record, dict) else {})
        table = {}
        for name in columns:
            values = [record.get(name) for record in records]
            if name in text_columns:
                table[name] = text_of_values(values, reasons)
            else:
                table[name] = column_of_values(name, values, types.get(name, pa.string()), reasons)
        yield table, reasons


def shard_lines(file: File, shards: list[Shard], limit: int) -> Iterator[list[Line]]:
    """The lines of each shard, in one pass. ValueError where the file has become shorter."""
    with Cursor(file) as cursor:
        for shard in shards:
            cursor.move(shard.begin)
            rows = shard.end - shard.start
            found: list[Line] = []
            for some in lines(cursor, shard.stop, limit):
                found += some
                if len(found) >= rows:  # a plan may be cut short within a shard
                    break
            if len(found) < rows:
                raise ValueError(f"{file.uri}: shorter than when it was planned")
            yield found[:rows]


def _record(line: Line, limit: int) -> dict[str, Any] | str:
    """A JSON object, or why the line is none."""
    if isinstance(line, int):
        return too_long(limit)
    try:
        value = json.loads(line.decode())
    except UnicodeDecodeError:
        return BAD_UTF8
    except json.JSONDecodeError as error:
        return f"invalid JSON: {error.msg} at character {error.pos}" if line.strip() else "empty line"
    except RecursionError:
        return "invalid JSON: nested too deeply"
    except ValueError as error:
        return f"invalid JSON: {error}"
    return value if type(value) is dict else "not a JSON object"


def _json_types(sample: Iterable[Line]) -> dict[str, pa.DataType]:
    """The union of keys, in order of appearance, with the type that fits the sample."""
    values: dict[str, list[Any]] = {}
    for line in sample:
        record = _record(line, 0)
        for name, value in record.items() if isinstance(record, dict) else ():
            if is_utf8(name):  # no Arrow column can have another name
                values.setdefault(name, []).append(value)
    return {name: infer_type(column) for name, column in values.items()}


def _decoded(raw: list[bytes | None], reasons: Reasons) -> pa.Array:
    """Bytes as text; the whole column at once where it is all valid."""
    column = pa.array(raw, pa.large_binary())
    try:
        return column.cast(TEXT)
    except pa.ArrowInvalid:
        pass
    out: list[str | None] = []
    for row, line in enumerate(raw):
        try:
            out.append(None if line is None else line.decode())
        except UnicodeDecodeError:
            out.append(None)
            reasons.add(row, BAD_UTF8)
    return pa.array(out, TEXT)
