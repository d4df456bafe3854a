"""raybert verify: does a folder of ours hold what it promises? Every row once, every byte as committed, sound content."""

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from pyarrow import fs as pafs

from raybert.config import VerifyConfig, require
from raybert.corpus.filesystems import public_uri
from raybert.corpus.inspect import Found, inspect_shard
from raybert.corpus.ledger import DATA, OURS, REJECTS, Ledger, Source
from raybert.corpus.report import WORDS
from raybert.corpus.shards import Shard
from raybert.corpus.store import Store

_THREADS = 8
_SHOWN = 20


@dataclass
class Verdict:
    """What was found. Counts are of the commit records; `files` are input files. Warnings do no harm to the content."""

    path: str
    verb: str = "embed"
    files: int = 0
    shards: int = 0
    planned: int = 0
    rows: int = 0
    embedded: int = 0
    rejected: int = 0
    vectors: int = 0
    problems: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    @property
    def good(self) -> bool:
        """Whether every promise is kept."""
        return not self.problems

    def __str__(self) -> str:
        done, made, _ = WORDS[self.verb]
        table = [
            ("files", f"{self.files:,}"),
            ("shards", f"{self.shards:,}/{self.planned:,}"),
            ("rows", f"{self.rows:,}"),
            (done, f"{self.embedded:,}"),
            ("rejected", f"{self.rejected:,}"),
            (made, f"{self.vectors:,}"),
            ("problems", f"{len(self.problems):,}"),
        ]
        lines = [f"{name:9} {value:>15}" for name, value in table]
        lines += [f"warning: {text}" for text in self.warnings]
        lines += self.problems[:_SHOWN]
        more = len(self.problems) - _SHOWN
        return "\n".join([*lines, *([f"... and {more:,} more problems"] if more > 0 else [])])


def main(config: VerifyConfig) -> int:
    """The command: check, print a summary and every problem on a line. Returns 0 if all is well, else 1."""
    require(config, "data.path")
    verdict = verify(config.data.path)
    print(verdict)
    return 0 if verdict.good else 1


def verify(path: str) -> Verdict:
    """Check every promise of a folder that raybert embed, prepare or predict wrote; reads all of it, one file a thread at a time.

    Raises ValueError if it is no such folder.
    """
    ledger = Ledger(path)
    verdict = Verdict(public_uri(path))
    job = _read_job(ledger.store, path, verdict)
    verdict.verb = job.get("verb", "embed")
    sources = _read_plan(ledger, verdict)
    shards = {source.name(shard): (source, shard) for source in sources for shard in source.shards}
    verdict.files, verdict.planned = len(sources), len(shards)
    verdict.rows = sum(source.rows for source in sources)
    files, records = ledger.store.sizes(DATA), ledger.store.sizes(f"{OURS}/commits")
    done = [name for name in shards if f"{name}.parquet" in files and f"{name}.json" in records]
    _check_missing(verdict, shards, set(files), set(records))
    _check_foreign(verdict, ledger.store, shards, set(files), set(records))
    _check_shards(verdict, ledger.store, {name: shards[name] for name in done}, _own_ids(job))
    left = ledger.store.sizes(f"{OURS}/tmp")
    if left:
        verdict.warnings.append(
            f"{len(left)} temporary file(s) in {OURS}/tmp: a run is at work, or was cut off"
        )
    return verdict


def _read_job(store: Store, path: str, verdict: Verdict) -> dict[str, Any]:
    """The job; its file is named by its content."""
    try:
        ours = sorted(store.sizes(OURS))
    except OSError as error:
        raise ValueError(f"data.path={public_uri(path)} cannot be read: {_one_line(error)}") from None
    names = [name for name in ours if name.startswith("job-")]
    if not names and not store.sizes(f"{OURS}/plan"):
        raise ValueError(
            f"data.path={public_uri(path)} was not written by raybert: it holds no {OURS}/job-*.json"
        )
    if len(names) != 1:
        verdict.problems.append(f"{OURS}: {len(names)} job files where there must be one: {', '.join(names)}")
    jobs = [
        _parse(verdict, store, f"{OURS}/{name}", name[len("job-") : -len(".json")], json.loads)
        for name in names
    ]
    return next((job for job in jobs if isinstance(job, dict)), {})


