"""raybert search: the exact k nearest rows of a folder of vectors, as one streaming job. The driver needs no torch.

Scores are cosines in [-1, 1] for float32, float16 and int8 folders. For binary folders a score is the Hamming
similarity in [0, 1]: the share of the signs in which query and vector agree.
"""

import contextlib
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raybert.config import SearchConfig, load, require
from raybert.corpus.filesystems import public_uri, resolve
from raybert.corpus.filters import parse_filter
from raybert.corpus.hits import Hit, join_hits, print_hits, wanted_rows
from raybert.corpus.nearest import Best, VectorFolder, decode, fetch, prepare_queries, scan
from raybert.corpus.session import cluster_map, ray_session
from raybert.corpus.vectors import KEY, read_metadata

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
        what = "search.query and search.vectors are both given" if texts else "nothing to search for"
        raise ValueError(f"{what}: give either search.query (texts) or search.vectors (a file of vectors)")
    if any(not text.strip() for text in texts):
        raise ValueError("search.query holds an empty text")
    folder = VectorFolder.open(config.data.path)
    if config.search.filter is not None:
        parse_filter(config.search.filter, folder.filterable)  # an error here costs no start of Ray
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
        raise ValueError(
            f"search.vectors={public_uri(path)} cannot be read: {' '.join(str(error).split())[:300]}"
        ) from None
    if vectors.ndim != 2 or not len(vectors) or vectors.dtype.kind not in "fiu":
        raise ValueError(
            f"search.vectors={public_uri(path)} must hold numbers [queries, {folder.dimension}], not {vectors.shape}"
        )
    if vectors.shape[1] != folder.dimension:
        raise ValueError(
            f"search.vectors={public_uri(path)} are {vectors.shape[1]} wide, those of the folder {folder.dimension}"
        )
    if not np.isfinite(vectors).all():
        raise ValueError(f"search.vectors={public_uri(path)} holds numbers that are not finite")
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
    return (
        decode(matrix, read_metadata(file.schema_arrow))
        if KEY in (file.schema_arrow.metadata or {})
        else matrix
    )


def _query_model(model: SearchConfig.Model, folder: VectorFolder) -> dict[str, Any]:
    """Arguments of `Encoder.load`, and the digest that the weights must have: the folder's own, where nothing is said."""
    recorded = folder.metadata
    name = model.name or recorded["model"]
    if os.path.isdir(name):  # the task runs in another process, perhaps in another folder
        name = os.path.abspath(name)
    prompt = (
        {"prompt": recorded["prompt"]} if model.prompt_name is None else {"prompt_name": model.prompt_name}
    )
    return {
        "name_or_path": name,
        "revision": None if model.name else recorded["revision"],
        "trust_remote_code": model.trust_remote_code,
        "normalize": recorded["normalized"],
        "dimensions": recorded["dimension"],
        **{key: recorded[key] for key in ("pooling", "layers", "max_length", "digest")},
        **(prompt if model.prompt is None else {"prompt": model.prompt}),
    }


def _encode(request: tuple[dict[str, Any], list[str]]) -> np.ndarray:
    """Runs in a task. float32 on a CPU: a query is short, and every node can do it."""
    (model, texts) = request
    from raybert.corpus.models import fetch_model
    from raybert.encoder import Encoder

    arguments = dict(model)
    name, digest = arguments.pop("name_or_path"), arguments.pop("digest")
    encoder = Encoder.load(fetch_model(name), dtype="float32", device="cpu", **arguments)
    if encoder.digest != digest:
        raise ValueError(
            f"model.name={name} has other weights (digest {encoder.digest[:12]}) than the folder was embedded with "
            f"(digest {digest[:12]}): give model.name=... where those lie"
        )
    return encoder.encode(texts)


