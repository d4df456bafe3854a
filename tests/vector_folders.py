"""Folders of vectors as `raybert embed` writes them, made without a model: through the ledger and the schema."""

from typing import Any

import numpy as np
import pyarrow as pa

from raybert.corpus.ledger import Ledger, Source, source_id
from raybert.corpus.shards import Shard
from raybert.corpus.vectors import REJECT_SCHEMA, embedding_array, read_metadata, schema, to_parquet
from raybert.encoder.quantizing import int8_scale, quantize


def unit(vectors: np.ndarray) -> np.ndarray:
    """Vectors of length 1."""
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def random_vectors(rows: int, dimension: int = 16, seed: int = 0) -> np.ndarray:
    """Vectors of length 1, float32 [rows, dimension]."""
    return unit(np.random.default_rng(seed).normal(size=(rows, dimension)))


def make_metadata(dimension: int, dtype: str = "float32", **more: Any) -> dict[str, Any]:
    """The `raybert` entry of a schema."""
    return {
        "model": "m",
        "revision": None,
        "digest": "d" * 64,
        "dimension": dimension,
        "pooling": "mean",
        "layers": "last",
        "normalized": True,
        "prompt": "",
        "max_length": 128,
        "dtype": "float32",
        "stored_dtype": dtype,
        "scale": None,
        "chunk": None,
        "text": ["text"],
        "raybert": "0.1.0",
        **more,
    }


def make_folder(
    path: Any,
    files: dict[str, np.ndarray],
    *,
    dtype: str = "float32",
    rows_per_shard: int = 100,
    kept: dict[str, dict[str, list[Any]]] | None = None,
    types: dict[str, pa.DataType] | None = None,
    rejected: dict[str, list[int]] | None = None,
    windows: int = 0,
    commit: bool = True,
    **metadata: Any,
) -> Ledger:
    """Write the output of a finished run.

    `files` are the input files: name -> vectors of their rows. `kept` are the kept columns: name -> file -> values.
    `rejected` are rows of a file that have no vector. `windows` > 0: so many vectors a row, as of chunked documents.
    """
    dimension = next(iter(files.values())).shape[1]
    scale = int8_scale(np.concatenate(list(files.values()))) if dtype == "int8" else None
    entry = make_metadata(dimension, dtype, **{"scale": scale, **metadata})
    form = schema(types or {}, pa.string(), entry, chunked=windows > 0)
    ledger = Ledger(str(path), "test")
    ledger.create_job({"requested": {"data": {"id": None}}, "resolved": entry})
    sources = []
    for name, vectors in files.items():
        uri, rows = f"/in/{name}.parquet", range(0, len(vectors), rows_per_shard)
        shards = tuple(Shard(at, min(at + rows_per_shard, len(vectors))) for at in rows)
        sources.append(Source(source_id(uri, len(vectors), "x"), uri, len(vectors), "x", "parquet", shards))
    ledger.extend(sources)
    for source, (name, vectors) in zip(sources, files.items(), strict=True):
        columns = {column: values[name] for column, values in (kept or {}).items()}
        bad = (rejected or {}).get(name, [])
        for shard in source.shards if commit else ():
            _commit(ledger, source, shard, form, vectors, columns, bad, max(1, windows))
    return ledger


def _commit(
    ledger: Ledger,
    source: Source,
    shard: Shard,
    form: pa.Schema,
    vectors: np.ndarray,
    columns: dict[str, list[Any]],
    rejected: list[int],
    windows: int,
) -> None:
    entry = read_metadata(form)
    good = [row for row in range(shard.start, shard.end) if row not in rejected for _ in range(windows)]
    bad = [row for row in range(shard.start, shard.end) if row in rejected]
    stored = quantize(vectors[np.array(good, np.int64)], entry["stored_dtype"], entry["scale"])
    values = {
        "id": [f"{source.label}:{row}" for row in good],
        **{name: [column[row] for row in good] for name, column in columns.items()},
        "embedding": embedding_array(stored, form.field("embedding").type),
        "num_tokens": [5] * len(good),
        "truncated": [False] * len(good),
    }
    if "chunk" in form.names:
        number = [i % windows for i in range(len(good))]
        values |= {
            "chunk": number,
            "chunk_start": [10 * i for i in number],
            "chunk_end": [10 * i + 10 for i in number],
        }
    data = pa.table({name: values[name] for name in form.names}, schema=form)
    rejects = None
    if bad:
        lines = [
            {"id": f"{source.label}:{row}", "source": source.uri, "row": row, "reason": "empty"}
            for row in bad
        ]
        rejects = to_parquet(pa.Table.from_pylist(lines, schema=REJECT_SCHEMA))
    counts = {
        "rows": shard.end - shard.start,
        "embedded": len(good) // windows,
        "rejected": len(bad),
        "vectors": len(good),
        "truncated": 0,
        "tokens": 5 * len(good),
        "reasons": {"empty": len(bad)} if bad else {},
    }
    ledger.commit(source.name(shard), to_parquet(data), rejects, counts)
