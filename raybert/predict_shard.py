"""What `raybert predict` does with one shard: tokenize on any CPU, then predict in a worker that holds the model."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from raybert.config.predicting import HeadModelSettings, PredictDataSettings
from raybert.corpus.ledger import Source
from raybert.corpus.outcome import Outcome, Refused
from raybert.corpus.readers import Shard
from raybert.corpus.rejects import count_reasons, rejects_table
from raybert.corpus.texts import row_ids, texts_and_reasons
from raybert.resolve_head import head_of, load_as_resolved
from raybert.tasks.examples import Examples, Lists
from raybert.tasks.heads import Head
from raybert.tasks.known import data_side

# Columns of a prepared table beside id and kept ones. Names no corpus column is likely to have.
ROW, REASON, TOKENS, BOUNDARY = "_row", "_reason", "_tokens", "_boundary"
_SOURCE = b"raybert-source"

OUTPUTS = {
    "single": {"label": pa.string(), "score": pa.float32()},
    "multi": {"labels": pa.list_(pa.string()), "scores": pa.list_(pa.float32())},
    "regression": {"value": pa.float32()},
}
"""What is written of a row, by the kind of classification; see `raybert.tasks.classify.decode`."""


@dataclass(frozen=True)
class PrepareRows:
    """Rows of a corpus to token ids: id, kept columns, `_row` (number in the file), `_reason` (null, or why the row is
    rejected), `_tokens` and `_boundary` (see `raybert.tasks.examples.Examples`; none of rejected rows)."""

    data: PredictDataSettings
    head: Head
    kept: tuple[str, ...]
    tokenizer: Tokenizer
    max_length: int

    def __call__(self, table: pa.Table, source: Source, shard: Shard) -> pa.Table:
        texts, reasons = texts_and_reasons(table, self.data)
        ids = row_ids(table, self.data, shard.start, source.label)
        for row in np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False)):
            texts[row], reasons[row] = None, reasons[row] or f"{self.data.id} (data.id) is null"
        made, found = self._examples(table, texts)
        good = np.flatnonzero([text is not None for text in texts])
        reasons[good] = found
        lengths, boundary = np.zeros(len(texts), np.int64), np.zeros(len(texts), np.int32)
        rows = good[made.row]
        assert len(np.unique(rows)) == len(rows), "one sequence a row"
        lengths[rows], boundary[rows] = made.ids.lengths, made.boundary
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        columns = {
            "id": ids,
            **{name: table[name] for name in self.kept},
            ROW: pa.array(np.arange(shard.start, shard.start + len(texts))),
            REASON: pa.array(reasons, pa.string()),
            TOKENS: pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(made.ids.values)),
            BOUNDARY: pa.array(boundary),
        }
        about = {_SOURCE: source.uri.encode("utf-8", "surrogateescape")}
        return pa.table(columns).replace_schema_metadata(about)

    def _examples(self, table: pa.Table, texts: list[str | None]) -> tuple[Examples, np.ndarray]:
        """Of the rows that have a text."""
        good = pa.array([text is not None for text in texts], pa.bool_())
        columns = {"text": pa.array([text for text in texts if text is not None], pa.large_string())}
        if self.data.text_pair:
            columns["text_pair"] = table[self.data.text_pair].filter(good)
        return data_side(self.head.task).prepare(
            pa.table(columns), self.tokenizer, None, self.head.settings, max_length=self.max_length
        )


@dataclass(frozen=True)
class LoadPredictor:
    """Called in a worker: loads the model exactly as the plan says, or refuses. Picklable, needs no torch itself."""

    model: HeadModelSettings
    resolved: Mapping[str, Any]
    schema: pa.Schema

    def __call__(self) -> "PredictShard":
        try:
            predictor = load_as_resolved(self.model, self.resolved)
        except ValueError as error:
            raise Refused(str(error)) from None
        return PredictShard(predictor, head_of(self.resolved), self.schema)


class PredictShard:
    """A prepared table to the table of predictions and the rejects."""

    def __init__(self, predictor: Any, head: Head, schema: pa.Schema) -> None:
        self._predictor, self._head, self._schema = predictor, head, schema

    def __call__(self, table: pa.Table) -> Outcome:
        table = table.combine_chunks()
        reasons = np.array(table[REASON].to_pylist(), dtype=object)
        examples = _examples(table, np.array([reason is None for reason in reasons], bool))
        logits = self._predictor(examples)["logits"]
        finite = np.isfinite(logits).all(axis=1)
        reasons[examples.row[~finite]] = "the model's output is not finite"
        side = data_side(self._head.task)
        found = side.decode({"logits": logits[finite]}, self._head.labels, self._head.settings)
        data = self._output(table.take(pa.array(examples.row[finite])), found)
        source = table.schema.metadata[_SOURCE].decode("utf-8", "replace")
        rejects = rejects_table(table["id"], table[ROW].to_numpy(), reasons, source)
        lengths = examples.ids.lengths
        counts = {
            "rows": len(table),
            "embedded": len(data),
            "rejected": 0 if rejects is None else rejects.num_rows,
            "vectors": len(data),
            "truncated": 0,
            "tokens": int(lengths[finite].sum()),
            "reasons": count_reasons(rejects),
        }
        padded = self._predictor.computed_tokens(lengths)
        return Outcome(data, rejects, counts, encoded_tokens=int(lengths.sum()), padded_tokens=padded)

    def _output(self, table: pa.Table, found: list[dict[str, Any]]) -> pa.Table:
        columns = []
        for field in self._schema:
            if field.name in OUTPUTS[self._head.settings.kind]:
                columns.append(pa.array([row[field.name] for row in found], field.type))
            else:
                columns.append(table[field.name].cast(field.type))
        return pa.table(columns, schema=self._schema)


def _examples(table: pa.Table, good: np.ndarray) -> Examples:
    """Of the rows of a prepared table that are good; `row` is the row of the table."""
    lists = table[TOKENS].combine_chunks()
    lists = pa.concat_arrays(lists.chunks) if isinstance(lists, pa.ChunkedArray) else lists
    values = lists.flatten().to_numpy().astype(np.int32, copy=False)
    lengths = lists.value_lengths().to_numpy().astype(np.int64)
    whole = Lists(values, np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)]))
    rows = np.arange(len(table))
    return Examples(whole, table[BOUNDARY].to_numpy(), rows, {}).take(np.flatnonzero(good))
