"""What `raybert predict` does with one shard: tokenize on any CPU, then predict in a worker that holds the model."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from raybert.config.predicting import HeadModelSettings, PredictDataSettings
from raybert.corpus.ledger import Source
from raybert.corpus.outcome import Outcome, Refused
from raybert.corpus.readers import Shard
from raybert.corpus.rejects import count_reasons, rejects_table
from raybert.corpus.texts import row_ids
from raybert.resolve_head import head_of, load_as_resolved
from raybert.tasks.columns import chosen
from raybert.tasks.examples import Examples
from raybert.tasks.heads import Head
from raybert.tasks.known import data_side
from raybert.tasks.outputs import finite_rows, take
from raybert.tasks.rows import rows_to_predict
from raybert.tasks.storage import from_column, to_column

# Columns of a prepared table beside id and kept ones. Names no corpus column is likely to have.
ROW, REASON, EXAMPLES = "_row", "_reason", "_examples"
_SOURCE = b"raybert-source"


@dataclass(frozen=True)
class PrepareRows:
    """Rows of a corpus to examples: id, kept columns, `_row` (number in the file), `_reason` (null, or why the row is
    rejected) and `_examples` (see `raybert.tasks.storage.to_column`; a rejected row has none)."""

    data: PredictDataSettings
    head: Head
    kept: tuple[str, ...]
    tokenizer: Tokenizer
    max_length: int

    def __call__(self, table: pa.Table, source: Source, shard: Shard) -> pa.Table:
        rows, reasons = rows_to_predict(table, self.data, self.head.task, self.head.settings)
        ids = row_ids(table, self.data, shard.start, source.label)
        for row in np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False)):
            reasons[row] = reasons[row] or f"{self.data.id} (data.id) is null"
        good = np.flatnonzero(chosen(reasons))
        made, reasons[good] = prepare_unlabelled(rows.take(good), self.tokenizer, self.head, self.max_length)
        columns = {
            "id": ids,
            **{name: table[name] for name in self.kept},
            ROW: pa.array(np.arange(shard.start, shard.start + len(table))),
            REASON: pa.array(reasons, pa.string()),
            EXAMPLES: to_column(replace(made, row=good[made.row]), len(table)),
        }
        about = {_SOURCE: source.uri.encode("utf-8", "surrogateescape")}
        return pa.table(columns).replace_schema_metadata(about)


def prepare_unlabelled(
    rows: pa.Table, tokenizer: Tokenizer, head: Head, max_length: int
) -> tuple[Examples, np.ndarray]:
    """Examples with what decoding needs; reasons [rows]. Raises ValueError for columns of the wrong type."""
    side = data_side(head.task)
    made, reasons = side.prepare(rows, tokenizer, None, head.settings, max_length=max_length)
    if hasattr(side, "with_texts"):
        made = side.with_texts(made, rows, head.settings)
    return made, reasons


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
        examples = from_column(table[EXAMPLES])
        lengths = examples.ids.lengths
        outputs = self._predictor(examples) if len(examples) else {}
        good = finite_rows(outputs, examples)
        reasons[examples.row[~good]] = "the model's output is not finite"
        some = np.flatnonzero(good)
        used = examples.take(some)
        rows = used.row[used.first]
        assert len(rows) == chosen(reasons).sum(), "every row is predicted or rejected"
        data = self._output(
            table.take(pa.array(rows)), used, {name: take(x, lengths, some) for name, x in outputs.items()}
        )
        source = table.schema.metadata[_SOURCE].decode("utf-8", "replace")
        rejects = rejects_table(table["id"], table[ROW].to_numpy(), reasons, source)
        counts = {
            "rows": len(table),
            "embedded": len(data),
            "rejected": 0 if rejects is None else rejects.num_rows,
            "vectors": len(data),
            "truncated": 0 if used.cut is None else len(np.unique(used.row[used.cut])),
            "tokens": int(used.ids.lengths.sum()),
            "reasons": count_reasons(rejects),
        }
        padded = self._predictor.computed_tokens(lengths)
        return Outcome(data, rejects, counts, encoded_tokens=int(lengths.sum()), padded_tokens=padded)

    def _output(self, table: pa.Table, examples: Examples, outputs: Mapping[str, np.ndarray]) -> pa.Table:
        """`table` has the rows of the examples."""
        head = self._head
        side = data_side(head.task)
        found = side.decode(outputs, examples, head.labels, head.settings) if len(examples) else []
        assert len(found) == len(table), "one prediction a row"
        made = side.output_fields(head.settings)
        columns = []
        for field in self._schema:
            if field.name in made:
                columns.append(pa.array([row[field.name] for row in found], field.type))
            else:
                columns.append(table[field.name].cast(field.type))
        return pa.table(columns, schema=self._schema)
