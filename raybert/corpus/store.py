"""A folder, local or in an object store, whose files appear whole or not at all."""

import contextlib
import os
import uuid
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
from pyarrow import fs as pafs

from raybert.corpus.filesystems import is_local, resolve

_TMP = "_raybert/tmp"
# Small files that one thread reads in one go: handing them out singly takes longer than reading.
_TOGETHER = 32
# A put to these becomes visible when it is complete; everything else needs a rename.
_OBJECT_STORES = ("s3", "gcs", "abfs", "gs", "az", "memory", "hf")


class Store:
    """Files below one folder, named by `/`-separated relative paths. Picklable."""

    def __init__(self, path: str) -> None:
        self.fs, self.root = resolve(path)
        self.local = is_local(self.fs)
        kind = self.fs.type_name.rpartition("+")[2].strip("()'\" ").split(",")[0].strip("'\"")
        self._publishes_on_close = not self.local and kind in _OBJECT_STORES

    def path(self, name: str) -> str:
        """Where `name` lies, in the terms of `self.fs`."""
        return f"{self.root.rstrip('/')}/{name}"

    def read(self, name: str) -> bytes:
        """The whole file. Raises FileNotFoundError."""
        with self.fs.open_input_file(self.path(name)) as file:
            return file.read()

    def read_many(self, names: list[str]) -> list[bytes]:
        """Whole files, in the order of `names`; object stores answer slowly, so many at a time."""
        groups = [names[i : i + _TOGETHER] for i in range(0, len(names), _TOGETHER)]
        with ThreadPoolExecutor(16 if self.local else 64) as pool:
            return [
                data for group in pool.map(lambda some: [*map(self.read, some)], groups) for data in group
            ]

    def exists(self, name: str) -> bool:
        """Whether `name` is there."""
        return self.fs.get_file_info(self.path(name)).type == pafs.FileType.File

    def sizes(self, folder: str) -> dict[str, int]:
        """Name -> bytes of every file directly below `folder`; empty if there is none."""
        selector = pafs.FileSelector(self.path(folder), allow_not_found=True)
        infos = self.fs.get_file_info(selector)
        return {info.base_name: info.size for info in infos if info.type == pafs.FileType.File}

    def write(self, name: str, data: bytes | pa.Buffer, *, owner: str = "") -> None:
        """Make `name` hold `data`: a reader sees the old file or the new one, also after a crash.

        `owner` marks the temporary file, so that `sweep` can tell whose it was. Raises OSError.
        """
        if self._publishes_on_close:
            with self.fs.open_output_stream(self.path(name)) as out:
                out.write(data)
            return
        try:
            self._write_aside_and_rename(name, data, owner)
        except FileNotFoundError:  # a finished run swept the temporary folder meanwhile
            self._write_aside_and_rename(name, data, owner)

    def delete(self, name: str) -> None:
        """Remove `name` if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.fs.delete_file(self.path(name))

    def sweep(self, owner: str = "") -> None:
        """Remove temporary files that `owner` (default: anybody) left behind."""
        for name in self.sizes(_TMP):
            if name.startswith(owner):
                self.delete(f"{_TMP}/{name}")

    def leave_nothing_aside(self) -> None:
        """Remove the folder of temporary files, where nothing is in it: for folders that are not raybert's own."""
        if self.local:
            with contextlib.suppress(OSError):
                os.rmdir(self.path(_TMP))
                os.rmdir(self.path(_TMP.partition("/")[0]))

    def _write_aside_and_rename(self, name: str, data: bytes | pa.Buffer, owner: str) -> None:
        aside = f"{_TMP}/{owner}-{uuid.uuid4().hex}"
        target = self.path(name)
        if not self.local:
            for folder in (self.path(_TMP), target.rpartition("/")[0]):
                self.fs.create_dir(folder, recursive=True)
            with self.fs.open_output_stream(self.path(aside)) as out:
                out.write(data)
            self.fs.move(self.path(aside), target)
            return
        os.makedirs(self.path(_TMP), exist_ok=True)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        try:
            with open(self.path(aside), "xb") as out:
                out.write(data)
                out.flush()
                os.fsync(out.fileno())
            os.replace(self.path(aside), target)
        except BaseException:
            self.delete(aside)
            raise
        _sync_folder(os.path.dirname(target))


def _sync_folder(folder: str) -> None:
    """A rename survives a power cut only once its folder is on disk."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
