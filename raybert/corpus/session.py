"""A Ray to run on: the cluster we are in, or a private one on this machine."""

import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil

from raybert.corpus.lastword import last_word

# Read by Ray at import or start: no usage reports, no C++ log lines and no progress bars of its own on our terminal.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # the raylet's notices about dead workers, which our report covers
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

# Reading runs ahead of the encoders until Ray's store is filled to its share; Ray would take 30 % of all memory.
_STORE_BYTES_A_CORE = 512 << 20

_PRIVATE = "raybert-private"  # a label of the node


def brings_own_ray() -> bool:
    """Whether `ray_session` will start a private Ray here."""
    ray = sys.modules.get("ray")
    return not os.environ.get("RAY_ADDRESS") and not (ray and ray.is_initialized())


def is_private() -> bool:
    """Whether the Ray we are connected to was started by `ray_session`: nobody else is on it, and it does not grow."""
    import ray

    return any(_PRIVATE in (node.get("Labels") or {}) for node in ray.nodes())


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _store_bytes() -> int:
    third = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * 3 // 10
    return min(_STORE_BYTES_A_CORE * cores(), third)


@contextlib.contextmanager
def ray_session() -> Iterator[None]:
    """Connected to Ray: to what is already connected, else to RAY_ADDRESS, else to a private Ray that ends with us.

    Raises RuntimeError when the cluster of RAY_ADDRESS does not answer.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)  # set up by the import
    if ray.is_initialized():
        yield
        return
    address = os.environ.get("RAY_ADDRESS")
    where = f"the Ray cluster at RAY_ADDRESS={address}" if address else "the private Ray on this machine"
    quiet = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}
    try:
        if address:
            _check_address(address)
            with _nothing_on_stderr():  # Ray announces there that it will be quiet
                ray.init(address=address, **quiet)
        else:
            _start_private(quiet)
    except Exception as error:  # Ray raises a bare one where a node does not come up in time
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise RuntimeError(f"cannot use {where}: {why}") from error
    try:
        with _sigterm_stops(), last_word(where):
            yield
    finally:
        ray.shutdown()


def _start_private(quiet: dict[str, Any]) -> None:
    """A Ray of our own. Ray gives its processes 30 s to come up; on a busy machine they get a second chance, when what
    they read is in memory."""
    import ray

    before = set(psutil.Process().children(recursive=True))
    for last in (False, True):
        try:
            with _nothing_on_stderr():
                # One CPU more than there are: reading and tokenizing always find a slot beside the encoders.
                ray.init(
                    address="local",
                    num_cpus=cores() + 1,
                    object_store_memory=_store_bytes(),
                    include_dashboard=False,
                    labels={_PRIVATE: "true"},
                    **quiet,
                )
            return
        except Exception as error:
            if last or "timed out" not in str(error):
                raise
        print("Ray did not start in time on this busy machine; once more", file=sys.stderr)
        _end_processes_of_ray(set(psutil.Process().children(recursive=True)) - before)


def _end_processes_of_ray(processes: set[psutil.Process]) -> None:
    """Those of Ray among them: another thread may have begun some of its own meanwhile."""
    import ray

    installed = str(Path(ray.__file__).parent)
    for process in processes:
        with contextlib.suppress(psutil.Error):
            if installed in " ".join(process.cmdline()):
                process.kill()


@contextlib.contextmanager
def _sigterm_stops() -> Iterator[None]:
    """SIGTERM unwinds the run as Ctrl-C does, so that workers are stopped and temporary files removed."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


class Terminated(KeyboardInterrupt):
    """SIGTERM came."""


def terminate(signum: int, frame: Any) -> None:
    """Signal handler: unwind."""
    raise Terminated


def _check_address(address: str) -> None:
    """Raise ConnectionError at once where ray.init would try for minutes."""
    host, _, port = address.rpartition(":")
    if "://" not in address and host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


@contextlib.contextmanager
def _nothing_on_stderr() -> Iterator[None]:
    """For C++ code, which writes to the file descriptor. What goes wrong is raised as an exception all the same."""
    sys.stderr.flush()
    kept = os.dup(2)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def cluster_map(function: Callable[[Any], Any], items: list[Any]) -> list[Any]:
    """Map over the cluster, one CPU a call, results in order."""
    import ray

    remote = ray.remote(num_cpus=1, max_retries=3)(_call)
    try:
        return ray.get([remote.remote(function, item) for item in items])
    except ray.exceptions.RayTaskError as error:
        raise (error.cause if isinstance(error.cause, ValueError) else error) from None


def _call(function: Callable[[Any], Any], item: Any) -> Any:
    return function(item)


def drivers_node() -> Any:
    """A scheduling strategy for an actor that must outlast every worker node: it lives on the driver's."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