def _scan_folder(folder: VectorFolder, queries: np.ndarray, config: SearchConfig) -> tuple[np.ndarray, ...]:
    """(query, score, file number, row) of the best: tasks over groups of files, merged here as they come back."""
    import ray.data

    groups = _groups(folder.sizes, int(ray.cluster_resources().get("CPU", 1)))
    job = {"folder": folder, "queries": queries, "k": config.search.k, "where": config.search.filter}
    with _no_progress_bars(), _plain_errors():
        found = ray.data.from_items([{"files": group} for group in groups], override_num_blocks=len(groups))
        found = found.map_batches(
            _scan_groups, fn_kwargs=job, batch_size=None, batch_format="pyarrow", num_cpus=1
        )
        best = Best(len(queries), config.search.k)
        for part in found.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
            broken = part.column("error").drop_null()
            if len(broken):
                raise ValueError(broken[0].as_py())
            best.add(*(part.column(name).to_numpy() for name in ("query", "score", "file", "row")))
    return best.columns()


def _scan_groups(
    batch: pa.Table, folder: VectorFolder, queries: np.ndarray, k: int, where: str | None
) -> pa.Table:
    """Runs in a task. A broken file is handed back by name: raised here, Ray would bury it in its own stack."""
    names = list(folder.sizes)
    files = [(number, names[number]) for group in batch.column("files").to_pylist() for number in group]
    error = None
    best = Best(len(queries), k)
    try:
        # the filter travels as text: it is read again for less than an expression costs to send
        parsed = None if where is None else parse_filter(where, folder.filterable)
        best = scan(folder, files, queries, k, parsed)
    except ValueError as failure:
        error = str(failure)
    columns = dict(zip(("query", "score", "file", "row"), map(pa.array, best.columns()), strict=True))
    if error is not None:
        columns = {name: pa.nulls(1, column.type) for name, column in columns.items()}
    rows = len(columns["query"])
    return pa.table({**columns, "error": pa.array([error] * rows, pa.string())})


def _groups(sizes: dict[str, int], cpus: int) -> list[list[int]]:
    """Numbers of files, cut into runs of about equal bytes: a few for every CPU, none too large."""
    target = min(_GROUP_BYTES, sum(sizes.values()) // (4 * cpus) + 1)
    groups: list[list[int]] = []
    room = 0
    for number, size in enumerate(sizes.values()):
        if room <= 0:
            groups.append([])
            room = target
        groups[-1].append(number)
        room -= size
    return groups


def _fetch_hits(folder: VectorFolder, found: tuple[np.ndarray, ...], queries: int) -> list[list[Hit]]:
    """Read the columns of the winners, and only now: they may be long texts."""
    wanted = wanted_rows(folder, found)
    return join_hits(folder, found, _on_cluster(_Fetch(folder), wanted), queries)


@dataclass(frozen=True)
class _Fetch:
    """`fetch` of one folder; a class because it travels to other machines."""

    folder: VectorFolder

    def __call__(self, wanted: tuple[str, np.ndarray]) -> pa.Table:
        return fetch(self.folder, *wanted)


def _on_cluster(function: Any, items: list[Any]) -> list[Any]:
    """`cluster_map` whose errors are one line of the cause's own words."""
    with _plain_errors():
        return cluster_map(function, items)


@contextlib.contextmanager
def _plain_errors() -> Iterator[None]:
    """Errors of tasks as ValueError or RuntimeError of one line, without Ray's stacks."""
    from ray.exceptions import RayError, RayTaskError

    try:
        yield
    except RayError as error:
        cause = (
            error.cause if isinstance(error, RayTaskError) and isinstance(error.cause, Exception) else error
        )
        kind = ValueError if isinstance(cause, ValueError) else RuntimeError
        raise kind(" ".join(str(cause).split())[:500]) from None


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    import ray.data

    context = ray.data.DataContext.get_current()
    before, context.enable_progress_bars = context.enable_progress_bars, False
    try:
        yield
    finally:
        context.enable_progress_bars = before
