"""The input files of a corpus: found by path, folder or glob, each with a format and a stable identity."""

import hashlib
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pyarrow as pa

from raybert.corpus.filesystems import public_uri, resolve
from raybert.corpus.listing import Entry, find

FORMATS = ("auto", "parquet", "jsonl", "csv", "tsv", "text", "documents", "arrow", "datasets")
SUFFIXES = {
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json-lines": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".txt": "text",
    ".text": "text",
    ".log": "text",
    ".arrow": "arrow",
    ".ipc": "arrow",
    ".feather": "arrow",
}
COMPRESSIONS = {".gz": "gzip", ".gzip": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2"}
LINE_FORMATS = ("jsonl", "csv", "tsv", "text")
_GROUP_BYTES = 64 << 20
_WHOLE = 1 << 20
_SAMPLE = 64 << 10


@dataclass(frozen=True)
class File:
    """One input file, or a group of small ones. Picklable.

    Attributes:
        uri: public identity, without credentials; see `public_uri`
        path: what `resolve` opens in any process; may hold options or credentials, so never print it
        size: bytes on storage
        format: one of `FORMATS` except "auto" and "datasets"
        members: (path, size) of every file of a group of documents, else empty
    """

    uri: str
    path: str
    size: int
    format: str
    members: tuple[tuple[str, int], ...] = ()


def discover(
    paths: str | list[str], format: str = "auto", *, group: int = 1000, known: Iterable[Sequence[str]] = ()
) -> list[File]:
    """All input files behind files, folders and globs, sorted by uri, each once.

    Args:
        format: "auto" goes by suffix and leaves out the other files of a folder. A named format takes the files of a
            folder that have its suffixes, or all of them if none has; "documents" takes all.
        group: documents are grouped, at most this many files or 64 MiB together.
        known: uris of the members of earlier groups of documents. These groups stay as they are and come first.

    Raises:
        ValueError: nothing there, nothing of a known format, or a named file of unknown format.
    """
    if format not in FORMATS:
        raise ValueError(f"data.format={format!r} must be one of {', '.join(FORMATS)}")
    paths = [paths] if isinstance(paths, str) else list(paths)
    if not any(paths):
        raise ValueError("data.path is empty: name a file, a folder or a glob")
    chosen: dict[str, tuple[Entry, str]] = {}
    for path in paths:
        found = find(path)
        if not found:
            raise ValueError(f"data.path: nothing is at {public_uri(path)}")
        for entry, kind in _choose(path, found, format):
            chosen.setdefault(entry.uri, (entry, kind))
    ordered = [chosen[uri] for uri in sorted(chosen)]
    if format == "documents":
        return _groups([entry for entry, _ in ordered], group, known)
    return [File(entry.uri, entry.path, entry.size, kind) for entry, kind in ordered]


def format_of(name: str) -> str | None:
    """The format that a file name's suffix stands for, or None. Only line formats may be compressed as a whole."""
    stem, compressed = _without_compression(name.lower())
    kind = next((kind for suffix, kind in SUFFIXES.items() if stem.endswith(suffix)), None)
    return None if compressed and kind not in LINE_FORMATS else kind


def compression_of(name: str) -> str | None:
    """How a file is compressed as a whole, by its suffix: gzip, zstd, bz2 or None."""
    return _without_compression(name.lower())[1]


def member_uris(file: File) -> tuple[str, ...]:
    """Public identities of a group's documents, in order; empty for a single file."""
    return tuple(public_uri(path) for path, _ in file.members)


def digest(file: File) -> str:
    """A cheap fingerprint of the content, 32 hex digits: it changes with the size, a Parquet footer or a sampled byte.

    Files up to 1 MiB are read whole; of larger ones the head, the tail and six samples between, 64 KiB each.
    """
    total = hashlib.sha256()
    if not file.members:
        total.update(_fingerprint(file.path))
        return total.hexdigest()[:32]
    with ThreadPoolExecutor(16) as pool:  # many small files: the store's latency is what counts
        for part in pool.map(_fingerprint, [path for path, _ in file.members]):
            total.update(part)
    return total.hexdigest()[:32]


def _fingerprint(path: str) -> bytes:
    fs, inner = resolve(path)
    with fs.open_input_file(inner) as source:
        size = source.size()
        state = hashlib.sha256(str(size).encode() + b"\n")
        if size <= _WHOLE:
            state.update(source.read())
            return state.digest()
        for part in range(7):
            state.update(_at(source, size * part // 7, _SAMPLE))
        tail = _SAMPLE
        last = _at(source, size - 8, 8)
        if last[4:] in (b"PAR1", b"PARE"):
            tail = min(size, max(tail, int.from_bytes(last[:4], "little") + 8))
        state.update(_at(source, size - tail, tail))
    return state.digest()


def _at(source: pa.NativeFile, offset: int, length: int) -> bytes:
    source.seek(offset)
    return source.read(length)


def _without_compression(name: str) -> tuple[str, str | None]:
    for suffix, codec in COMPRESSIONS.items():
        if name.endswith(suffix):
            return name.removesuffix(suffix), codec
    return name, None


def _choose(path: str, found: list[Entry], format: str) -> list[tuple[Entry, str]]:
    """Of the files behind one path, those to read, with their formats."""
    if format == "documents":
        return [(entry, format) for entry in found]
    saved, rest = _saved_datasets(found)
    if format == "datasets":
        if not saved:
            raise ValueError(
                f"data.format=datasets: no folder of datasets' save_to_disk at {public_uri(path)}"
            )
        return [(entry, "arrow") for entry in saved]
    chosen = [(entry, "arrow") for entry in saved] if format in ("auto", "arrow") else []
    if format == "auto":
        chosen += [(entry, kind) for entry in rest if (kind := format_of(entry.name))]
        unknown = next((entry for entry in rest if entry.named and not format_of(entry.name)), None)
        if unknown or not chosen:
            raise ValueError(_unknown_suffix(unknown.uri if unknown else public_uri(path), rest))
        return chosen
    named = [(entry, format) for entry in rest if entry.named or format_of(entry.name) == format]
    if not chosen and not named:
        return [(entry, format) for entry in rest]
    return chosen + named


def _unknown_suffix(where: str, found: list[Entry]) -> str:
    seen = sorted({"." + entry.name.rpartition(".")[2] for entry in found if "." in entry.name})[:5]
    return (
        f"data.path: {where}: no file of a known format"
        + (f" (found {', '.join(seen)})" if seen else "")
        + f"; known suffixes: {' '.join(SUFFIXES)} (text ones also with {' '.join(COMPRESSIONS)}), "
        + f"else set data.format to one of {', '.join(FORMATS[1:])}"
    )


def _saved_datasets(found: list[Entry]) -> tuple[list[Entry], list[Entry]]:
    """The Arrow files of folders written by `save_to_disk`, and all other files.

    state.json lists the Arrow files: caches and remains of an earlier save may lie beside them.
    """
    saved: list[Entry] = []
    inside: set[str] = set()
    described = {entry.folder for entry in found if entry.name in ("dataset_info.json", "dataset_dict.json")}
    for state in found:
        if state.name == "state.json" and state.folder in described:
            fs, inner = resolve(state.path)
            with fs.open_input_file(inner) as source:
                wanted = {item["filename"] for item in json.loads(source.read())["_data_files"]}
            saved += [entry for entry in found if entry.folder == state.folder and entry.name in wanted]
            inside.add(state.folder)
    rest = [
        entry
        for entry in found
        if entry.folder not in inside
        and not (entry.folder in described and entry.name.startswith("dataset_"))
    ]
    return saved, rest


def _groups(entries: list[Entry], group: int, known: Iterable[Sequence[str]]) -> list[File]:
    """Documents in groups: the known ones with what is left of them, then the new ones in order."""
    by_uri = {entry.uri: entry for entry in entries}
    files = []
    for uris in known:
        members = [by_uri.pop(uri) for uri in uris if uri in by_uri]
        if members:
            files.append(_as_group(members))
    fresh: list[Entry] = []
    size = 0
    for entry in by_uri.values():
        if fresh and (len(fresh) >= group or size + entry.size > _GROUP_BYTES):
            files.append(_as_group(fresh))
            fresh, size = [], 0
        fresh.append(entry)
        size += entry.size
    return [*files, _as_group(fresh)] if fresh else files


def _as_group(members: list[Entry]) -> File:
    more = f"+{len(members) - 1} more" if len(members) > 1 else ""
    paths = tuple((entry.path, entry.size) for entry in members)
    return File(
        members[0].uri + more, members[0].path, sum(entry.size for entry in members), "documents", paths
    )
