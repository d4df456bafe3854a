"""Hosts with addresses of their own on one machine: network namespaces joined by a switch, to be killed and cut off.

All share the file system, as nodes share a network drive. Nothing is added to the machine's own network: the switch, a
bridge, has a namespace, too, and everything in a namespace goes with it.
"""

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

import psutil

REPO = Path(__file__).parents[2]
_OURS = re.compile(r"raybert(\d+)-\d+-\w+")
_NUMBERS = itertools.count()
_STORE_BYTES = 100 << 20
GCS_PORT = 6379  # no host sees the ports of another
_QUIET = {"RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1"}


def missing() -> str:
    """Why there can be no such hosts here; empty where there can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    for tool in ("ip", "nsenter"):
        if not shutil.which(tool):
            return f"no `{tool}` (Debian: iproute2, util-linux)"
    try:
        with Hosts(1):
            return ""
    except subprocess.CalledProcessError as error:
        return f"the kernel refuses: {error.stderr.strip()}"


class Host:
    """One of them. `address` is what the others reach it by, `folder` for Ray's temporary files."""

    def __init__(self, name: str, address: str, port: str, folder: Path) -> None:
        self.name, self.address, self.port, self.folder = name, address, port, folder

    def start(
        self, command: Sequence[str], out: IO[str] | None = None, **environment: str
    ) -> subprocess.Popen[str]:
        """Start a process on this host. All its lines go to the file `out`, else they are piped."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        return subprocess.Popen(
            ["nsenter", f"--net=/run/netns/{self.name}", *command],
            cwd=REPO,
            env={**clean, **_QUIET, "PYTHONPATH": str(REPO), **environment},
            stdin=subprocess.PIPE,
            stdout=out or subprocess.PIPE,
            stderr=subprocess.STDOUT if out else subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def python(
        self, *arguments: str, out: IO[str] | None = None, **environment: str
    ) -> subprocess.Popen[str]:
        """Start this Python with `arguments`."""
        return self.start([sys.executable, *arguments], out, **environment)

    def pids(self) -> list[int]:
        """Of all processes on this host."""
        return [int(pid) for pid in _ip("netns", "pids", self.name).split()]

    def processes(self, words: str) -> list[psutil.Process]:
        """Those with `words` in their command."""
        found = []
        for pid in self.pids():
            with contextlib.suppress(psutil.Error):
                process = psutil.Process(pid)
                if words in " ".join(process.cmdline()):
                    found.append(process)
        return found


class Node:
    """A `ray start --block` on a host."""

    def __init__(self, host: Host, command: Sequence[str], environment: dict[str, str], log: str) -> None:
        self.host, self.log = host, host.folder / log
        self._command, self._environment = command, environment
        self._starts = 0
        self._start()

    def _start(self) -> None:
        self._starts += 1
        with self.log.open("w") as out:
            self.process = self.host.start(self._command, out, **self._environment)

    def is_up(self, tries: int) -> bool:
        """Whether it has joined; what gave up is started again."""
        if self.process.poll() is not None and self._starts < tries:
            self._start()
        return "Ray runtime started" in self.log.read_text() and self.process.poll() is None


class Hosts:
    """A switch and `count` hosts, for a `with` statement. Leaving it ends their processes and removes everything.

    Raises subprocess.CalledProcessError where the kernel does not allow it.
    """

    def __init__(self, count: int) -> None:
        _sweep()
        # short: the paths of sockets have 107 characters at most
        self.folder = Path(tempfile.mkdtemp(prefix="rb"))
        self._nodes: list[Node] = []
        self._namespaces: list[str] = []
        self.hosts: list[Host] = []
        self._prefix = f"raybert{os.getpid()}-{next(_NUMBERS)}"
        self._switch = f"{self._prefix}-switch"
        try:
            self._add_namespace(self._switch)
            _ip("-n", self._switch, "link", "add", "switch", "type", "bridge")
            _ip("-n", self._switch, "link", "set", "switch", "up")
            for _ in range(count):
                self.add()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Hosts":
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __getitem__(self, number: int) -> Host:
        return self.hosts[number]

    def add(self) -> Host:
        """One more host, connected."""
        number = len(self.hosts) + 1
        name, port = f"{self._prefix}-{number}", f"port{number}"
        folder = self.folder / str(number)
        folder.mkdir()
        host = Host(name, f"10.77.0.{number}", port, folder)
        self._add_namespace(name)
        _ip("link", "add", "eth0", "netns", name, "type", "veth", "peer", "name", port, "netns", self._switch)
        _ip("-n", name, "address", "add", f"{host.address}/24", "dev", "eth0")
        _ip("-n", name, "link", "set", "eth0", "up")
        _ip("-n", self._switch, "link", "set", port, "master", "switch", "up")
        self.hosts.append(host)
        return host

    @property
    def address(self) -> str:
        """Of the cluster whose head is the first host."""
        return f"{self.hosts[0].address}:{GCS_PORT}"

    def start_head(self, cpus: int = 0, *more: str, **environment: str) -> None:
        """Start a Ray head on the first host."""
        head = ["--head", f"--port={GCS_PORT}", "--include-dashboard=false", *more]
        self._start_ray(self.hosts[0], cpus, head, environment)

    def start_node(self, host: Host, cpus: int, *more: str, **environment: str) -> None:
        """Join `host` to the cluster."""
        self._start_ray(host, cpus, [f"--address={self.address}", *more], environment)

    def bring_up(self) -> None:
        """Start what does not run: a head with one CPU on the first host, nodes of two on the others. Cables are mended."""
        if not self.runs_ray(self.hosts[0]):
            for host in self.hosts:
                self.kill(host)  # nodes of the head that was
            self.start_head(cpus=1)
            self.ready()
        for host in self.hosts[1:]:
            self.mend(host)
            if not self.runs_ray(host):
                self.kill(host)
                self.start_node(host, cpus=2)
        self.ready()

    def ready(self) -> None:
        """Wait for what was started. Ray gives a node 30 s to come up, so on a busy machine it may take another try."""
        self._until(lambda: all(node.is_up(tries=4) for node in self._nodes), "Ray does not start", 240)

    def runs_ray(self, host: Host) -> bool:
        """Whether a node that was started there still runs."""
        return any(node.host is host and node.process.poll() is None for node in self._nodes)

    def kill(self, host: Host, spare: Sequence[int] = ()) -> None:
        """SIGKILL for all on `host` but the processes `spare`: the machine is gone, its cable not."""
        self._until(lambda: not _kill(set(host.pids()) - set(spare)), f"processes of {host.name} do not die")
        for node in [node for node in self._nodes if node.host is host]:
            node.process.wait(30)
            self._nodes.remove(node)

    def cut(self, host: Host) -> None:
        """Pull the cable out: what was sent is lost, nobody is told."""
        _ip("-n", self._switch, "link", "set", host.port, "down")

    def mend(self, host: Host) -> None:
        """Put the cable back."""
        _ip("-n", self._switch, "link", "set", host.port, "up")

    def close(self) -> None:
        """End all processes, remove hosts, links and files."""
        for host in self.hosts:
            self.kill(host)
        for name in self._namespaces:
            _ip("netns", "delete", name)
        self._namespaces, self.hosts = [], []
        shutil.rmtree(self.folder, ignore_errors=True)

    def _add_namespace(self, name: str) -> None:
        _ip("netns", "add", name)
        self._namespaces.append(name)
        _ip("-n", name, "link", "set", "lo", "up")

    def _start_ray(self, host: Host, cpus: int, more: Sequence[str], environment: dict[str, str]) -> None:
        ray = str(Path(sys.executable).with_name("ray"))
        fixed = [f"--node-ip-address={host.address}", f"--num-cpus={cpus}", "--disable-usage-stats"]
        fixed += [f"--object-store-memory={_STORE_BYTES}", f"--temp-dir={host.folder}"]
        command = [ray, "start", "--block", *fixed, *more]
        self._nodes.append(Node(host, command, environment, f"ray{len(self._nodes)}.log"))

    def _until(self, condition: Callable[[], bool], why: str, seconds: float = 30) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"{why}; {self._last_lines()}"
            time.sleep(0.1)

    def _last_lines(self) -> str:
        return "\n".join(node.log.read_text()[-2000:] for node in self._nodes)


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout


def _kill(pids: set[int]) -> bool:
    """Whether there were any."""
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    return bool(pids)


def _sweep() -> None:
    """Remove what test runs left that were killed."""
    for line in _ip("netns", "list").splitlines():
        name = line.split()[0]
        owner = _OURS.fullmatch(name)
        if owner and not psutil.pid_exists(int(owner[1])):
            _kill({int(pid) for pid in _ip("netns", "pids", name).split()})
            _ip("netns", "delete", name)
