"""One driver at a time on the folder of a run: a second one is refused, a dead one's place is taken."""

import contextlib
import json
import os
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raybert.corpus.store import Store

DRIVER = "_raybert/driver.json"
BEAT = 5.0
"""Seconds between two signs of life."""


@contextlib.contextmanager
def alone(store: Store, where: str) -> Iterator[None]:
    """Hold the folder while the body runs.

    A driver on this machine is looked up by its process; of one on another machine two missed signs of life are waited
    for, as clocks cannot be compared. Raises ValueError where another driver lives.
    """
    _refuse_living(store, where)
    own = {
        "host": socket.gethostname(),
        "process": _process(os.getpid()),
        "owner": uuid.uuid4().hex,
        "beat": 0,
    }
    _write(store, own)
    ended = threading.Event()
    thread = threading.Thread(target=_beat, args=(store, own, ended), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if (_read(store) or {}).get("owner") == own["owner"]:
            store.delete(DRIVER)


def _beat(store: Store, own: dict[str, Any], ended: threading.Event) -> None:
    """Show that we live. A store that fails for a moment is no reason to stop a run."""
    while not ended.wait(BEAT):
        own["beat"] += 1
        with contextlib.suppress(OSError):
            _write(store, own)


def _refuse_living(store: Store, where: str) -> None:
    other = _read(store)
    if other is None:
        return
    number, _ = other["process"]
    if other["host"] == socket.gethostname():
        lives = _process(number) == other["process"]
    else:
        print(f"raybert: is the driver on {other['host']} alive? waiting {3 * BEAT:g} s", file=sys.stderr)
        time.sleep(3 * BEAT)
        now = _read(store)
        lives = now is not None and now != other
    if lives:
        raise ValueError(
            f"{where} is trained by process {number} on {other['host']}; wait for it, or stop it to go on here"
        )


def _process(number: int) -> list[int | None]:
    """A process and when it began, in ticks since the machine did: numbers are used again. The time is None if it is dead."""
    try:
        told = Path(f"/proc/{number}/stat").read_text()
    except OSError:
        return [number, None] if number != os.getpid() else [number, 0]
    state, *rest = told.rpartition(")")[2].split()
    return [number, None if state in "ZX" else int(rest[18])]


def _read(store: Store) -> dict[str, Any] | None:
    try:
        return json.loads(store.read(DRIVER))
    except FileNotFoundError:
        return None


def _write(store: Store, own: dict[str, Any]) -> None:
    store.write(DRIVER, json.dumps(own).encode())
