"""Running the command as processes of its own, and killing them."""

import contextlib
import hashlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from tests.conftest import sentences

REPO = Path(__file__).parent.parent.parent
ENCODER = "EncodeAndCommit"


def write_corpus(folder: Path, rows: int, files: int = 3) -> None:
    """`files` Parquet files with `rows` texts in all."""
    folder.mkdir(parents=True)
    texts = sentences(rows)
    for i in range(files):
        part = texts[i::files]
        table = pa.table({"id": [f"{i}-{j}" for j in range(len(part))], "text": part})
        pq.write_table(table, folder / f"part{i}.parquet", row_group_size=1000)


class Job:
    """One `raybert embed` on a folder, started as often as it takes."""

    def __init__(
        self, model: str, data: str, output: str, rows_per_shard: int = 50, **environment: str
    ) -> None:
        self.output = output
        self.environment = {**os.environ, "RAY_AUTH_MODE": "disabled", **environment}
        self.arguments = [
            f"model.name={model}",
            f"data.path={data}",
            f"output.path={output}",
            f"output.rows_per_shard={rows_per_shard}",
            "data.id=id",
            "workers.cpus=1",
        ]

    def start(self, *more: str) -> subprocess.Popen[str]:
        """Start the command; its session is its own, so that a kill hits nothing else."""
        return subprocess.Popen(
            [sys.executable, "-m", "raybert", "embed", *self.arguments, *more],
            cwd=REPO,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self, *more: str) -> str:
        """To the end; what it printed."""
        process = self.start(*more)
        out, err = process.communicate(timeout=280)
        assert process.returncode == 0, f"exit {process.returncode}\n{out}\n{err}"
        return out

    def commits(self) -> int:
        """Shards finished so far (local folders)."""
        folder = Path(self.output, "_raybert/commits")
        return len(list(folder.iterdir())) if folder.is_dir() else 0

    def hashes(self) -> dict[str, str]:
        """Name -> sha256 of every file of vectors and rejects."""
        files = [*Path(self.output, "data").iterdir(), *Path(self.output).glob("_rejects/*")]
        return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 240) -> bool:
    """Poll until `condition`; False if the process ended first."""
    deadline = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None:
            return False
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.02)
    return True


def free_ports(count: int) -> list[int]:
    """Different ones, that nobody listens on."""
    with contextlib.ExitStack() as stack:
        doors = [stack.enter_context(socket.create_server(("", 0))) for _ in range(count)]
        return [door.getsockname()[1] for door in doors]


def encoders(root: int) -> Iterator[psutil.Process]:
    """Encoder processes below process `root`."""
    for process in psutil.Process(root).children(recursive=True):
        try:
            if ENCODER in " ".join(process.cmdline()):
                yield process
        except psutil.Error:
            continue


def kill_tree(process: subprocess.Popen[str]) -> None:
    """SIGKILL to the driver alone: its Ray must find out by itself."""
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()


def random_moment(rng: random.Random, left: int) -> tuple[int, float]:
    """(commits to wait for, seconds after that) of the next kill; now and then during start-up."""
    return (
        (0, rng.uniform(0.5, 8))
        if rng.random() < 0.3
        else (rng.randint(1, max(1, left)), rng.uniform(0, 0.5))
    )
