"""Files behind a path: a single file, a folder, or a glob, on any file system."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase

from pyarrow import fs as pafs

from raybert.corpus.filesystems import is_local, public_uri, resolve, split_query

_GLOB = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Entry:
    """A file that was found. `path` opens it again in any process; `uri` names it without credentials.

    `named`: the user wrote this very file, it was not found inside a folder or by a glob.
    """

    path: str
    uri: str
    size: int
    named: bool = False

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.uri.rpartition("/")[2]

    @property
    def folder(self) -> str:
        """The uri without its last part."""
        return self.uri.rpartition("/")[0]


def find(path: str) -> list[Entry]:
    """All files behind `path`, in no particular order.

    Folders are searched recursively. Names that begin with `.` or `_` are skipped in folders, and by a glob unless it
    spells that character out. `**` matches any number of folders. Empty if nothing is there.

    Raises:
        ValueError: a broken link, or a wildcard in a bucket's name.
    """
    fs, inner = resolve(path)
    info = fs.get_file_info(inner)
    if info.type == pafs.FileType.File:
        body, query = split_query(path)
        spelled = inner if is_local(fs) else body + query
        return [Entry(spelled, public_uri(path), _size(fs, info), named=True)]
    if info.type == pafs.FileType.Directory:
        return _entries(path, fs, inner, _below(fs, inner))
    body, query = split_query(path)
    if not _GLOB.search(body):
        return []
    base, patterns = _split_glob(body)
    fs, inner = resolve(base + query)
    found = []
    for info in _glob(fs, inner, patterns):
        found += _below(fs, info.path) if info.type == pafs.FileType.Directory else [info]
    return _entries(base + query, fs, inner, found)


def _split_glob(body: str) -> tuple[str, list[str]]:
    """The folder before the first part with a wildcard, and the parts from there on."""
    scheme, separator, rest = body.rpartition("://")
    parts = rest.split("/")
    first = next(i for i, part in enumerate(parts) if _GLOB.search(part))
    if separator and first == 0 and scheme not in ("file", "memory"):
        raise ValueError(f"{public_uri(body)}: a bucket's name cannot hold a wildcard")
    base = scheme + separator + "/".join(parts[:first])
    if not separator and not base:
        base = "/" if body.startswith("/") else "."
    return base, [part for part in parts[first:] if part]


def _glob(fs: pafs.FileSystem, folder: str, patterns: list[str]) -> Iterator[pafs.FileInfo]:
    """Files and folders that match. One level at a time, so that `/data/*/x` does not walk all of /data."""
    if patterns[0] == "**":
        for info in _list(fs, folder, recursive=True):
            if _matches(_relative(info.path, folder).split("/"), patterns) and (
                info.type != pafs.FileType.Directory or patterns[-1] != "**"
            ):
                yield info
        return
    for info in _list(fs, folder):
        if not _matches([_relative(info.path, folder)], patterns[:1]):
            continue
        if len(patterns) == 1:
            yield info
        elif info.type == pafs.FileType.Directory:
            yield from _glob(fs, info.path, patterns[1:])


def _matches(names: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not names
    if patterns[0] == "**":
        for i in range(len(names) + 1):
            if i and names[i - 1][0] in "._":
                return False
            if _matches(names[i:], patterns[1:]):
                return True
        return False
    if not names or (names[0][0] in "._" and patterns[0][0] != names[0][0]):
        return False
    return fnmatchcase(names[0], patterns[0]) and _matches(names[1:], patterns[1:])


def _below(fs: pafs.FileSystem, folder: str) -> list[pafs.FileInfo]:
    """Every file below a folder, hidden ones left out."""
    return [
        info
        for info in _list(fs, folder, recursive=True)
        if info.type != pafs.FileType.Directory
        and not any(name[0] in "._" for name in _relative(info.path, folder).split("/"))
    ]


def _list(fs: pafs.FileSystem, folder: str, *, recursive: bool = False) -> list[pafs.FileInfo]:
    if is_local(fs):
        return fs.get_file_info(list(_walk(folder, recursive))) if os.path.isdir(folder) else []
    infos = fs.get_file_info(pafs.FileSelector(folder, recursive=recursive, allow_not_found=True))
    # Some stores list the folder itself as an empty file.
    return [info for info in infos if _relative(info.path, folder)]


def _walk(folder: str, recursive: bool, above: tuple[str, ...] = ()) -> Iterator[str]:
    """Paths below a local folder, broken links too. Links are followed, except to a folder they lie in, which would never end."""
    above = (*above, os.path.realpath(folder))
    with os.scandir(folder) as found:
        for item in sorted(found, key=lambda item: item.name):
            yield item.path
            if recursive and item.is_dir() and os.path.realpath(item.path) not in above:
                yield from _walk(item.path, recursive, above)


def _relative(path: str, folder: str) -> str:
    return path.strip("/")[len(folder.strip("/")) :].strip("/")


def _entries(path: str, fs: pafs.FileSystem, inner: str, infos: list[pafs.FileInfo]) -> list[Entry]:
    """Spell what was found below `inner` the way the user spelled `path`, its options included."""
    body, query = split_query(path)
    base = inner if is_local(fs) else body
    entries = []
    for info in infos:
        relative = _relative(info.path, inner)
        whole = f"{base}{relative}" if base.endswith("/") else f"{base}/{relative}"
        if info.type == pafs.FileType.NotFound:
            raise ValueError(f"{public_uri(whole)}: a link to a file that is not there")
        entries.append(Entry(whole + query, public_uri(whole), _size(fs, info)))
    return entries


def _size(fs: pafs.FileSystem, info: pafs.FileInfo) -> int:
    """Bytes; a listing over HTTP does not always tell."""
    if info.size is not None and info.size >= 0:
        return info.size
    with fs.open_input_file(info.path) as source:
        return source.size()
