"""The one exactly-once runner: shards -> CPU tasks -> a pool of workers -> committed files.

A verb brings two functions: `prepare` (table of a shard -> table for the worker, on any CPU) and `worker` (a factory,
called once in each process of the pool, of a function prepared table -> Outcome). The runner reads, schedules on Ray
Data, retries, commits and counts.

One shard travels as one row of a Ray Dataset (a name and the table as Arrow bytes): Ray may merge and split blocks
between operators, but never a row.
"""

import contextlib
import errno
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import ray
import ray.data
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from raybert.corpus.attempts import Attempts
from raybert.corpus.ledger import Ledger, Replaced, Source
from raybert.corpus.outcome import Finished, Outcome, Refused
from raybert.corpus.pool import Pool
from raybert.corpus.readers import Shard, read, spans
from raybert.corpus.session import drivers_node
from raybert.corpus.sources import File
from raybert.corpus.vectors import to_parquet

TRIES = 3


class Prepare(Protocol):
    """From the rows of a shard to what the worker takes. Picklable."""

    def __call__(self, table: pa.Table, source: Source, shard: Shard) -> pa.Table: ...


class Encode(Protocol):
    """From a prepared table to what is written."""

    def __call__(self, table: pa.Table) -> Outcome: ...


@dataclass(frozen=True)
class Work:
    """A verb's part of a run."""

    columns: list[str]
    types: dict[str, pa.DataType]
    text_columns: list[str]
    max_chars: int
    prepare: Prepare
    worker: Callable[[], Encode]


def run(
    work: Work,
    ledger: Ledger,
    shards: Mapping[str, tuple[Source, Shard]],
    files: Mapping[str, File],
    pool: Pool,
) -> Iterator[Finished]:
    """Do `shards`, yielding each as it is committed or given up. Closing the iterator stops the run.

    Raises RuntimeError if Ray itself gives up.
    """
    attempts = _attempts_here()
    with _data_context():
        todo = ray.data.read_datasource(
            # the tokenizer may be megabytes: it travels once, not once a task
            _Shards(ray.put(work), shards, files, attempts),
            num_cpus=1,
            # Renews reader processes now and then. An argument that the pool lacks also keeps Ray from fusing the
            # reading into the encoder's process, where the two would take turns.
            max_calls=1000,
            ray_remote_args={"label_selector": dict(pool.reader_labels)} if pool.reader_labels else None,
        )
        results = todo.map_batches(
            EncodeAndCommit,
            fn_constructor_args=(work.worker, ledger, attempts, TRIES * pool.high),
            batch_size=1,
            batch_format="pyarrow",
            zero_copy_batch=True,
            compute=ray.data.ActorPoolStrategy(min_size=pool.low, max_size=pool.high),
            **pool.needs,
        )
        rows = iter(results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0))
        try:
            for batch in rows:
                for row in batch.to_pylist():
                    yield Finished(**json.loads(row["finished"]))
        except ray.exceptions.LocalRayletDiedError as error:
            raise RuntimeError(
                "Ray is gone from this driver's node; what is finished stays, run the same command again on a living cluster"
            ) from error
        except ray.exceptions.RayError as error:
            raise RuntimeError(f"Ray gave up: {_one_line(error)}") from error
        finally:
            if hasattr(rows, "close"):
                rows.close()


class _Shards(Datasource):
    """Read tasks that yield one row a shard; what is best read in one pass is one task."""

    def __init__(
        self,
        work: ray.ObjectRef,
        shards: Mapping[str, tuple[Source, Shard]],
        files: Mapping[str, File],
        attempts: Any,
    ) -> None:
        self._tasks = []
        for source, pending in _by_source(shards):
            file = files[source.uri]
            bare = replace(source, shards=())
            for span in spans(file, source.shards, pending):
                read_fn = _ReadSpan(work, bare, file, span, attempts)
                rows = sum(shard.end - shard.start for shard in span)
                metadata = BlockMetadata(
                    num_rows=len(span), size_bytes=rows * 512, exec_stats=None, input_files=None
                )
                self._tasks.append(ReadTask(read_fn, metadata))

    def get_name(self) -> str:
        return "AndTokenize"  # Ray shows ReadAndTokenize

    def estimate_inmemory_data_size(self) -> int:
        return sum(task.metadata.size_bytes for task in self._tasks)

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, **_: Any
    ) -> list[ReadTask]:
        return self._tasks


@dataclass(frozen=True)
class _ReadSpan:
    """Reads and prepares a run of shards. What cannot be read is handed on as an error row, never raised."""

    work: ray.ObjectRef
    source: Source
    file: File
    span: list[Shard]
    attempts: Any

    def __call__(self) -> Iterable[pa.Table]:
        # tokenizers would start a thread a core in every one of these processes
        os.environ.setdefault("RAYON_NUM_THREADS", "1")
        # reading runs far ahead: while encoders load or work, it takes what they leave
        os.setpriority(os.PRIO_PROCESS, 0, 19)
        work = _fetch(self.work)
        tables: Iterator[pa.Table] | None = None
        for i, shard in enumerate(self.span):
            name = self.source.name(shard)
            if ray.get(self.attempts.begin.remote(f"read:{name}")) > TRIES:
                tables = None  # go on behind it
                yield _pack(name, None, f"{self.file.uri}: reading it killed {TRIES} processes")
                continue
            try:
                tables = tables or self._tables(work, self.span[i:])
                table = next(tables)
            except Exception as error:
                why = f"{self.file.uri}: {_one_line(error)}"
                yield from (_pack(self.source.name(rest), None, why) for rest in self.span[i:])
                return
            try:
                packed = _pack(name, work.prepare(table, self.source, shard))
            except Exception as error:
                packed = _pack(name, None, f"{self.file.uri}: {_one_line(error)}")
            self.attempts.end.remote(f"read:{name}")
            yield packed

    def _tables(self, work: Work, span: list[Shard]) -> Iterator[pa.Table]:
        return read(
            self.file,
            span,
            work.columns,
            types=work.types,
            text_columns=work.text_columns,
            max_chars=work.max_chars,
        )


