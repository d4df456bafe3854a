"""raybert search: the exact k nearest rows of a folder of vectors, as one streaming job. The driver needs no torch.

Scores are cosines in [-1, 1] for float32, float16 and int8 folders. For binary folders a score is the Hamming
similarity in [0, 1]: the share of the signs in which query and vector agree.
"""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raybert.config import SearchConfig, load, require
from raybert.corpus.filesystems import resolve
from raybert.corpus.filters import parse_filter
from raybert.corpus.hits import Hit, print_hits
from raybert.corpus.nearest import Best, VectorFolder, decode, fetch, prepare_queries, scan
from raybert.corpus.session import cluster_map, ray_session

_GROUP_BYTES = 256 << 20  # of data files that one task reads at most, so that a lost task costs little


def main(config: SearchConfig) -> int:
    """The command: search, print the hits of every query as a table or as JSON. Returns 0."""
    hits = search(config)
    query = config.search.query
    names = [query] if isinstance(query, str) else query
    print_hits(hits, names or [f"vector {i}" for i in range(len(hits))], config.search.format)
    return 0


def search(config: SearchConfig | Mapping[str, Any]) -> list[list[Hit]]:
    """The `search.k` best hits of every query, best first; equal scores by file name and row.

    Queries are texts, encoded as the folder's own texts were but always in float32 (on one CPU of the cluster), or
    vectors. Reads only vectors, columns of the filter, and the columns of the hits; memory does not grow with the folder.

    Raises:
        ValueError: settings, queries or a folder that cannot be used; one line that says what to change.
        RuntimeError: Ray or a worker failed.
    """
    if not isinstance(config, SearchConfig):
        config = load(SearchConfig, settings=config)
    require(config, "data.path")
    texts = [config.search.query] if isinstance(config.search.query, str) else list(config.search.query)
    texts = [] if texts == [""] else texts
    if bool(texts) == bool(config.search.vectors):
        both = "both are given" if texts else "neither is given"
        raise ValueError(f"give search.query (text) or search.vectors (a file), not both: {both}")
    if any(not text.strip() for text in texts):
        raise ValueError("search.query holds an empty text")
    folder = VectorFolder.open(config.data.path)
    if config.search.filter is not None:
        parse_filter(config.search.filter, _filterable(folder))  # an error here costs no start of Ray
    vectors = None if texts else read_queries(config.search.vectors, folder)
    with ray_session():
        if vectors is None:
            (vectors,) = _on_cluster(_encode, [(_query_model(config.model, folder), texts)])
        found = _scan_folder(folder, prepare_queries(vectors, folder.metadata), config)
        return _fetch_hits(folder, found, len(vectors))


def read_queries(path: str, folder: VectorFolder) -> np.ndarray:
    """float32 [q, dimension] from a .npy file [q, dimension] or the `embedding` column of a Parquet file.

    Raises ValueError, naming search.vectors, for a file that is missing or does not fit the folder.
    """
    fs, inner = resolve(path)
    try:
        with fs.open_input_file(inner) as file:
            vectors = _npy(file) if inner.endswith(".npy") else _embeddings(pq.ParquetFile(file))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        raise ValueError(f"search.vectors={path} cannot be read: {' '.join(str(error).split())[:300]}") from None
    if vectors.ndim != 2 or not len(vectors) or vectors.dtype.kind not in "fiu":
        raise ValueError(f"search.vectors={path} must hold numbers [queries, {folder.dimension}], not {vectors.shape}")
    if vectors.shape[1] != folder.dimension:
        raise ValueError(f"search.vectors={path} are {vectors.shape[1]} wide, those of the folder {folder.dimension}")
    if not np.isfinite(vectors).all():
        raise ValueError(f"search.vectors={path} holds numbers that are not finite")
    return vectors.astype(np.float32)


def _npy(file: pa.NativeFile) -> np.ndarray:
    vectors = np.load(pa.BufferReader(file.read_buffer()), allow_pickle=False)
    return vectors[None] if vectors.ndim == 1 else vectors


def _embeddings(file: pq.ParquetFile) -> np.ndarray:
    if "embedding" not in file.schema_arrow.names:
        raise ValueError("it has no column `embedding`")
    column = file.read(columns=["embedding"]).column(0).combine_chunks()
    if column.null_count or column.flatten().null_count:
        raise ValueError("some vectors are null")
    widths = set(column.value_lengths().unique().to_pylist()) if len(column) else {0}
    if len(widths) != 1:
        raise ValueError(f"its vectors differ in width: {sorted(widths)}")
    matrix = column.flatten().to_numpy().reshape(len(column), -1)
    entry = (file.schema_arrow.metadata or {}).get(b"raybert")
    return decode(matrix, pa.compute and __import__("json").loads(entry)) if entry else matrix
