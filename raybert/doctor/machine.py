"""What a machine is: versions, CPUs, memory, disks, GPUs. Runs on a node, which may have another raybert or none.

Ray sends this file's code itself, not its name (see `gather`): it uses the standard library alone.
"""

import hashlib
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

PACKAGES = ("ray", "torch", "transformers", "tokenizers", "pyarrow", "numpy", "deepspeed")
_CGROUP = Path("/sys/fs/cgroup")
# in a process of its own: Ray hides the GPUs from those that asked for none
_GPUS = """
import json, torch
found = {"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": [], "nccl": False}
try:
    found["nccl"] = torch.distributed.is_available() and torch.distributed.is_nccl_available()
    for i in range(torch.cuda.device_count()):
        torch.ones(8, device=f"cuda:{i}").sum().item()
        each = torch.cuda.get_device_properties(i)
        bf16 = torch.cuda.get_device_capability(i) >= (8, 0)
        found["gpus"].append({"name": each.name, "memory": each.total_memory, "bfloat16": bf16})
except Exception as error:
    found["error"] = " ".join(str(error).split())[:300]
print(json.dumps(found))
"""


class Probe:
    """The doctor's process on a node. Every answer is a dict of plain values; `error` in it says why there is none."""

    def machine(self, asked):
        """See `examine`."""
        return examine(**asked)

    def now(self):
        """The clock of this node, in seconds."""
        return time.time()

    def listen(self):
        """Open a port on every address, for as long as this process lives."""
        self._door = socket.create_server(("", 0))
        return {"port": self._door.getsockname()[1]}

    def connect(self, address, port, seconds):
        """Whether the address can be reached from here."""
        try:
            socket.create_connection((address, port), timeout=seconds).close()
        except OSError as error:
            return {"error": str(error)}
        return {}

    def call(self, module, function, arguments):
        """What a function of the raybert on this node answers; there may be none, or another one."""
        try:
            return getattr(importlib.import_module(module), function)(*arguments)
        except BaseException as error:
            return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}


def examine(*, gpus=False, ports=(), binds=()):
    """Facts of this machine.

    Args:
        gpus: start torch to look for GPUs, also where no driver shows.
        ports: whose listening addresses are wanted.
        binds: (host, port) pairs that are tried.
    """
    return {
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "raybert": _raybert(),
        "cpus": _cpus(),
        "memory": _memory_limit(),
        "shm": _room("/dev/shm"),
        "temp": {"path": _temp_folder(), **_room(_temp_folder())},
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "compilers": [name for name in (os.environ.get("CC") or "cc", "gcc", "clang") if shutil.which(name)],
        "builders": [name for name in ("g++", "ninja") if shutil.which(name)],
        "bfloat16": sorted(_cpu_flags() & {"amx_bf16", "avx512_bf16"}),
        "gpu": _gpus() if gpus or shutil.which("nvidia-smi") else None,
        "listens": {port: _listening(port) for port in ports},
        "taken": [[host, port, why] for host, port in binds if (why := _bind(host, port))],
    }


def _version(package):
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _raybert():
    """Its version and a digest of its code: two states of one version are not the same."""
    found = importlib.util.find_spec("raybert")
    if found is None or not found.origin:
        return None
    folder = Path(found.origin).parent
    total = hashlib.sha256()
    for file in sorted(each for suffix in ("py", "c") for each in folder.rglob(f"*.{suffix}")):
        total.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    version = re.search(r'__version__ = "([^"]*)"', Path(found.origin).read_text())
    return {
        "version": version[1] if version else "?",
        "digest": total.hexdigest()[:8],
        "folder": str(folder),
    }


def _cpus():
    """CPUs that processes here may use: by affinity, and by the quota of the cgroup."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _read(_CGROUP / "cpu.max").partition(" ")
    if not quota:
        quota = _read(_CGROUP / "cpu/cpu.cfs_quota_us")
        period = _read(_CGROUP / "cpu/cpu.cfs_period_us")
    share = int(quota) / int(period) if quota.isdigit() and period.isdigit() else float("inf")
    return min(float(allowed), share)


def _memory_limit():
    """Bytes: of the machine, or of the cgroup where that is less."""
    whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [_read(_CGROUP / "memory.max"), _read(_CGROUP / "memory/memory.limit_in_bytes")]
    return min([whole, *(int(limit) for limit in limits if limit.isdigit())])


def _room(path):
    try:
        found = shutil.disk_usage(path)
    except OSError:
        return {"size": 0, "free": 0}
    return {"size": found.total, "free": found.free}


def _temp_folder():
    """Ray's, which its processes are told; spilled objects go there."""
    told = [word.partition("=")[2] for word in sys.argv if word.startswith("--temp-dir=")]
    return next(filter(None, told), "/tmp")


def _cpu_flags():
    lines = _read(Path("/proc/cpuinfo")).splitlines()
    return set(next((line for line in lines if line.startswith("flags")), "").split())


def _gpus():
    own = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    try:
        done = subprocess.run(
            [sys.executable, "-c", _GPUS], capture_output=True, text=True, env=own, timeout=50
        )
        found = json.loads(done.stdout.strip().splitlines()[-1])
    except (OSError, ValueError, IndexError, subprocess.SubprocessError) as error:
        return {"error": f"torch does not start: {error}"[:300], "gpus": []}
    return {**found, "driver": _driver()}


def _driver():
    if not shutil.which("nvidia-smi"):
        return None
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, timeout=20).stdout.splitlines()
    except (OSError, subprocess.SubprocessError):
        return None
    return lines[0].strip() if lines else None


def _listening(port):
    """Addresses that listen on a port, "*" for all; from Linux's tables."""
    found = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in _read(Path("/proc/net", table)).splitlines()[1:]:
            address, _, number = line.split()[1].partition(":")
            if line.split()[3] == "0A" and int(number, 16) == port:
                raw = b"".join(
                    int(address[i : i + 8], 16).to_bytes(4, sys.byteorder) for i in range(0, len(address), 8)
                )
                found.add("*" if not any(raw) else socket.inet_ntop(family, raw).removeprefix("::ffff:"))
    return sorted(found)


def _bind(host, port):
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _read(path):
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError):
        return ""
