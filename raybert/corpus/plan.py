"""From settings to the list of shards to do: what is new, what changed, what is finished."""

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raybert.config import DataSettings, OutputSettings
from raybert.corpus.filesystems import public_uri, resolve
from raybert.corpus.ledger import Ledger, Source, source_id
from raybert.corpus.readers import Scan, Shard, check_columns, scan
from raybert.corpus.sources import File, digest, discover, member_uris
from raybert.corpus.texts import wanted_columns
from raybert.corpus.vectors import RESERVED_COLUMNS

# Bytes of text in a shard: at most _MOST, less in a small corpus, so that it has some _PIECES of them and all workers
# end at about the same time. The first file begins with a shard of _FIRST, so that something is finished soon.
_FIRST, _LEAST, _MOST, _PIECES = 32 << 10, 128 << 10, 64 << 20, 64

Mapper = Callable[[Callable[[Any], Any], list[Any]], Iterable[Any]]


@dataclass(frozen=True)
class Plan:
    """Everything a run needs to know of its input."""

    sources: tuple[Source, ...]
    files: dict[str, File]
    added: tuple[Source, ...]
    void: tuple[str, ...]
    types: dict[str, pa.DataType]
    kept: tuple[str, ...]
    carried: dict[str, str]
    cut: dict[str, Any]  # how files become shards: `first` (uri) and `bytes` of the corpus when the job began

    @property
    def rows(self) -> int:
        """Rows of the whole corpus."""
        return sum(source.rows for source in self.sources)

    def shards(self) -> Mapping[str, tuple[Source, Shard]]:
        """Every shard by the name of its output, in the order of the corpus."""
        return self._shards

    @cached_property
    def _shards(self) -> dict[str, tuple[Source, Shard]]:
        return {source.name(shard): (source, shard) for source in self.sources for shard in source.shards}


def in_threads(function: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    """Map on this machine; reading footers and digests waits for storage most of the time."""
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(function, items))


def make_plan(
    data: DataSettings,
    output: OutputSettings,
    ledger: Ledger,
    job: dict[str, Any] | None,
    *,
    mapper: Mapper = in_threads,
) -> Plan:
    """Compare the corpus with what the output folder knows. Writes nothing.

    `mapper` runs the scan of new files, so that it can be spread over a cluster.

    Raises:
        ValueError: no input, a missing column, or an input file that changed or vanished under `on_change=refuse`.
    """
    planned = {source.uri: source for source in ledger.sources().values()}
    known = [source.members for source in planned.values() if source.members]
    files = {file.uri: file for file in discover(data.paths, data.format, known=known)}
    _refuse_own_output(data.paths, files, ledger.path)
    digests = dict(zip(files, in_threads(digest, list(files.values())), strict=True))
    changed = [
        u for u, s in planned.items() if u in files and (s.size, s.digest) != (files[u].size, digests[u])
    ]
    gone = [uri for uri in planned if uri not in files]
    if (changed or gone) and output.on_change == "refuse":
        raise ValueError(_refusal(ledger.where, changed, gone))
    void = tuple(planned[uri].id for uri in (*changed, *gone))
    new = [file for uri, file in files.items() if uri not in planned or uri in changed]
    stays = [source for source in planned.values() if source.id not in void]
    dead = ledger.void() | set(void)

    # Kept with the job: the cut of a file may not depend on what else a driver happens to see, or two would disagree.
    fresh = {"first": new[0].uri, "bytes": sum(file.size for file in new)} if new else {}
    cut = fresh if job is None else job.get("cut", {})
    scans = list(mapper(_Scan(data, output.rows_per_shard, cut), new))
    kept, types = _columns(data, job, scans)
    for file, found in zip(new, scans, strict=True):
        check_columns(file, found, wanted_columns(data, kept))
    if data.id and pa.types.is_nested(types.get(data.id, pa.string())):
        raise ValueError(f"data.id: column {data.id!r} holds {types[data.id]}, which is no id")
    carried = job["carried"] if job else _carried(new)
    added = [
        Source(
            source_id(file.uri, file.size, digests[file.uri], dead),
            file.uri,
            file.size,
            digests[file.uri],
            file.format,
            found.shards,
            member_uris(file),
        )
        for file, found in zip(new, scans, strict=True)
    ]
    added = _first_rows(added, data.limit, sum(source.rows for source in stays))
    sources = tuple(sorted([*stays, *added], key=lambda source: source.uri))
    return Plan(sources, files, tuple(added), void, types, tuple(kept), carried, cut)


