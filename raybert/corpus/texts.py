"""Rows of a corpus to texts: columns joined, what is no text set aside with its reason."""

import string

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raybert.config import CorpusSettings
from raybert.corpus.readers import REASON


def wanted_columns(data: CorpusSettings, kept: list[str]) -> list[str]:
    """The columns to read for texts, id, what the verb reads beside them, and kept columns, each once, in a stable order."""
    names = [*text_columns(data), *data.more_columns, *([data.id] if data.id else []), *kept]
    return list(dict.fromkeys(names))


def text_columns(data: CorpusSettings) -> list[str]:
    """The columns that make up the text; those of `data.template` when one is given.

    Raises ValueError for a template that is not of the form "{column} ...".
    """
    if data.template is None:
        return data.text_columns
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(data.template) if name is not None]
        data.template.format(**dict.fromkeys(fields, "text"))
    except (ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise ValueError(f"data.template={data.template!r}: {error}; write a literal brace twice") from None
    if not fields or any(
        not name.isidentifier() and not name.replace(" ", "_").isidentifier() for name in fields
    ):
        raise ValueError(f"data.template={data.template!r} must name columns, as in '{{title}} {{body}}'")
    return list(dict.fromkeys(fields))


def texts_and_reasons(table: pa.Table, data: CorpusSettings) -> tuple[list[str | None], np.ndarray]:
    """Texts of the rows and, where a row has none, why.

    Returns:
        texts [n], None where the row is rejected; reasons [n] of str or None.
    """
    names = text_columns(data)
    reasons = np.array(table[REASON].to_pylist(), dtype=object)
    columns = [table[name].to_pylist() for name in names]
    if data.template is None and len(columns) == 1:
        texts = columns[0]
    else:
        texts = [_join(row, names, data.template) for row in zip(*columns, strict=True)]
    for i, text in enumerate(texts):
        if reasons[i] is None:
            reasons[i] = _reason(text, data.max_chars)
    return [text if why is None else None for text, why in zip(texts, reasons, strict=True)], reasons


def _join(values: tuple[str | None, ...], names: list[str], template: str | None) -> str | None:
    """A missing part is left out; a row with no part at all is null."""
    if all(value is None for value in values):
        return None
    if template is None:
        return "\n".join(value for value in values if value)
    return template.format(**{name: value or "" for name, value in zip(names, values, strict=True)})


def _reason(text: str | None, max_chars: int) -> str | None:
    if text is None:
        return "null"
    if not text:
        return "empty"
    if len(text) > max_chars:
        return f"longer than data.max_chars={max_chars}"
    return "whitespace only" if text.isspace() else None


def row_ids(table: pa.Table, data: CorpusSettings, first_row: int, source: str) -> pa.Array:
    """The id of every row: the `data.id` column, else `<file>-<digest>:<row>`. Null where that column is null."""
    if data.id:
        column = table[data.id]
        return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    rows = pa.array(np.arange(first_row, first_row + table.num_rows)).cast(pa.string())
    return pc.binary_join_element_wise(pa.scalar(source), rows, ":")
