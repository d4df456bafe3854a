"""Queries and the documents that answer them: rows to examples, vectors to ranks, and their scores.

A row is a sequence for its query, one for its document, and one for each hard negative, each by itself.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from raybert.config.pair_tasks import RetrievalSettings
from raybert.encoder.folders import Folder
from raybert.tasks.bi_encoder import DOCUMENT_PROMPTS, settle_pooling, settle_prompts, width_of
from raybert.tasks.columns import Reasons, string_column, strings_of
from raybert.tasks.examples import Examples
from raybert.tasks.pair_rows import framed, is_list, keys_of, lists_of, numbered, separator_of, turns_of
from raybert.tasks.retrieval_scores import RetrievalScores
from raybert.tasks.similarity import cosines

GROUPS = "batch"
"""The sequences of a row are trained on in one global batch."""

MOST_ROWS = 50_000
"""Rows to evaluate on at most: the vectors of all of them are kept."""


def columns(settings: RetrievalSettings, *, labelled: bool = True) -> list[str]:
    """The columns that the task reads."""
    return [settings.query, settings.positive, *(settings.negative_columns if labelled else [])]


def nested(settings: RetrievalSettings) -> list[str]:
    """Those of them that may hold lists."""
    return [settings.query, *settings.negative_columns]


def main_figure(settings: RetrievalSettings) -> str:
    """The figure by which models are compared; more of it is better."""
    del settings
    return "ndcg_at_10"


def find_labels(table: pa.Table, settings: RetrievalSettings) -> list[str]:
    """None: documents are what is found."""
    del table, settings
    return []


def settle(
    settings: RetrievalSettings, folder: Folder | None, tables: Mapping[str, pa.Table]
) -> RetrievalSettings:
    """The settings with the pooling and the prompts of a model folder in place of their defaults.

    Raises ValueError for Matryoshka's sizes that do not fit its vectors.
    """
    del tables
    if folder is None:
        return settings
    prompts = {"query_prompt": ("query",), "document_prompt": DOCUMENT_PROMPTS}
    settings = settle_pooling(settle_prompts(settings, folder, **prompts), folder)
    width = width_of(folder, settings.pooling)
    if settings.dimensions and max(settings.dimensions) != width:
        raise ValueError(
            f"task.dimensions={settings.dimensions} must be sizes up to the width of the vectors, {width}, and have it"
        )
    return settings


def prepare(
    table: pa.Table,
    tokenizer: Tokenizer,
    labels: Sequence[str] | None,
    settings: RetrievalSettings,
    *,
    max_length: int,
) -> tuple[Examples, np.ndarray]:
    """Examples of at most `max_length` tokens, a row's query, document and negatives in this order; reasons [rows].

    Longer texts lose their end, queries of several turns (lists) their beginning. Negatives that are null or empty are
    passed over. Targets, int64 [n]: `role`, 0 query, 1 document, 2 and more its negatives; `example`, the row; `key`, a
    digest of the text. With `labels` None there are no negatives.
    """
    reasons = Reasons(len(table))
    separator = separator_of(tokenizer)[0] if is_list(table, settings.query) else ""
    queries, turns = turns_of(table, settings.query, separator, reasons)
    documents, _ = strings_of(table, settings.positive, reasons)
    rows = np.flatnonzero(reasons.good)
    wrong = [[] for _ in range(len(table))] if labels is None else _negatives(table, settings)
    ask, tell = settings.query_prompt or "", settings.document_prompt or ""
    texts = [
        text
        for row in rows
        for text in (ask + queries[row], tell + documents[row], *(tell + other for other in wrong[row]))
    ]
    counts = np.array([2 + len(wrong[row]) for row in rows], np.int64)
    role, row = numbered(counts), np.repeat(rows, counts)
    ids, cut = framed(tokenizer, texts, max_length, keep_end=(role == 0) & turns)
    targets = {"role": role, "example": row, "key": keys_of(texts)}
    return Examples(ids, ids.lengths.astype(np.int32), row, targets, cut=cut), reasons.lines


def with_truth(
    examples: Examples, table: pa.Table, labels: Sequence[str], settings: RetrievalSettings
) -> Examples:
    """Examples to evaluate on. Raises ValueError for more rows than can be kept."""
    del table, labels, settings
    rows = int(examples.first.sum())
    if rows > MOST_ROWS:
        raise ValueError(
            f"data.validation has {rows:,} rows, and every query is compared with all of their documents: give "
            f"{MOST_ROWS:,} at most"
        )
    return examples


def decode(
    outputs: Mapping[str, np.ndarray],
    examples: Examples,
    labels: Sequence[str],
    settings: RetrievalSettings,
) -> list[dict[str, Any]]:
    """{score} of every row: the cosine of its query and its document."""
    del labels, settings
    pair = np.flatnonzero(examples.targets["role"] <= 1)
    found = cosines(outputs["vectors"][pair], examples.take(pair))
    return [{"score": float(value)} for value in found]


def output_fields(settings: RetrievalSettings) -> dict[str, pa.DataType]:
    """What predict writes for a row."""
    del settings
    return {"score": pa.float32()}


class Scores(RetrievalScores):
    """How well queries find their documents among all of those; see `RetrievalScores`."""

    def __init__(self, labels: Sequence[str], settings: RetrievalSettings) -> None:
        del labels
        super().__init__(settings.scale, settings.dimensions)

    def add(self, outputs: Mapping[str, np.ndarray], examples: Examples) -> None:
        """The vectors [n, width] of n examples; those of hard negatives are not looked at."""
        role, key, example = (examples.targets[name] for name in ("role", "key", "example"))
        query, document = np.flatnonzero(role == 0), np.flatnonzero(role == 1)
        assert np.array_equal(example[query], example[document]), "a query has a document"
        self.add_pairs(outputs["vectors"][query], outputs["vectors"][document], key[query], key[document])


def _negatives(table: pa.Table, settings: RetrievalSettings) -> list[list[str]]:
    found: list[list[str]] = [[] for _ in range(len(table))]
    for name in settings.negative_columns:
        listed = is_list(table, name)
        rows = (
            lists_of(table, name) if listed else [[text] for text in string_column(table, name).to_pylist()]
        )
        for kept, row in zip(found, rows, strict=True):
            kept += [text for text in row if text and not text.isspace()]
    return found