class EncodeAndCommit:
    """A process of the pool. Its name is what Ray's own progress output shows."""

    def __init__(self, worker: Callable[[], Encode], ledger: Ledger, attempts: Any, starts: int) -> None:
        self._ledger, self._attempts = ledger, attempts
        self._refusal = ""
        # An exception or a death here would make Ray start this process again for ever.
        if ray.get(attempts.begin.remote("start")) > starts:
            self._refusal = f"loading the model killed its process {starts} times: is there enough memory?"
            return
        try:
            self._encode = worker()
        except Exception as error:
            self._refusal = _one_line(error)
        attempts.end.remote("start")

    def __call__(self, batch: pa.Table) -> pa.Table:
        assert batch.num_rows == 1, "one shard a call"
        started = time.monotonic()
        name, error = batch["shard"][0].as_py(), batch["error"][0].as_py()
        finished = self._finish(name, batch["table"][0].as_buffer(), error)
        finished["seconds"] = time.monotonic() - started
        finished["worker"] = ray.get_runtime_context().get_actor_id()
        return pa.table({"finished": [json.dumps(finished)]})

    def _finish(self, name: str, packed: pa.Buffer | None, error: str | None) -> dict[str, Any]:
        if error is not None:
            return {"name": name, "status": "aside", "why": error}
        if self._refusal:
            return {"name": name, "status": "fatal", "why": self._refusal}
        if ray.get(self._attempts.begin.remote(name)) > TRIES:
            return {"name": name, "status": "aside", "why": f"killed its worker {TRIES} times"}
        try:
            return self._encode_and_commit(name, pa.ipc.open_stream(packed).read_all())
        except Replaced as gone:
            return {"name": name, "status": "replaced", "why": str(gone)}
        except Refused as refusal:
            return {"name": name, "status": "fatal", "why": _one_line(refusal)}
        except OSError as failure:
            return {"name": name, "status": "fatal", "why": _storage_message(self._ledger.where, failure)}
        finally:
            self._attempts.end.remote(name)

    def _encode_and_commit(self, name: str, table: pa.Table) -> dict[str, Any]:
        known = self._ledger.find(name)  # another driver, or this one before its node was lost
        if known is not None:
            return {"name": name, "status": "done", "counts": vars(known)}
        for attempt in range(1, TRIES + 1):
            try:
                outcome = self._encode(table)
                data = to_parquet(outcome.data)
                rejects = to_parquet(outcome.rejects) if outcome.rejects is not None else None
                break
            except Refused:
                raise
            except Exception as error:
                if attempt == TRIES:
                    return {"name": name, "status": "aside", "why": _one_line(error)}
        record = self._ledger.commit(name, data, rejects, outcome.counts)
        return {
            "name": name,
            "status": "done",
            "counts": vars(record),
            "encoded_tokens": outcome.encoded_tokens,
            "padded_tokens": outcome.padded_tokens,
        }


def _attempts_here() -> Any:
    return ray.remote(Attempts).options(num_cpus=0, scheduling_strategy=drivers_node()).remote()


@contextlib.contextmanager
def _data_context() -> Iterator[None]:
    """Ray Data as this run needs it; a Dataset keeps the context it was made in."""
    context = ray.data.DataContext.get_current()
    before = context.target_max_block_size, context.enable_progress_bars
    # A block holds at least one row, here one shard: with a tiny target it holds exactly one, and is sent on at once.
    context.target_max_block_size, context.enable_progress_bars = 1, False
    try:
        yield
    finally:
        context.target_max_block_size, context.enable_progress_bars = before


@lru_cache(1)
def _fetch(work: ray.ObjectRef) -> Work:
    """Unpickled once a process: building a tokenizer takes longer than reading a shard."""
    return ray.get(work)


def _by_source(shards: Mapping[str, tuple[Source, Shard]]) -> Iterator[tuple[Source, list[Shard]]]:
    grouped: dict[str, tuple[Source, list[Shard]]] = {}
    for source, shard in shards.values():
        grouped.setdefault(source.id, (source, []))[1].append(shard)
    yield from grouped.values()


def _pack(name: str, table: pa.Table | None, error: str | None = None) -> pa.Table:
    content = pa.nulls(1, pa.large_binary())
    if table is not None:
        out = pa.BufferOutputStream()
        with pa.ipc.new_stream(out, table.schema) as writer:
            writer.write_table(table)
        data = out.getvalue()
        ends = pa.py_buffer(np.array([0, data.size], np.int64))
        content = pa.LargeBinaryArray.from_buffers(pa.large_binary(), 1, [None, ends, data])
    return pa.table(
        {
            "shard": pa.array([name], pa.string()),
            "table": content,
            "error": pa.array([error], pa.string()),
        }
    )


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:500] or type(error).__name__


def _storage_message(path: str, error: OSError) -> str:
    hint = {
        errno.ENOSPC: "the disk is full; free some space",
        errno.EDQUOT: "the quota is used up; free some space",
        errno.EACCES: "no permission to write there",
        errno.EPERM: "no permission to write there",
        errno.EROFS: "it is read-only",
    }.get(error.errno, _one_line(error))
    return f"cannot write to {path}: {hint}, then run the same command again: what is finished stays"