@dataclass(frozen=True)
class _Scan:
    """`scan` with its settings; a class because it travels to other machines."""

    data: DataSettings
    rows_per_shard: int
    cut: dict[str, Any]

    def __call__(self, file: File) -> Scan:
        corpus = max(self.cut.get("bytes", _MOST * _PIECES), file.size)
        return scan(
            file,
            rows_per_shard=self.rows_per_shard,
            max_bytes=min(_MOST, max(_LEAST, corpus // _PIECES)),
            first_bytes=_FIRST if self.cut.get("first") == file.uri else None,
            # what is kept counts for the size of a shard as well
            text_columns=wanted_columns(self.data, [] if self.data.columns == ["*"] else self.data.columns),
            max_chars=self.data.max_chars,
        )


def _columns(
    data: DataSettings, job: dict[str, Any] | None, scans: list[Scan]
) -> tuple[list[str], dict[str, pa.DataType]]:
    """Kept columns and types: those of the first file ever planned, so that all output files have one schema."""
    if job is not None:
        types = {name: type_from(text) for name, text in job["types"].items()}
        return job["kept"], types
    if not scans:
        return [], {}
    first = next((found for found in scans if found.rows), scans[0])
    wanted = first.columns if data.columns == ["*"] else data.columns
    # `id` as the id is not kept a second time
    kept = [name for name in wanted if (name, data.id) != ("id", "id")]
    _refuse_clashes(kept)
    names = wanted_columns(data, kept)
    types = {name: first.types.get(name, pa.string()) for name in names}
    return kept, types


def _refuse_clashes(kept: list[str]) -> None:
    clash = next((name for name in kept if name in RESERVED_COLUMNS or kept.count(name) > 1), None)
    if clash:
        hint = "; data.id=id makes it the id of the output" if clash == "id" else ""
        raise ValueError(
            f"data.columns: {clash!r} is a column of ours or named twice; name the columns to keep without it{hint}"
        )


def _carried(files: list[File]) -> dict[str, str]:
    """What pandas and datasets noted in the first Parquet file about its columns; handed on untouched."""
    first = next((file for file in files if file.format == "parquet"), None)
    if first is None:
        return {}
    fs, path = resolve(first.path)
    metadata = pq.read_schema(path, filesystem=fs).metadata or {}
    return {key.decode(): metadata[key].decode() for key in (b"huggingface", b"pandas") if key in metadata}


def _refuse_own_output(paths: list[str], files: Iterable[str], path: str) -> None:
    """The output may not lie where the next run would take it for input."""
    own = _real(path) + "/"
    inside = next((uri for uri in files if _real(uri).startswith(own)), None)
    # a glob without ** does not look into folders, so docs/*.parquet may have its vectors in docs/vectors
    folders = [_real(p.partition("**")[0]) for p in paths if "**" in p or not any(c in p for c in "*?[")]
    if inside or any(own.startswith(folder + "/") for folder in folders):
        raise ValueError(f"output.path={public_uri(path)} lies in data.path: put it outside")


def _real(path: str) -> str:
    uri = public_uri(path).rstrip("/")
    return uri if "://" in uri else os.path.realpath(uri)


def type_text(kind: pa.DataType) -> str:
    """An Arrow type as text that `type_from` reads back: the hex of an Arrow schema, exact for every type."""
    return pa.schema([("", kind)]).serialize().to_pybytes().hex()


def type_from(text: str) -> pa.DataType:
    return pa.ipc.read_schema(pa.py_buffer(bytes.fromhex(text))).field(0).type


def _first_rows(sources: list[Source], limit: int | None, already: int) -> list[Source]:
    """Cut the plan after `limit` rows."""
    if limit is None:
        return sources
    left, out = max(0, limit - already), []
    for source in sorted(sources, key=lambda source: source.uri):
        shards = []
        for shard in source.shards:
            if left > 0:
                shards.append(replace(shard, end=min(shard.end, shard.start + left)))
                left -= shards[-1].end - shards[-1].start
        out.append(replace(source, shards=tuple(shards)))
    return out


def _refusal(path: str, changed: list[str], gone: list[str]) -> str:
    parts = [
        f"{len(uris)} input file(s) {what} ({', '.join(uris[:3])}{', ...' if len(uris) > 3 else ''})"
        for what, uris in (("changed", changed), ("vanished", gone))
        if uris
    ]
    return (
        f"{' and '.join(parts)} since {path} was written; nothing was done. "
        "output.on_change=replace redoes changed files and drops the vectors of vanished ones"
    )
