"""embed_dataset: the encoder as a step of the user's own Ray Data pipeline."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raybert.config import EmbedConfig, load, require
from raybert.corpus.columns import Reasons, text_of_column
from raybert.corpus.texts import texts_and_reasons
from raybert.corpus.vectors import embedding_array, stored_type
from raybert.encoder.quantizing import quantize
from raybert.resolve import load_as_resolved, resolve

if TYPE_CHECKING:
    from ray.data import Dataset


def embed_dataset(ds: "Dataset", config: EmbedConfig | Mapping[str, Any]) -> "Dataset":
    """`ds` with the columns embedding, num_tokens, truncated and reject_reason; lazy, rows in the order of `ds`.

        vectors = embed_dataset(ray.data.read_parquet("docs/"), {"model.name": "sentence-transformers/all-MiniLM-L6-v2"})
        vectors.write_lance(...)

    Uses `model`, `data.text`, `data.template`, `data.max_chars`, `output.dtype`, `workers` and `batch_tokens`. A row
    that cannot be embedded keeps its place, with a null embedding and the reason. Nothing is committed here: for rows
    that are never lost and never done twice, use `embed`.

    Raises:
        ValueError: settings that cannot be used. Ray must be running or startable.
    """
    import ray.data

    from raybert.corpus.pool import worker_pool

    if not isinstance(config, EmbedConfig):
        config = load(EmbedConfig, settings=config)
    require(config, "model.name")
    if config.output.dtype == "int8" or config.chunk.size is not None:
        raise ValueError("embed_dataset takes neither output.dtype=int8 nor chunk.size; use raybert embed")
    pool = worker_pool(config.workers)
    resolved, _ = resolve(config, pool, [])
    return ds.map_batches(
        EmbedBatch,
        fn_constructor_args=(config, resolved),
        batch_size=config.output.rows_per_shard,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=pool.low, max_size=pool.high),
        **pool.needs,
    )


class EmbedBatch:
    """A process of the pool: a batch of rows in, the same rows with vectors out."""

    def __init__(self, config: EmbedConfig, resolved: Mapping[str, Any]) -> None:
        self._config = config
        self._encoder = load_as_resolved(config.model, resolved)

    def __call__(self, batch: pa.Table) -> pa.Table:
        texts, reasons = texts_and_reasons(self._as_texts(batch), self._config.data)
        good = np.array([text is not None for text in texts], bool)
        tokenized = self._encoder.tokenizer()([text for text in texts if text is not None])
        vectors = self._encoder.encode_ids(tokenized)
        finite = np.isfinite(vectors).all(axis=1)
        reasons[np.flatnonzero(good)[~finite]] = "the model's vector is not finite"
        lengths, cut = np.zeros(len(texts), np.int32), np.zeros(len(texts), bool)
        lengths[good], cut[good] = tokenized.lengths, tokenized.truncated
        good[np.flatnonzero(good)[~finite]] = False
        kind = stored_type(self._encoder.dimension, self._config.output.dtype)
        stored = embedding_array(quantize(vectors[finite], self._config.output.dtype), kind)
        place = np.cumsum(good) - 1
        embedding = stored.take(pa.array(place, pa.int64(), mask=~good))
        out = batch.append_column("embedding", embedding)
        out = out.append_column("num_tokens", pa.array(lengths)).append_column("truncated", pa.array(cut))
        return out.append_column("reject_reason", pa.array(list(reasons), pa.string()))

    def _as_texts(self, batch: pa.Table) -> pa.Table:
        """The text columns as valid UTF-8, and a reason for the rows where they are not."""
        from raybert.corpus.readers import REASON
        from raybert.corpus.texts import text_columns

        reasons = Reasons(batch.num_rows)
        names = text_columns(self._config.data)
        missing = [name for name in names if name not in batch.column_names]
        if missing:
            raise ValueError(
                f"data.text: no column {missing[0]!r}; there are {', '.join(batch.column_names)}"
            )
        columns = {name: text_of_column(batch[name], reasons) for name in names}
        return pa.table({**columns, REASON: reasons.array()})
