"""How the workers of a run meet: a process group of torch on the network of the addresses by which Ray knows their nodes."""

import contextlib
import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import psutil
import ray
import ray.train
from ray.exceptions import GetTimeoutError
from ray.train.backend import Backend, BackendConfig

# of waiting for the others in one step of a collective; a worker that is lost is noticed by Ray long before
_PATIENCE = timedelta(minutes=30)
_LEAVING_SECONDS = 5


@dataclass
class WorkersConfig(BackendConfig):
    """For Ray Train: a process group by `backend`, nccl or gloo. Unlike Ray's own, the driver needs no torch for it."""

    backend: str = "gloo"

    @property
    def backend_cls(self) -> type[Backend]:
        """What sets the processes up."""
        return _Backend


class _Backend(Backend):
    """Runs in Ray Train's controller, on the driver's node; what it executes runs in the workers."""

    share_cuda_visible_devices = True

    def on_start(self, worker_group: Any, backend_config: WorkersConfig) -> None:
        address, port = worker_group.execute_single(0, _meeting_place)
        worker_group.execute(_join, backend_config.backend, address, port)

    def on_shutdown(self, worker_group: Any, backend_config: WorkersConfig) -> None:
        with contextlib.suppress(GetTimeoutError):  # a worker that hangs is killed next
            ray.get(worker_group.execute_async(_leave), timeout=_LEAVING_SECONDS)


def _meeting_place() -> tuple[str, int]:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return ray.util.get_node_ip_address(), probe.getsockname()[1]


def _join(backend: str, address: str, port: int) -> None:
    """Set what torch, DeepSpeed and Gloo read from the environment, and enter the process group.

    Left to itself Gloo takes the interface of the host's name, which on many systems (Debian's /etc/hosts) is the loopback:
    workers of other nodes cannot connect there. A GLOO_SOCKET_IFNAME of the user's stays.
    """
    import torch.distributed

    context = ray.train.get_context()
    numbers = {
        "MASTER_PORT": port,
        "RANK": context.get_world_rank(),
        "WORLD_SIZE": context.get_world_size(),
        "LOCAL_RANK": context.get_local_rank(),
        "LOCAL_WORLD_SIZE": context.get_local_world_size(),
    }
    os.environ.update({"MASTER_ADDR": address, **{name: str(number) for name, number in numbers.items()}})
    if name := interface_of(ray.util.get_node_ip_address()):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    torch.distributed.init_process_group(backend, timeout=_PATIENCE)


def _leave() -> None:
    import torch.distributed

    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def interface_of(address: str) -> str | None:
    """The name of this machine's network interface with an IPv4 or IPv6 address; None where there is none."""
    for name, bound in psutil.net_if_addrs().items():
        for each in bound:
            if each.family in (socket.AF_INET, socket.AF_INET6) and each.address.partition("%")[0] == address:
                return name
    return None
