"""POST /search: the nearest rows of a folder of vectors that the served model made, as `raybert search` finds them."""

import asyncio
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from pydantic import BaseModel, Field

from raybert.corpus.filesystems import public_uri
from raybert.corpus.filters import Filter, parse_filter
from raybert.corpus.hits import Hit, join_hits, wanted_rows
from raybert.corpus.nearest import (
    Reader,
    VectorFolder,
    fetch,
    open_vectors,
    passing_rows,
    prepare_queries,
    read_vectors,
    scan,
)
from raybert.serve.calls import Body, Call, Route, as_json
from raybert.serve.errors import ApiError, invalid
from raybert.serve.http import Reply

# of float32 vectors that are kept in memory; more are read from the files for every query
_HELD_BYTES = 512 << 20
_PATIENCE = 0.5  # share of the deadline that may be spent waiting for other searches
# in what a query's vector and the folder's must be alike, to be compared
_ALIKE = ("pooling", "layers", "dimension", "normalized")


logger = logging.getLogger("ray.serve")


class SearchRequest(Body):
    """POST /search."""

    query: str = Field(description="a text")
    k: int = Field(10, ge=1, le=100, description="hits, at most")
    filter: str | None = Field(
        None, description="only rows that pass, as in: package == 'gzip' and year >= 2020"
    )
    prompt_name: str | None = Field(
        None,
        description="one of the model's prompts, put before the query; default: what was put before the rows",
    )
    truncate: bool | None = Field(None, description="cut a query that is too long, instead of refusing it")


class SearchHit(BaseModel):
    """A row that was found: its cosine (for binary vectors the share of equal signs), its id and its kept columns."""

    score: float
    row: dict[str, Any]


class SearchResponse(BaseModel):
    """Best first."""

    hits: list[SearchHit]


def open_folder(path: str, digest: str) -> VectorFolder:
    """The folder of serve.index. Raises ValueError for none, or one that a model with another digest made."""
    folder = VectorFolder.open(path, "serve.index")
    _check_alike(folder, "digest", digest)
    return folder


