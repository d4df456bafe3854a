"""How large a job the driver and the planner can carry: shards a second, memory, planning, resuming, a rerun.

    python tests/benchmarks/scale.py [shards=10000] [files=10000] [folder=100000]

`shards` one-row shards run through the whole runner with an encoder that does nothing, so that only reading,
scheduling and committing are left. `files` Parquet files are planned. An output folder of `folder` shards is resumed
with 99 % done and run again with all done. Prints a table, the largest cluster these figures feed, and a JSON line.
"""

import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raybert.config import EmbedConfig
from raybert.corpus.ledger import Ledger, Source
from raybert.corpus.outcome import Outcome
from raybert.corpus.plan import Plan, make_plan
from raybert.corpus.readers import Shard
from raybert.corpus.vectors import embedding_array, schema, to_parquet
from raybert.embed import deciding_settings, embed

ROWS_PER_FILE = 10_000
WIDTH = 4
# Tokens a second of one encoder, and tokens of a default shard, by which the largest cluster is reckoned.
ENCODERS = {"CPU core": 7_000, "GPU": 2_000_000}
TOKENS_PER_ROW = 52  # docstrings
COUNTS = {"rows": 1, "embedded": 1, "rejected": 0, "vectors": 1, "truncated": 0, "tokens": 1}
RESOLVED = {
    **{"dimension": WIDTH, "pooling": "mean", "max_length": 8, "dtype": "float32", "device": "cpu"},
    **{"digest": "0" * 64, "revision": None, "prompt": "", "layers": "last", "normalized": False},
    **{
        "scale": None,
        "stored_dtype": "float32",
        "threads": 1,
        "batch_tokens": 1024,
        "versions": {"raybert": "benchmark"},
    },
}


@dataclass(frozen=True)
class NoTokens:
    """Prepares nothing."""

    def __call__(self, table: pa.Table, source: Source, shard: Shard) -> pa.Table:
        return table.select(["text"])


@dataclass(frozen=True)
class NoModel:
    """A worker whose vectors are all the same. No torch."""

    def __call__(self) -> Callable[[pa.Table], Outcome]:
        return self.encode

    def encode(self, table: pa.Table) -> Outcome:
        return Outcome(pa.table({"embedding": [[0.0] * WIDTH] * table.num_rows}), None, COUNTS)


def main(argv: list[str]) -> int:
    """Measure all; `key=value` words scale it down."""
    asked = {"shards": 10_000, "files": 10_000, "folder": 100_000}
    asked |= {key: int(value) for key, value in (word.split("=") for word in argv)}
    table: dict[str, float] = {"cores": len(os.sched_getaffinity(0))}
    with tempfile.TemporaryDirectory() as where:
        table |= many_files(Path(where, "files"), asked["files"])
        table |= big_folder(Path(where, "folder"), asked["folder"])
        table |= throughput(Path(where, "run"), asked["shards"])
    for key, value in table.items():
        print(f"{key:32} {value:>12,.2f}")
    print(largest_cluster(table["shards_per_second"], "as measured, driver and workers on these cores"))
    print(largest_cluster(1000 / table["driver_ms_per_shard"], "by the driver's own time, workers elsewhere"))
    print(json.dumps(table))
    return 0


def largest_cluster(shards_per_second: float, how: str) -> str:
    """How many encoders so many default shards a second keep busy."""
    tokens = EmbedConfig().output.rows_per_shard * TOKENS_PER_ROW
    feeds = ", ".join(
        f"{shards_per_second * tokens / speed:,.0f} x {name} ({speed:,} tokens/s)"
        for name, speed in ENCODERS.items()
    )
    return f"{shards_per_second:,.0f} shards/s ({how}) of {tokens:,} tokens feed {feeds}"


def many_files(where: Path, count: int) -> dict[str, float]:
    """Seconds to plan a folder of `count` files of one row, new and again."""
    write(where / "in", count, 1)
    config, ledger = job(where)
    with clock() as first:
        made = make_plan(config.data, config.output, ledger, None)
        ledger.extend(list(made.added))
        ledger.settle()
    with clock() as again:
        make_plan(config.data, config.output, ledger, ledger.job())
    return {"files": count, "plan_seconds": first(), "replan_seconds": again()}


