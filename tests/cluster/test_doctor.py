"""A cluster that is broken in many ways at once, and a healthy one: every break is named, with its node and a fix.

Nodes are raylets on this machine, two of them in mount namespaces. In one, disks of its own hide the shared folder and the
model; in the other, raybert is another one, the output cannot be written, and the clock is off.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.cluster.processes import REPO, free_ports, write_corpus

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

RAY = Path(sys.executable).parent / "ray"
CLOCK = "import time\n_now = time.time\ntime.time = lambda: _now() + 400\n"


def namespaces() -> bool:
    """Whether a process may have mounts of its own here."""
    return subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


class Nodes:
    """A head and others, each started by `ray start` in a process group of its own, with other mounts or another path."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.started, self.count = folder, [], 0
        self.port, self.client_port = free_ports(2)
        self.address = f"127.0.0.1:{self.port}"
        self.environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_DISABLE_DASHBOARD": "1"}
        self.environment["PYTHONPATH"] = str(REPO)

    def head(self) -> None:
        """The first."""
        ports = [f"--port={self.port}", f"--ray-client-server-port={self.client_port}"]
        self._start("--head", *ports, "--include-dashboard=false")

    def add(self, *, mounts: str = "", path: str = "") -> None:
        """Another one.

        Args:
            mounts: shell commands that run in a mount namespace of its own before it starts.
            path: goes before PYTHONPATH.
        """
        own = {"PYTHONPATH": os.pathsep.join(filter(None, [path, self.environment["PYTHONPATH"]]))}
        self._start(f"--address={self.address}", mounts=mounts, **own)

    def _start(self, *words: str, mounts: str = "", **own: str) -> None:
        """Once more where it ends: Ray gives a raylet 30 s, which is little on a machine at work."""
        command = f"{RAY} start {' '.join(words)} --num-cpus=1 --temp-dir={self.folder} --block"
        command += f" --node-ip-address=127.0.0.1 --object-store-memory={80 << 20} --disable-usage-stats"
        shell = ["sh", "-c", f"{mounts} exec {command}"]
        self.count += 1
        for _ in range(3):
            with open(self.folder / "nodes.log", "a") as log:
                process = subprocess.Popen(
                    ["unshare", "-m", *shell] if mounts else shell,
                    env={**self.environment, **own},
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            self.started.append(process)
            if self._comes(process):
                return
        pytest.fail((self.folder / "nodes.log").read_text())

    def _comes(self, process: subprocess.Popen) -> bool:
        """Whether the cluster has one more node before its process ends."""
        code = (
            "import ray, sys, time\n"
            f"ray.init({self.address!r}, log_to_driver=False, logging_level='ERROR')\n"
            f"while sum(node['Alive'] for node in ray.nodes()) < {self.count}: time.sleep(0.2)"
        )
        while process.poll() is None:
            waits = subprocess.Popen(
                [sys.executable, "-c", code], env=self.environment, stderr=subprocess.DEVNULL
            )
            while waits.poll() is None and process.poll() is None:
                time.sleep(0.2)
            waits.kill()
            if waits.wait() == 0:
                return True
        return False

    def doctor(self, *words: str) -> tuple[int, list[dict]]:
        """Exit code and findings."""
        done = subprocess.run(
            [sys.executable, "-m", "raybert", "doctor", *words, "format=json", "timeout=240"],
            cwd=REPO,
            env={**self.environment, "RAY_ADDRESS": self.address},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode in (0, 1), done.stdout + done.stderr
        return done.returncode, json.loads(done.stdout)["findings"]

    def stop(self) -> None:
        """End what was started, and what that started."""
        for process in [child for each in self.started for child in family(each.pid)]:
            with contextlib.suppress(psutil.Error):
                process.kill()
        for each in self.started:
            each.wait()


def family(pid: int) -> list[psutil.Process]:
    """A process and all below it."""
    try:
        parent = psutil.Process(pid)
        return [*parent.children(recursive=True), parent]
    except psutil.Error:
        return []


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    # short: the paths of Ray's sockets have little room
    folder = Path("/tmp") / f"doctor{os.getpid()}"
    folder.mkdir()
    made = Nodes(folder)
    try:
        yield made
    finally:
        made.stop()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def words(tmp_path, tiny) -> list[str]:
    write_corpus(tmp_path / "shared/in", 20)
    (tmp_path / "shared/out").mkdir()
    shutil.copytree(tiny, tmp_path / "models/tiny")
    return [
        "embed",
        f"model.name={tmp_path}/models/tiny",
        f"data.path={tmp_path}/shared/in",
        f"output.path={tmp_path}/shared/out",
    ]


def make_other_raybert(folder: Path) -> None:
    """raybert of the same version, but not the same; and a path on which the clock is off."""
    shutil.copytree(REPO / "raybert", folder / "raybert", ignore=shutil.ignore_patterns("__pycache__"))
    with open(folder / "raybert/verify.py", "a") as file:
        file.write("# older\n")
    (folder / "path").mkdir()
    (folder / "path/sitecustomize.py").write_text(CLOCK)


@pytest.mark.skipif(not namespaces(), reason="needs mount namespaces")
def test_every_break_is_named_with_its_node_and_a_fix(nodes, words, tmp_path):
    nodes.head()
    nodes.add()
    code, healthy = nodes.doctor(*words)
    assert code == 0, healthy
    assert {each["check"] for each in healthy if each["state"] == "warn"} <= {"CPUs", "access", "disk"}
    assert not list((tmp_path / "shared/out").iterdir())

    shared, models, old = tmp_path / "shared", tmp_path / "models", tmp_path / "old"
    nodes.add(mounts=f"mount -t tmpfs none {shared}; mount -t tmpfs none {models};")
    make_other_raybert(old)
    locked = f"mount --bind {shared}/out {shared}/out; mount -o remount,bind,ro {shared}/out;"
    nodes.add(mounts=f"{locked} mount --bind {old}/raybert {REPO}/raybert;", path=str(old / "path"))
    code, found = nodes.doctor(*words)
    assert code == 1
    failed = [each for each in found if each["state"] == "fail"]
    assert all(each["fix"] for each in failed)
    by_check: dict[str, list[dict]] = {}
    for each in failed:
        by_check.setdefault(each["check"], []).append(each)
    assert by_check.keys() == {"raybert", "clock", "read", "write", "found"}

    (other,), (clock,), (read,), (lacks,) = (by_check[name] for name in ("raybert", "clock", "read", "found"))
    assert other["found"].startswith("raybert 0.1.0 (code ")
    assert f"of the driver (in {REPO}/raybert)" in other["found"]
    assert clock["nodes"] == other["nodes"]
    assert clock["found"].startswith(("399.", "400."))
    assert str(shared / "in/part0.parquet") in read["found"]
    assert "shared file system" in read["fix"]
    assert lacks["nodes"] == read["nodes"] != other["nodes"]
    elsewhere, refused = sorted(by_check["write"], key=lambda each: "Read-only" in each["found"])
    assert elsewhere["nodes"] == read["nodes"]
    assert "another folder here" in elsewhere["found"]
    assert refused["nodes"] == other["nodes"]
    assert "Read-only file system" in refused["found"]
    assert "for writing" in refused["fix"]
    assert all(len(each["nodes"]) == 1 for each in failed)
    assert not list((shared / "out").iterdir())
