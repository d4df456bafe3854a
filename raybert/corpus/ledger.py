"""What an output folder promises and what it already holds: the job, the plan, the commits. The folder is the only truth.

Layout below the output folder:

    data/<shard>.parquet          the vectors; nothing else is ever put here
    _rejects/<shard>.parquet      rows that could not be embedded, with the reason
    _raybert/job-<digest>.json    what decides the numbers, resolved once
    _raybert/plan/<digest>.jsonl  input files and their shards; the plan is the union of all parts
    _raybert/commits/<shard>.json one record a finished shard: counts and checksum
    _raybert/replaced/<source>    input files whose output is void (they changed or vanished)

Every file is written whole, and every name follows from its content or its shard. So writing one twice does no harm,
and two drivers, or a worker that outlived its driver, can only agree.

Ray Data's own row checkpoint is not used: it is beta, keeps every id in memory and loses rows of one-to-many maps.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa
from pyarrow.fs import FileSelector

from raybert.corpus.filesystems import public_uri
from raybert.corpus.readers import Shard
from raybert.corpus.store import Store

DATA, REJECTS, OURS = "data", "_rejects", "_raybert"
_SHARD = re.compile(r".*-([0-9a-f]{12})-\d{12}-\d{12}")  # as `Source.name` makes it


class Replaced(RuntimeError):
    """The shard is no longer part of the plan: another run replaced its input file, or the folder is gone."""


@dataclass(frozen=True)
class Source:
    """One input file of the plan. `id` follows from its path, size and content, never from its place in a list."""

    id: str
    uri: str
    size: int
    digest: str
    format: str
    shards: tuple[Shard, ...]
    members: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        """Rows of the file that are planned."""
        return sum(shard.end - shard.start for shard in self.shards)

    @property
    def label(self) -> str:
        """Readable and unique: the file's name and its id."""
        stem = re.sub(r"[^A-Za-z0-9]+", "_", self.uri.rpartition("/")[2].partition(".")[0])[:40]
        return f"{stem}-{self.id}"

    def name(self, shard: Shard) -> str:
        """The name of a shard's output, unique for file content and row range."""
        return f"{self.label}-{shard.start:012d}-{shard.end:012d}"

    def to_json(self) -> str:
        """One line of the plan."""
        shards = [[s.start, s.end, s.begin, s.stop] for s in self.shards]
        return json.dumps({**vars(self), "shards": shards}, sort_keys=True)

    @classmethod
    def from_json(cls, line: str) -> "Source":
        """The inverse of `to_json`."""
        values = json.loads(line)
        return cls(
            **{
                **values,
                "shards": tuple(Shard(*s) for s in values["shards"]),
                "members": tuple(values["members"]),
            }
        )


def source_id(uri: str, size: int, digest: str, void: Iterable[str] = ()) -> str:
    """12 hex digits for a file's identity. A file that returns to a content once replaced gets a new one."""
    generation = 0
    while True:
        text = f"{uri}\0{size}\0{digest}\0{generation}"
        identity = hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:12]
        if identity not in void:
            return identity
        generation += 1


@dataclass(frozen=True)
class Commit:
    """What is known of a finished shard. Counts are of rows; `vectors` differs from `embedded` for chunked documents."""

    rows: int
    embedded: int
    rejected: int
    vectors: int
    truncated: int
    tokens: int
    bytes: int
    sha256: str
    reasons: dict[str, int] = field(default_factory=dict)


