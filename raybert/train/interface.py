"""The network that workers of a run meet on: that of the addresses by which Ray knows their nodes."""

import os
import socket

import psutil
import ray
from ray.train.torch import TorchConfig
from ray.train.torch.config import _TorchBackend


class WorkersConfig(TorchConfig):
    """As Ray Train's, but Gloo uses the interface with the node's address.

    Left to itself it takes that of the host's name, which on many systems (Debian's /etc/hosts) is the loopback: workers
    of other nodes cannot connect there. A GLOO_SOCKET_IFNAME of the user's stays.
    """

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        """What sets the processes up."""
        return _Backend


class _Backend(_TorchBackend):
    def on_start(self, worker_group, backend_config) -> None:
        worker_group.execute(_choose_interface)
        super().on_start(worker_group, backend_config)


def _choose_interface() -> None:
    name = interface_of(ray.util.get_node_ip_address())
    if name:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def interface_of(address: str) -> str | None:
    """The name of this machine's network interface with an IPv4 or IPv6 address; None where there is none."""
    for name, bound in psutil.net_if_addrs().items():
        for each in bound:
            if each.family in (socket.AF_INET, socket.AF_INET6) and each.address.partition("%")[0] == address:
                return name
    return None
