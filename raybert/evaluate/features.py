"""A folder of vectors as a matrix with a label a row: what a linear probe learns from."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raybert.corpus.columns import plain_type
from raybert.corpus.filesystems import public_uri
from raybert.corpus.nearest import VectorFolder, decode, open_vectors
from raybert.corpus.vectors import embedding_matrix, read_metadata

_BATCH_ROWS = 8192
# what makes the vectors of two files comparable
SPACE = ("dimension", "stored_dtype", "scale", "normalized", "digest", "pooling", "layers", "prompt")


@dataclass(frozen=True)
class Features:
    """Rows with a label.

    Attributes:
        vectors: float32 [rows, dimension].
        labels: Arrow array [rows] without nulls.
        texts: what a row is called where rows are shown: its text, if that column was kept, else its id.
        left_out: rows of the folder without a label.
        metadata: the folder's own.
    """

    vectors: np.ndarray
    labels: pa.Array
    texts: pa.Array
    left_out: int
    metadata: dict[str, Any]

    def __len__(self) -> int:
        return len(self.vectors)


def read_features(path: str, label: str, *, setting: str = "data.path") -> Features:
    """Read a folder of vectors, a batch at a time, into one matrix.

    Rows whose label is null (or not a number, where labels are floating) are left out and counted.

    Args:
        path: the folder, as `setting` names it in messages.
        label: the column of labels.

    Raises:
        ValueError: not a folder of vectors, no such column, labels of a type that cannot be learnt, vectors of windows,
            files whose vectors cannot be compared, a broken file; one line.
    """
    try:
        folder = VectorFolder.open(path)
    except ValueError as error:
        raise ValueError(str(error).replace("data.path=", f"{setting}=", 1)) from None
    _check(folder, label, setting)
    text = _text_column(folder)
    rows = sum(_rows(folder, name) for name in folder.sizes)
    vectors = np.empty((rows, folder.dimension), np.float32)
    labels: list[pa.Array] = []
    texts: list[pa.Array] = []
    filled = 0
    for name in folder.sizes:
        for batch in _batches(folder, name, [label, text, "embedding"]):
            found = _plain(batch.column(0))
            has_label = pc.is_valid(found)
            if pa.types.is_floating(found.type):
                has_label = pc.and_(has_label, pc.fill_null(pc.is_finite(found), False))
            kept = has_label.to_numpy(zero_copy_only=False)
            labels.append(found.filter(has_label))
            texts.append(_strings(_plain(batch.column(1))).filter(has_label))
            stored = decode(embedding_matrix(batch.column(2)), folder.metadata)[kept]
            if not np.isfinite(stored).all():
                raise ValueError(
                    f"{folder.store.path('data')}/{name} holds vectors with numbers that are not finite"
                )
            vectors[filled : filled + len(stored)] = stored
            filled += len(stored)
    return Features(
        vectors[:filled],
        _joined(labels),
        _joined(texts),
        rows - filled,
        folder.metadata,
    )


def refuse_other_space(features: Features, other: Features, names: tuple[str, str]) -> None:
    """Raise ValueError if vectors of two folders, named by their settings, cannot be compared."""
    for key in SPACE:
        if key == "scale":  # of int8 vectors, each folder's own: they are decoded by it
            continue
        if features.metadata.get(key) != other.metadata.get(key):
            raise ValueError(
                f"{names[1]} was embedded with {key}={other.metadata.get(key)!r}, {names[0]} with "
                f"{features.metadata.get(key)!r}: embed both with the same model and settings"
            )


def _check(folder: VectorFolder, label: str, setting: str) -> None:
    where = f"{setting}={public_uri(folder.path)}"
    own = ("embedding", "num_tokens", "truncated", "chunk", "chunk_start", "chunk_end")
    columns = [name for name in folder.schema.names if name not in own]
    if label not in folder.schema.names or label in ("embedding", "truncated"):
        raise ValueError(
            f"{where} has no column {label!r} (data.label): it has {', '.join(columns)}; "
            "raybert embed keeps a column named in data.columns"
        )
    if "chunk" in folder.schema.names:
        raise ValueError(
            f"{where} holds vectors of windows, several a row: embed with chunk.combine=mean to probe rows"
        )
    kind = plain_type(folder.schema.field(label).type)
    if pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        raise ValueError(f"data.label={label} of {where} is {kind}: a probe needs one text or number a row")


def _batches(folder: VectorFolder, name: str, columns: list[str]) -> Iterator[pa.Table]:
    """Batches of a file, with the columns in the given order."""
    with open_vectors(folder.store, name) as file:
        _check_file(folder, name, file.schema_arrow, columns)
        try:
            for batch in file.iter_batches(_BATCH_ROWS, columns=list(dict.fromkeys(columns))):
                yield pa.table(
                    {str(i): batch.column(column) for i, column in enumerate(columns)}
                ).combine_chunks()
        except (pa.ArrowException, OSError) as error:
            raise ValueError(
                f"{folder.store.path('data')}/{name}: {' '.join(str(error).split())[:300]}"
            ) from None


def _check_file(folder: VectorFolder, name: str, schema: pa.Schema, columns: list[str]) -> None:
    metadata = read_metadata(schema)
    for key in SPACE:
        if metadata.get(key) != folder.metadata.get(key):
            raise ValueError(
                f"{folder.store.path('data')}/{name} has {key}={metadata.get(key)}, other files of the folder have "
                f"{folder.metadata.get(key)}: vectors of different runs cannot be learnt from together"
            )
    for column in columns:
        kind = None if column not in schema.names else schema.field(column).type
        if kind != folder.schema.field(column).type:
            raise ValueError(
                f"{folder.store.path('data')}/{name}: column {column!r} is {kind}, in other files of the folder "
                f"{folder.schema.field(column).type}"
            )


def _rows(folder: VectorFolder, name: str) -> int:
    with open_vectors(folder.store, name) as file:
        return file.metadata.num_rows


def _text_column(folder: VectorFolder) -> str:
    texts = folder.metadata.get("text") or []
    return texts[0] if len(texts) == 1 and texts[0] in folder.columns else "id"


def _plain(column: pa.ChunkedArray) -> pa.Array:
    """One array of the type that the column stands for."""
    return _joined([chunk.cast(plain_type(column.type)) for chunk in column.chunks], plain_type(column.type))


def _strings(column: pa.Array) -> pa.Array:
    """Texts of a cut length: a report shows no more, and a whole corpus of them may not fit."""
    text = column.cast(pa.large_string())
    return pc.utf8_slice_codeunits(text, 0, 400)


def _joined(parts: list[pa.Array], kind: pa.DataType | None = None) -> pa.Array:
    return pa.concat_arrays(parts) if parts else pa.array([], kind or pa.string())
