"""Rows of texts and labels, as the group `data` names the columns: `text`, `text_pair` and `label`."""

import pyarrow as pa

from raybert.config.finetune import TableSettings
from raybert.config.predicting import EvaluateDataSettings
from raybert.corpus.readers import REASON
from raybert.corpus.texts import text_columns, texts_and_reasons
from raybert.tasks.table import Labelled, read_table


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
