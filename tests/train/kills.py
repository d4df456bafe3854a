"""SIGKILL for a worker of a run on Ray, while it trains in this process."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from raybert.train.checkpoint import Checkpoints


def wait_for_step(output: Path, step: int) -> None:
    """Until the run in `output` has a checkpoint of this step or a later one."""
    checkpoints, deadline = Checkpoints(output / "checkpoints"), time.monotonic() + 300
    while max(checkpoints.steps(), default=0) < step:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@contextmanager
def a_worker_killed(output: Path, step: int) -> Iterator[None]:
    """Of the run that is made in its body, after this step. One must have been there to be killed."""
    killed: list[int] = []

    def kill() -> None:
        wait_for_step(output, step)
        for process in psutil.Process().children(recursive=True):
            if "RayTrainWorker" in " ".join(process.cmdline()):
                process.kill()
                killed.append(process.pid)
                return

    thread = threading.Thread(target=kill)
    thread.start()
    yield
    thread.join()
    assert len(killed) == 1
