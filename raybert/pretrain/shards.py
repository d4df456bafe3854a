"""The Parquet file of token shards: schema, metadata, and instances as rows."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from raybert.corpus.vectors import KEY
from raybert.pretrain.instances import Instances

KIND = "tokens"
Masks = tuple[Sequence[Sequence[int]], Sequence[Sequence[int]]]


def token_schema(metadata: Mapping[str, Any], *, static_masks: bool = False) -> pa.Schema:
    """Schema of a token shard, one row an instance.

    `ids` with special tokens, uint16 where the vocabulary allows; `starts` (the token begins a word); `length`;
    `boundary`, tokens of the first segment, [CLS] and [SEP] included; `label` 0 in order, 1 random or swapped, -1 no
    pair; `document` the id of the (first) document. With `static_masks` the ids are masked, `masked_positions` and
    `masked_labels` say where and what was there. `metadata` goes under the key `raybert` and holds `vocabulary`,
    `mask_id`, `special_ids`, `max_length` and `objective`.
    """
    number = pa.uint16() if metadata["vocabulary"] <= 1 << 16 else pa.int32()
    fields = [
        pa.field("ids", pa.list_(number), nullable=False),
        pa.field("starts", pa.list_(pa.bool_()), nullable=False),
        pa.field("length", pa.int32(), nullable=False),
        pa.field("boundary", pa.int32(), nullable=False),
        pa.field("label", pa.int8(), nullable=False),
        pa.field("document", pa.string(), nullable=False),
    ]
    if static_masks:
        fields += [
            pa.field("masked_positions", pa.list_(pa.int32()), nullable=False),
            pa.field("masked_labels", pa.list_(number), nullable=False),
        ]
    entry = json.dumps({"kind": KIND, **metadata}, sort_keys=True).encode()
    return pa.schema(fields, metadata={KEY: entry})


def to_table(
    instances: Instances, documents: Sequence[str], schema: pa.Schema, masks: Masks | None = None
) -> pa.Table:
    """Instances as a table of `schema`. `documents` are the ids of the documents, `masks` positions and labels."""
    offsets = pa.array(instances.offsets.astype(np.int32))
    number = schema.field("ids").type.value_type
    columns: dict[str, Any] = {
        "ids": pa.ListArray.from_arrays(offsets, pa.array(instances.values).cast(number)),
        "starts": pa.ListArray.from_arrays(offsets, pa.array(instances.starts)),
        "length": pa.array(np.diff(instances.offsets).astype(np.int32)),
        "boundary": pa.array(instances.boundary.astype(np.int32)),
        "label": pa.array(instances.label.astype(np.int8)),
        "document": pa.array(documents, pa.string()).take(pa.array(instances.document)),
    }
    if masks is not None:
        for name, lists in zip(("masked_positions", "masked_labels"), masks, strict=True):
            columns[name] = pa.array(lists, schema.field(name).type)
    return pa.table([columns[name].cast(schema.field(name).type) for name in schema.names], schema=schema)