def big_folder(where: Path, count: int) -> dict[str, float]:
    """Seconds until the first shard of a resumed run with 99 % done is known, and of a rerun with nothing left to do."""
    write(where / "in", -(-count // ROWS_PER_FILE), min(count, ROWS_PER_FILE))
    config, ledger = job(where)
    made = plan(config, ledger)
    names = list(made.shards())
    late = names[:: len(names) // max(1, len(names) // 100)]
    with no_fsync():
        fill(config, ledger, sorted(set(names) - set(late)))
        with clock() as resume:
            before = Ledger(ledger.path)
            before.settle()
            again = make_plan(config.data, config.output, before, before.job())
            done = before.done()
            left = [name for name in again.shards() if name not in done]
            before.commits(done & again.shards().keys())
        assert sorted(left) == sorted(late)
        fill(config, ledger, late)
    with clock() as rerun:
        report = embed(config)
    assert report.shards == len(names)
    assert not report.run["tokens"]
    return {
        "folder_shards": len(names),
        "resume_seconds": resume(),
        "rerun_seconds": rerun(),
        "rerun_memory_mb": memory_mb(),
    }


def throughput(where: Path, count: int) -> dict[str, float]:
    """Shards a second through Ray and to disk, once they flow, and the driver's memory."""
    from raybert.config import WorkersSettings
    from raybert.corpus.pool import worker_pool
    from raybert.corpus.runner import Work, run
    from raybert.corpus.session import ray_session

    write(where / "in", -(-count // ROWS_PER_FILE), min(count, ROWS_PER_FILE))
    config, ledger = job(where)
    made = plan(config, ledger)
    work = Work(["text"], {"text": pa.string()}, ["text"], 1000, NoTokens(), NoModel())
    seen = first = last = 0.0
    with ray_session():
        pool = worker_pool(WorkersSettings())
        before, busy = rss_mb(), time.process_time()
        for shard in run(work, ledger, made.shards(), made.files, pool):
            assert shard.status == "done", shard.why
            last = time.monotonic()
            first = first or last
            seen += 1
            if seen % 2000 == 0:
                print(f"  {seen:,.0f} shards, {seen / (last - first):,.0f}/s, {rss_mb():,.0f} MB", flush=True)
        after, busy = rss_mb(), time.process_time() - busy
    assert seen == len(made.shards()) == len(ledger.done())
    return {
        "run_shards": seen,
        "shards_per_second": (seen - 1) / (last - first),
        "driver_ms_per_shard": 1000 * busy / seen,
        "driver_mb_before": before,
        "driver_mb_after": after,
    }


def job(where: Path) -> tuple[EmbedConfig, Ledger]:
    """Settings with a row a shard, and a folder with a job of theirs that names no real model."""
    settings = {"model.name": "null", "data.path": str(where / "in"), "output.path": str(where / "out")}
    config = EmbedConfig(**settings, **{"output.rows_per_shard": 1})
    ledger = Ledger(str(where / "out"), owner="scale")
    ledger.create_job(
        {
            "requested": deciding_settings(config),
            "tokenizer": "",
            "model": {"name": "null", "revision": None},
            "resolved": RESOLVED,
            **{"kept": [], "types": {}, "carried": {}},
        }
    )
    return config, ledger


def plan(config: EmbedConfig, ledger: Ledger) -> Plan:
    made = make_plan(config.data, config.output, ledger, ledger.job())
    ledger.extend(list(made.added))
    return made


def fill(config: EmbedConfig, ledger: Ledger, names: list[str]) -> None:
    """Commit shards as a run would."""
    kind = schema({}, pa.string(), {"dimension": WIDTH, "stored_dtype": "float32"}, chunked=False)
    row = {"id": ["a"], "num_tokens": [1], "truncated": [False]}
    columns: dict[str, Any] = {key: pa.array(value, kind.field(key).type) for key, value in row.items()}
    columns["embedding"] = embedding_array(np.zeros((1, WIDTH), np.float32), kind.field("embedding").type)
    data = to_parquet(pa.table([columns[name] for name in kind.names], schema=kind))
    for name in names:
        ledger.commit(name, data, None, COUNTS)


def write(where: Path, files: int, rows: int) -> None:
    where.mkdir(parents=True)
    for i in range(files):
        texts = [f"text {i} {row}" for row in range(rows)]
        pq.write_table(pa.table({"text": texts}), where / f"{i:06}.parquet", row_group_size=1000)


@contextmanager
def clock() -> Iterator[Callable[[], float]]:
    """Yields a function that gives the seconds spent inside."""
    started, ended = time.monotonic(), []
    yield lambda: ended[0] - started
    ended.append(time.monotonic())


@contextmanager
def no_fsync() -> Iterator[None]:
    """Builds a folder without waiting for the disk; nothing that is measured writes."""
    kept, os.fsync = os.fsync, lambda handle: None
    try:
        yield
    finally:
        os.fsync = kept


def rss_mb() -> float:
    """Memory of this process now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def memory_mb() -> float:
    """The most memory this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