def _read_plan(ledger: Ledger, verdict: Verdict) -> list[Source]:
    """Input files of the plan that count, each checked for its shards."""
    void, found = ledger.void(), {}
    for name in sorted(ledger.store.sizes(f"{OURS}/plan")):
        digest = name.removesuffix(".jsonl")
        part = _parse(verdict, ledger.store, f"{OURS}/plan/{name}", digest, _sources)
        found |= {source.id: source for source in part or [] if source.id not in void}
    for source in found.values():
        row = 0
        for shard in source.shards:
            if shard.start != row or shard.end <= shard.start:
                why = f"a shard is rows {shard.start} to {shard.end} where row {row} is next"
                verdict.problems.append(f"plan: {source.uri}: {why}")
            row = shard.end
    for uri, times in Counter(source.uri for source in found.values()).items():
        if times > 1:
            verdict.problems.append(f"plan: {uri} is planned {times} times: its rows count more than once")
    return list(found.values())


def _sources(data: bytes) -> list[Source]:
    return [Source.from_json(line) for line in data.decode().splitlines()]


def _parse(verdict: Verdict, store: Store, name: str, digest: str, parse: Callable[[bytes], Any]) -> Any:
    """A file named by its content, or None and a problem."""
    try:
        data = store.read(name)
        if hashlib.sha256(data).hexdigest()[:16] != digest:
            verdict.problems.append(f"{name}: the content is not what it was written with")
        return parse(data)
    except (OSError, ValueError, KeyError, TypeError) as error:
        verdict.problems.append(f"{name}: cannot be read: {_one_line(error)}")
        return None


def _own_ids(job: dict[str, Any]) -> bool:
    """Whether raybert named the rows (file and row number), and not a column of the corpus."""
    requested = job.get("requested", {}).get("data", {})
    return "id" in requested and requested["id"] is None


def _check_missing(verdict: Verdict, shards: dict[str, Any], files: set[str], records: set[str]) -> None:
    missing = [name for name in shards if f"{name}.parquet" not in files or f"{name}.json" not in records]
    if missing:
        verdict.problems.append(
            f"{len(missing):,} of {len(shards):,} shards are missing; run the same command again"
        )
    for name in missing:
        if f"{name}.json" in records:  # what was done is gone: not a run that merely has not finished
            verdict.problems.append(f"{DATA}/{name}.parquet: committed, but the file is gone")


def _check_foreign(
    verdict: Verdict, store: Store, shards: dict[str, Any], files: set[str], records: set[str]
) -> None:
    planned = {f"{name}.parquet" for name in shards}
    for folder, names in ((DATA, files | _nested(store, DATA)), (REJECTS, set(store.sizes(REJECTS)))):
        for name in sorted(names - planned):
            verdict.problems.append(f"{folder}/{name}: not of the plan; readers would count its rows as well")
    stray = records - {f"{name}.json" for name in shards}
    if stray:
        verdict.warnings.append(
            f"{len(stray)} commit record(s) of shards that are not planned, such as {min(stray)}"
        )


def _nested(store: Store, folder: str) -> set[str]:
    """Files in folders below `folder`: some readers look there too."""
    base = store.path(folder)
    infos = store.fs.get_file_info(pafs.FileSelector(base, recursive=True, allow_not_found=True))
    names = {
        info.path.strip("/")[len(base.strip("/")) + 1 :] for info in infos if info.type == pafs.FileType.File
    }
    return {name for name in names if "/" in name}


def _check_shards(
    verdict: Verdict, store: Store, shards: dict[str, tuple[Source, Shard]], own_ids: bool
) -> None:
    """Each finished shard by itself, in threads; then the schemas against each other."""

    def check(name: str) -> Found:
        return inspect_shard(store, name, *shards[name], own_ids=own_ids)

    schemas: dict[bytes, list[str]] = {}
    with ThreadPoolExecutor(_THREADS) as pool:
        for name, found in zip(shards, pool.map(check, shards), strict=True):
            verdict.problems += [f"{DATA}/{name}.parquet: {why}" for why in found.problems]
            if found.commit is not None:
                verdict.shards += 1
                verdict.embedded += found.commit.embedded
                verdict.rejected += found.commit.rejected
                verdict.vectors += found.commit.vectors
            if found.schema is not None:
                schemas.setdefault(found.schema, []).append(name)
    _check_schemas(verdict, schemas)


def _check_schemas(verdict: Verdict, schemas: dict[bytes, list[str]]) -> None:
    """All files must have the schema, metadata included, that most have."""
    if len(schemas) < 2:
        return
    usual = max(schemas, key=lambda key: (len(schemas[key]), schemas[key]))
    expected = pa.ipc.read_schema(pa.py_buffer(usual))
    for key in schemas.keys() - {usual}:
        actual = pa.ipc.read_schema(pa.py_buffer(key))
        what = "metadata" if actual.equals(expected) else "columns"
        for name in schemas[key]:
            verdict.problems.append(f"{DATA}/{name}.parquet: its {what} differ from those of the other files")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
