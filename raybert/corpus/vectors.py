"""The Parquet file of embeddings: schema, metadata, bytes, and the dataset card beside it."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raybert.corpus.store import Store

KEY = b"raybert"
# name -> (Arrow type of one stored number, numbers a byte)
_NUMBERS = {
    "float32": (pa.float32(), 1),
    "float16": (pa.float16(), 1),
    "int8": (pa.int8(), 1),
    "binary": (pa.uint8(), 8),
}
REJECT_SCHEMA = pa.schema(
    [("id", pa.string()), ("source", pa.string()), ("row", pa.int64()), ("reason", pa.string())]
)
OUTPUT_COLUMNS = ("id", "chunk", "chunk_start", "chunk_end", "embedding", "num_tokens", "truncated")
# The output's own, and those of a table on its way there.
RESERVED_COLUMNS = (*OUTPUT_COLUMNS, "_row", "_reason", "_tokens", "_vector", "_truncated")
CHUNK_FIELDS = [
    pa.field("chunk", pa.int32(), nullable=False),
    pa.field("chunk_start", pa.int64(), nullable=False),
    pa.field("chunk_end", pa.int64(), nullable=False),
]


def stored_type(dimension: int, dtype: str) -> pa.DataType:
    """The Arrow type of the `embedding` column."""
    number, per_byte = _NUMBERS[dtype]
    return pa.list_(number, dimension // per_byte)


def schema(
    kept: Mapping[str, pa.DataType],
    id_type: pa.DataType,
    metadata: Mapping[str, Any],
    *,
    chunked: bool,
    carried: Mapping[bytes, bytes] | None = None,
) -> pa.Schema:
    """Schema of the output: id, kept columns, chunk columns, embedding, num_tokens, truncated.

    `metadata` goes under the key `raybert` and must hold `dimension` and `stored_dtype`; `carried` are the input's own
    `pandas` and `huggingface` entries.
    """
    vector = stored_type(metadata["dimension"], metadata["stored_dtype"])
    fields = [
        pa.field("id", id_type, nullable=False),
        *(pa.field(name, kind) for name, kind in kept.items()),
        *(CHUNK_FIELDS if chunked else []),
        pa.field("embedding", vector, nullable=False),
        pa.field("num_tokens", pa.int32(), nullable=False),
        pa.field("truncated", pa.bool_(), nullable=False),
    ]
    return pa.schema(fields, metadata={**(carried or {}), KEY: json.dumps(metadata, sort_keys=True).encode()})


def embedding_array(vectors: np.ndarray, kind: pa.DataType) -> pa.FixedSizeListArray:
    """A matrix [n, stored width] as a plain fixed-size list, which every reader knows."""
    flat = pa.array(np.ascontiguousarray(vectors).reshape(-1), type=kind.value_type)
    return pa.FixedSizeListArray.from_arrays(flat, type=kind)


def embedding_matrix(column: pa.ChunkedArray | pa.FixedSizeListArray) -> np.ndarray:
    """The inverse of `embedding_array`: [n, stored width]."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    return array.flatten().to_numpy(zero_copy_only=False).reshape(len(array), array.type.list_size)


def to_parquet(table: pa.Table) -> pa.Buffer:
    """The same bytes for the same table. Vectors are byte-stream-split: dictionary pages only cost there."""
    names = table.column_names
    floats = "embedding" in names and pa.types.is_floating(table.schema.field("embedding").type.value_type)
    sink = pa.BufferOutputStream()
    pq.write_table(
        table,
        sink,
        compression="zstd",
        use_dictionary=[name for name in names if name != "embedding"],
        use_byte_stream_split=["embedding.list.element"] if floats else False,
        write_page_index=True,
    )
    return sink.getvalue()


def check_storable(schema: pa.Schema) -> None:
    """Raise ValueError if Parquet has no type for one of the columns."""
    try:
        to_parquet(schema.empty_table())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ValueError(f"data.columns: Parquet cannot hold one of the kept columns: {error}") from None


def read_metadata(file_schema: pa.Schema) -> dict[str, Any]:
    """The `raybert` entry of an output file. Raises ValueError if there is none."""
    entry = (file_schema.metadata or {}).get(KEY)
    if entry is None:
        raise ValueError(
            "this Parquet file was not written by raybert embed: its schema has no `raybert` entry"
        )
    return json.loads(entry)


def write_card(store: Store, metadata: Mapping[str, Any], rows: int) -> None:
    """README.md, with which the folder is a Hugging Face dataset."""
    facts = "\n".join(
        f"| {key} | {json.dumps(value)} |" for key, value in metadata.items() if value is not None
    )
    text = f"""---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
tags:
- embeddings
- raybert
---
# Embeddings of {rows:,} rows

Made with [raybert](https://pypi.org/project/raybert/). Vectors lie in `data/`, one row of the corpus a row
(column `embedding`); rows that could not be embedded lie in `_rejects/` with the reason.

| setting | value |
| --- | --- |
{facts}

```python
import datasets
vectors = datasets.load_dataset("parquet", data_files="data/*.parquet", split="train")
```
"""
    store.write("README.md", text.encode())
