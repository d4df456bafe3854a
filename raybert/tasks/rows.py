"""Rows of a table as a task reads them: of texts and labels, as the group `data` names the columns (`text`, `text_pair`
and `label`), or the columns that the group `task` names."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raybert.config.finetune import TableSettings
from raybert.config.predicting import EvaluateDataSettings, PredictDataSettings
from raybert.corpus.readers import REASON
from raybert.corpus.texts import text_columns, texts_and_reasons
from raybert.tasks.columns import unfold
from raybert.tasks.known import data_side
from raybert.tasks.table import Labelled, read_table

_OF_DATA = ("text", "template", "text_pair", "label")


def reads_texts(task: str) -> bool:
    """Whether the group `data` names the columns of a task, and not the group `task`."""
    return not hasattr(data_side(task), "columns")


def refuse_unread(task: str, data: Any) -> None:
    """Raise ValueError for a setting of `data` that names a column which the task does not read."""
    if reads_texts(task):
        return
    for key in (key for key in _OF_DATA if key in type(data).model_fields):
        if getattr(data, key) != type(data).model_fields[key].default:
            raise ValueError(
                f"data.{key} means nothing with task.name={task}, whose columns the group task names"
            )


def read_labelled(
    paths: list[str], data: TableSettings | EvaluateDataSettings, task: str, settings: Any
) -> Labelled:
    """The labelled table behind `paths`, in the columns that a task asks for.

    Raises ValueError where nothing is there, a column is missing, or files do not fit together.
    """
    if reads_texts(task):
        return read_rows(paths, data)
    side = data_side(task)
    named = {value.partition(".")[0]: f"task.{key}" for key, value in settings if isinstance(value, str)}
    found = read_table(
        paths, data, texts=[], columns={name: named.get(name, "task") for name in side.columns(settings)}
    )
    return replace(found, table=unfold(found.table, side.nested(settings)))


def rows_to_predict(
    table: pa.Table, data: PredictDataSettings, task: str, settings: Any
) -> tuple[pa.Table, np.ndarray]:
    """Rows of a corpus in the columns that a task asks for; reasons [rows], why one cannot be used, or None."""
    if reads_texts(task):
        texts, reasons = texts_and_reasons(table, data)
        columns = {"text": pa.array(texts, pa.large_string())}
        if data.text_pair:
            columns["text_pair"] = table[data.text_pair]
        return pa.table(columns), reasons
    side = data_side(task)
    reasons = np.array(table[REASON].to_pylist(), object)
    columns = {}
    for name in side.columns(settings, labelled=False):
        values = columns[name] = table[name]
        if not (pa.types.is_string(values.type) or pa.types.is_large_string(values.type)):
            continue
        texts_too = hasattr(side, "texts_too") and name in side.texts_too(settings)
        if name in side.nested(settings) and not (texts_too and _are_texts(values)):
            columns[name] = _unfolded(name, values, reasons)
        else:
            long = pc.fill_null(pc.greater(pc.utf8_length(values), data.max_chars), False)
            for row in np.flatnonzero(long.to_numpy()):
                reasons[row] = reasons[row] or f"longer than data.max_chars={data.max_chars}"
    return pa.table(columns), reasons


def _are_texts(values: pa.ChunkedArray) -> bool:
    """Whether none is a list that JSON lines bring as text."""
    return not any(value is not None and value.lstrip()[:1] == "[" for value in values.to_pylist())


def _unfolded(name: str, values: pa.ChunkedArray, reasons: np.ndarray) -> pa.Array:
    """Lists of strings, or structs of whole numbers, that JSON lines bring as text."""
    found: list[Any] = []
    for text in values.to_pylist():
        try:
            found.append(None if text is None else json.loads(text))
        except ValueError:
            found.append(text)
    kind = next((type(value) for value in found if isinstance(value, list | dict)), list)
    inner, what = (str, "strings") if kind is list else (int, "{start, end}")
    for row, value in enumerate(found):
        parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]
        if value is not None and not (
            isinstance(value, kind) and all(part is None or type(part) is inner for part in parts)
        ):
            found[row], reasons[row] = None, reasons[row] or f"{name} holds no {what}"
    return pa.array(found)


def read_rows(paths: list[str], data: TableSettings | EvaluateDataSettings) -> Labelled:
    """The labelled table behind `paths`, in the columns of classification.

    Raises ValueError where nothing is there, a column is missing, or the label is a column of the text.
    """
    texts = text_columns(data)
    pair = [data.text_pair] if data.text_pair else []
    settings = {name: "data.text" for name in texts} | dict.fromkeys(pair, "data.text_pair")
    found = read_table(paths, data, texts=[*texts, *pair], columns={**settings, data.label: "data.label"})
    if data.label in [*texts, *pair]:
        raise ValueError(
            f"data.label={data.label} is the column of the text, too; name the column of the labels"
        )
    joined, reasons = texts_and_reasons(
        found.table.append_column(REASON, pa.array(found.reasons.tolist(), pa.string())), data
    )
    columns = {"text": pa.array(joined, pa.large_string()), "label": found.table[data.label]}
    if pair:
        columns["text_pair"] = found.table[pair[0]]
    return Labelled(pa.table(columns), reasons, found.ids, found.sources, found.file, found.row)