@dataclass
class Ledger:
    """The state of one output folder. Picklable; `owner` marks temporary files of this run."""

    path: str
    owner: str = ""
    job_file: str = ""

    @property
    def where(self) -> str:
        """The folder for messages and files: without credentials."""
        return public_uri(self.path)

    @cached_property
    def store(self) -> Store:
        """The folder's files."""
        return Store(self.path)

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "owner": self.owner, "job_file": self.job_file}

    # -- the job

    def job(self) -> dict[str, Any] | None:
        """What decides the numbers, or None in a new folder.

        Raises ValueError when two drivers with different settings started at the same moment.
        """
        names = self._job_files()
        if len(names) > 1:
            raise ValueError(
                f"{self.where} was started twice with different settings; remove it and start once"
            )
        if not names:
            return None
        self.job_file = names[0]
        return json.loads(self.store.read(f"{OURS}/{names[0]}"))

    def create_job(self, job: dict[str, Any]) -> None:
        """Lay down the job in a new folder. Raises ValueError if another driver laid down a different one meanwhile."""
        data = _canonical(job)
        name = f"job-{hashlib.sha256(data).hexdigest()[:16]}.json"
        self.store.write(f"{OURS}/{name}", data, owner=self.owner)
        # Object stores have no rename-if-absent here. Each of two simultaneous starters lists after it wrote, so at
        # least one sees both; whoever does steps back.
        self.job_file = name
        if self._job_files() != [name]:
            self.store.delete(f"{OURS}/{name}")
            raise ValueError(
                f"another run with different settings started in {self.where}; run again to see what differs"
            )

    def _job_files(self) -> list[str]:
        return sorted(n for n in self.store.sizes(OURS) if n.startswith("job-"))

    def refuse_foreign_folder(self) -> None:
        """Raise ValueError if a new job would mix with files that are not ours."""
        found = self.store.fs.get_file_info(FileSelector(self.store.root, allow_not_found=True))
        foreign = sorted(i.base_name for i in found if i.base_name not in (OURS, "lost+found"))
        foreign = [name for name in foreign if not name.startswith(".")]
        if foreign:
            raise ValueError(
                f"output.path={self.where} holds {foreign[0]!r} and no job of raybert: give a new or empty folder"
            )

    # -- the plan

    def sources(self) -> dict[str, Source]:
        """The files of the plan that count, by id."""
        names = sorted(self.store.sizes(f"{OURS}/plan"))
        parts = self.store.read_many([f"{OURS}/plan/{name}" for name in names])
        void = self.void()
        every = (Source.from_json(line) for part in parts for line in part.decode().splitlines())
        return {source.id: source for source in every if source.id not in void}

    def extend(self, sources: list[Source]) -> None:
        """Add files to the plan. Adding one twice changes nothing."""
        if sources:
            data = "\n".join(source.to_json() for source in sources).encode()
            name = f"{OURS}/plan/{hashlib.sha256(data).hexdigest()[:16]}.jsonl"
            self.store.write(name, data, owner=self.owner)

    def void(self) -> set[str]:
        """Ids of the files that were replaced or removed."""
        return set(self.store.sizes(f"{OURS}/replaced"))

    def replace(self, ids: Iterable[str]) -> None:
        """Take files out of the plan. Their output goes with `drop_void`."""
        for identity in ids:
            self.store.write(f"{OURS}/replaced/{identity}", b"", owner=self.owner)

    def settle(self) -> bool:
        """Where two drivers planned a file at the same time, let one plan of it count. Returns whether there were any.

        The smallest id wins, so all drivers that look decide alike, whoever comes first.
        """
        taken: set[str] = set()
        losers = []
        for identity, source in sorted(self.sources().items()):
            uris = set(source.members or (source.uri,))
            if uris & taken:
                losers.append(identity)
            else:
                taken |= uris
        self.replace(losers)
        return bool(losers)

    def drop_void(self) -> None:
        """Delete what replaced files left, late writers' files included."""
        void = self.void()
        if not void:
            return
        for folder in (DATA, REJECTS, f"{OURS}/commits"):
            for name in self.store.sizes(folder):
                match = _SHARD.fullmatch(name.rpartition(".")[0])
                if match and match[1] in void:
                    self.store.delete(f"{folder}/{name}")

    # -- the commits

    def done(self) -> set[str]:
        """Names of the finished shards: those with both a commit record and a file."""
        files = self.store.sizes(DATA)
        records = self.store.sizes(f"{OURS}/commits")
        return {n.removesuffix(".json") for n in records if n.removesuffix(".json") + ".parquet" in files}

    def commits(self, names: Iterable[str]) -> dict[str, Commit]:
        """The records of finished shards."""
        names = list(names)
        records = self.store.read_many([f"{OURS}/commits/{name}.json" for name in names])
        return {name: Commit(**json.loads(record)) for name, record in zip(names, records, strict=True)}

    def find(self, name: str) -> Commit | None:
        """The record of a shard if it is finished."""
        try:
            record = json.loads(self.store.read(f"{OURS}/commits/{name}.json"))
        except FileNotFoundError:
            return None
        return Commit(**record) if self.store.exists(f"{DATA}/{name}.parquet") else None

    def commit(self, name: str, data: pa.Buffer, rejects: pa.Buffer | None, counts: dict[str, Any]) -> Commit:
        """Publish a shard: rejects, then vectors, then the record that makes it count.

        Raises:
            Replaced: the shard is not wanted any more; nothing of it is left behind.
            OSError: the folder cannot be written.
        """
        self._check_wanted(name)
        digest = hashlib.sha256(data).hexdigest()
        record = Commit(bytes=data.size, sha256=digest, **counts)
        if rejects is not None:
            self.store.write(f"{REJECTS}/{name}.parquet", rejects, owner=self.owner)
        self.store.write(f"{DATA}/{name}.parquet", data, owner=self.owner)
        other = self.find(name)
        if other and other.sha256 != digest:
            # Another worker on other hardware was faster. Its file may have landed after ours: put ours last.
            self.store.write(f"{DATA}/{name}.parquet", data, owner=self.owner)
        self.store.write(f"{OURS}/commits/{name}.json", _canonical(vars(record)), owner=self.owner)
        # A run that replaces the input file voids it first and deletes afterwards, so looking again here leaves no gap.
        try:
            self._check_wanted(name)
        except Replaced:
            for file in (
                f"{DATA}/{name}.parquet",
                f"{REJECTS}/{name}.parquet",
                f"{OURS}/commits/{name}.json",
            ):
                self.store.delete(file)
            raise
        return record

    def _check_wanted(self, name: str) -> None:
        identity = _SHARD.fullmatch(name)[1]
        if not self.job_file:
            self.job()
        # another job in the same place, after the folder was deleted, has shards of the same names
        if self._job_files() == [self.job_file] and not self.store.exists(f"{OURS}/replaced/{identity}"):
            return
        raise Replaced(
            f"{name} is no longer part of {self.where}: another run replaced its input file or the folder"
        )


def _canonical(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, indent=1).encode()