class SearchIndex:
    """A folder written by `raybert embed`, as it is when this is made: files that come later are not searched.

    Args:
        path: of the folder.
        encoder: the `raybert.encoder.Encoder` that queries go through.
        prompt: put before queries; None: what was put before the rows.

    Attributes: `prompt`; `rows`, how many there are; `columns` that a filter may name.

    Raises ValueError, one line that names serve.index, for a folder that cannot be read or that another encoder made.
    """

    def __init__(self, path: str, encoder: Any, prompt: str | None = None) -> None:
        self._folder = open_folder(path, encoder.digest)
        for key in _ALIKE:
            _check_alike(self._folder, key, getattr(encoder, key))
        self.prompt: str = self._folder.metadata["prompt"] if prompt is None else prompt
        self.columns: list[str] = self._folder.filterable.names
        self.rows = _count(self._folder)
        small = self.rows * self._folder.dimension * 4 <= _HELD_BYTES
        self._read: Reader = _Held(self._folder) if small else read_vectors
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="search")
        self._waiting, self._seconds = 0, 0.0

    def filter(self, text: str) -> Filter:
        """Raises ApiError 400 for what is none."""
        try:
            return parse_filter(text, self._folder.filterable)
        except ValueError as error:
            raise invalid(str(error).removeprefix("search."), "filter") from None

    def admit(self, patience: float) -> None:
        """Raise ApiError 429 where searches wait that need more than so many seconds."""
        needed = self._waiting * self._seconds
        if needed > patience:
            raise ApiError(
                429,
                f"{self._waiting} searches wait already; try again later",
                code="overloaded",
                retry_after=needed - patience,
            )

    async def find(self, vectors: np.ndarray, k: int, where: Filter | None) -> list[list[Hit]]:
        """The k best hits of every query, float32 [q, dimension]. One search at a time runs, in a thread; cancelled, it
        ends after the batch of rows that it is at. Raises ApiError 500 for a folder that can no longer be read."""
        stop = threading.Event()
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(
                self._thread, self._find, vectors, k, where, stop
            )
        except (OSError, ValueError) as error:
            logger.exception("the index cannot be read")
            raise ApiError(500, "the index cannot be read; see the log of the server") from error
        finally:
            self._waiting -= 1
            stop.set()

    def close(self) -> None:
        """End the thread, once its search is done."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _find(
        self, vectors: np.ndarray, k: int, where: Filter | None, stop: threading.Event
    ) -> list[list[Hit]]:
        started = time.perf_counter()
        folder = self._folder
        queries = prepare_queries(vectors, folder.metadata)
        files = list(enumerate(folder.sizes))
        found = scan(folder, files, queries, k, where, _until(stop, self._read)).columns()
        tables = [fetch(folder, *wanted) for wanted in wanted_rows(folder, found)]
        hits = join_hits(folder, found, tables, len(queries))
        self._seconds = time.perf_counter() - started
        return hits


async def search(model: Any, request: SearchRequest, call: Call) -> Reply:
    """The rows nearest to a text."""
    index, engine = model.index, model.engine
    if not request.query.strip():
        raise ApiError(400, "`query` cannot be empty", "query", kind="Empty")
    where = None if request.filter is None else index.filter(request.filter)
    index.admit(model.limits.deadline * _PATIENCE)
    name = request.prompt_name or call.prompt_name
    way = engine.way(name)
    if name is None:
        way = replace(way, prompt=index.prompt)
    found = await model.compute([request.query], way, call=call, truncate=request.truncate, field="query")
    vectors = engine.finish(found.rows, None, engine.encoder.normalized)
    started = time.perf_counter()
    (hits,) = await index.find(vectors, request.k, where)
    seconds = time.perf_counter() - started
    model.metrics.search(seconds)
    plain = [hit.to_dict() for hit in hits]
    rows = [{"score": hit["score"], "row": {"id": hit["id"], **hit["columns"]}} for hit in plain]
    return as_json({"hits": rows}, {**found.headers, "x-search-time": f"{seconds * 1000:.0f}"})


ROUTES: dict[str, Route] = {
    "/search": Route("tei", SearchRequest, search, "The rows of the index nearest to a text", SearchResponse)
}
"""What a model with an index answers."""


class _Held:
    """`read_vectors` of a folder whose vectors were read once."""

    def __init__(self, folder: VectorFolder) -> None:
        self._batches = {
            name: [batch for batch in read_vectors(folder, name, None) if len(batch[0])]
            for name in folder.sizes
        }

    def __call__(
        self, folder: VectorFolder, name: str, where: Filter | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        if where is None:
            yield from self._batches[name]
            return
        passing = passing_rows(folder, name, where)
        for rows, vectors in self._batches[name]:
            first, end = np.searchsorted(passing, (rows[0], rows[-1] + 1))
            yield passing[first:end], vectors[passing[first:end] - rows[0]]


class _Stopped(Exception):
    """Nobody waits for the search any more."""


def _until(stop: threading.Event, read: Reader) -> Reader:
    """`read`, but it raises _Stopped as soon as `stop` is set."""

    def reading(
        folder: VectorFolder, name: str, where: Filter | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for batch in read(folder, name, where):
            if stop.is_set():
                raise _Stopped
            yield batch

    return reading


def _check_alike(folder: VectorFolder, key: str, served: Any) -> None:
    recorded = folder.metadata[key]
    if recorded != served:
        raise ValueError(
            f"serve.index={public_uri(folder.path)} was made with {key}={_short(recorded)}, the served model has "
            f"{_short(served)}: vectors of different models cannot be compared"
        )


def _short(value: Any) -> Any:
    """A digest is told by its beginning."""
    return value[:12] if isinstance(value, str) else value


def _count(folder: VectorFolder) -> int:
    total = 0
    for name in folder.sizes:
        with open_vectors(folder.store, name) as file:
            total += file.metadata.num_rows
    return total
