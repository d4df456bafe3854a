"""A model that lies in an object store, brought to this node once, whoever asks first."""

import hashlib
import os
from pathlib import Path

from filelock import FileLock
from pyarrow import fs as pafs

from raybert.corpus.filesystems import is_local, public_uri, resolve


def fetch_model(name: str) -> str:
    """A local folder for `name`: itself unless it is a URL such as s3://bucket/model, which is copied to the cache.

    Hub names pass through: their own cache fetches once per node. The processes of a node wait for one another.
    Raises ValueError when the folder is empty or cannot be read.
    """
    if "://" not in name:
        return name
    fs, root = resolve(name)
    if is_local(fs):
        return root
    try:
        found = fs.get_file_info(pafs.FileSelector(root, recursive=True))
    except OSError as error:
        raise ValueError(f"model.name={public_uri(name)} cannot be read: {error}") from None
    files = sorted((f.path, f.size, f.mtime_ns) for f in found if f.type == pafs.FileType.File)
    if not files:
        raise ValueError(f"model.name={public_uri(name)} holds no files")
    version = hashlib.sha256(repr((public_uri(name), files)).encode()).hexdigest()[:16]
    target = _cache() / version
    with FileLock(str(_cache() / f"{version}.lock")):
        if not target.exists():
            partial = target.with_suffix(".partial")
            pafs.copy_files(
                root, str(partial), source_filesystem=fs, destination_filesystem=pafs.LocalFileSystem()
            )
            os.replace(partial, target)
    return str(target)


def _cache() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "raybert" / "models"
    folder.mkdir(parents=True, exist_ok=True)
    return folder
