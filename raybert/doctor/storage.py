"""What a node sees of the storage: the first file of the corpus, and a folder to write in. Runs on a node."""

import hashlib
import os
import shutil
import time
from typing import Any

from raybert.corpus.filesystems import resolve
from raybert.corpus.listing import find
from raybert.corpus.store import Store

_HEAD = 1 << 16
ASIDE = "_raybert/tmp"
"""Where probes lie: a run that ends well, or verify, takes what is there for left over."""


def first_file(path: str) -> dict[str, Any]:
    """The first file, by name, behind a path, folder or glob: `path` opens it, `uri` names it, and how many there are."""
    try:
        found = find(path)
    except (OSError, ValueError) as error:
        return {"error": _said(error)}
    if not found:
        return {"error": "nothing is there"}
    first = min(found, key=lambda entry: entry.uri)
    return {"path": first.path, "uri": first.uri, "files": len(found), "bytes": sum(e.size for e in found)}


def read_file(path: str) -> dict[str, Any]:
    """Size and a digest of the first 64 KiB."""
    try:
        fs, inner = resolve(path)
        with fs.open_input_file(inner) as file:
            return {"size": file.size(), "head": hashlib.sha256(file.read(_HEAD)).hexdigest()[:16]}
    except (OSError, ValueError) as error:
        return {"error": _said(error)}


def put_token(path: str, name: str) -> dict[str, Any]:
    """Lay down a file for other nodes to see; `made` says whether the folder itself is new."""
    made = _is_new(path)
    try:
        Store(path).write(f"{ASIDE}/{name}", name.encode(), owner=name)
    except (OSError, ValueError) as error:
        clear(path, [name], made=made)
        return {"error": _said(error), "made": made}
    return {"made": made}


def write_and_read(path: str, name: str, token: str | None, patience: float = 5.0) -> dict[str, Any]:
    """Write, list, read and delete a file as a job would, and look for the token of another node.

    Returns `error` with the `step` that failed, or `shared`: whether the token is there (None without a token), and `free`
    bytes of a local disk. Nothing is left behind.
    """
    made, step = _is_new(path), "open"
    try:
        store = Store(path)
        step = "write"
        store.write(f"{ASIDE}/{name}", name.encode(), owner=name)
        step = "read back"
        if store.read(f"{ASIDE}/{name}") != name.encode():
            return {"error": "the content is another", "step": step}
        step = "list"
        if name not in store.sizes(ASIDE):
            return {"error": "the file is not in the list of its folder", "step": step}
        step = "look for a file of the driver"
        shared = _sees(store, token, patience) if token else None
        step = "delete"
        store.fs.delete_file(store.path(f"{ASIDE}/{name}"))
        if store.exists(f"{ASIDE}/{name}"):
            return {"error": "the file is still there", "step": step}
        free = shutil.disk_usage(store.root).free if store.local else None
        return {"shared": shared, "free": free}
    except (OSError, ValueError) as error:
        return {"error": _said(error), "step": step}
    finally:
        clear(path, [name], made=made)


def clear(path: str, names: list[str], *, made: bool) -> None:
    """Remove probes, and the folders that were made for them and are empty."""
    try:
        store = Store(path)
        for name in names:
            store.delete(f"{ASIDE}/{name}")
            store.sweep(name)  # what a write that was cut off left
        store.leave_nothing_aside()
        if made and store.local:
            os.rmdir(store.root)
    except (OSError, ValueError):
        pass  # what cannot be written to has nothing of ours; a folder that others use stays


def _sees(store: Store, token: str, patience: float) -> bool:
    """Network file systems may show a new file a moment later."""
    until = time.monotonic() + patience
    while True:
        if store.exists(f"{ASIDE}/{token}"):
            return store.read(f"{ASIDE}/{token}") == token.encode()
        if time.monotonic() > until:
            return False
        time.sleep(0.5)


def _is_new(path: str) -> bool:
    try:
        store = Store(path)
        return store.local and not os.path.isdir(store.root)
    except (OSError, ValueError):
        return False


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
