"""What the nodes answered. Plain values; `error` in an answer says why there is none."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Answers = Mapping[str, Mapping[str, Any]]
"""An answer by the name of the node."""


@dataclass(frozen=True)
class Node:
    """A node as Ray sees it. `name` is its address, with a part of its id where several have that address."""

    name: str
    id: str
    address: str
    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)
    head: bool = False
    driver: bool = False

    @property
    def works(self) -> bool:
        """Whether tasks and encoders may run there."""
        return self.resources.get("CPU", 0) > 0

    @property
    def gpus(self) -> float:
        """Promised to Ray."""
        return self.resources.get("GPU", 0)


@dataclass(frozen=True)
class Facts:
    """Everything that the checks look at.

    Attributes:
        dead: (address, why) of nodes that ended against expectation.
        driver: `machine.examine` of the driver's machine; `machines` of the nodes.
        clocks: `ahead` seconds of the driver's clock, and `within`, how exactly that is known.
        first: what is behind each path that is read, seen from the driver (`storage.first_file`).
        files: by path, what nodes read of its first file; the driver's own answer is under "".
        written: `storage.write_and_read` of the output folder; that of laying down the token is `token`.
        looks, loads, hubs: by setting, what nodes say of a model (`model.look`, `load`, `ask_hub`).
        links: whether another node is reached from a node.
        auth: Ray's authentication, "token" or "disabled"; `ports`: what listens where, by its name, on the head.
        pool: what keeps the workers from fitting, "" where they do, None where that was not looked at.
        serving: whether a service of Ray Serve runs on the cluster.
    """

    nodes: tuple[Node, ...]
    dead: tuple[tuple[str, str], ...] = ()
    driver: Mapping[str, Any] = field(default_factory=dict)
    machines: Answers = field(default_factory=dict)
    clocks: Answers = field(default_factory=dict)
    first: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    files: Mapping[str, Answers] = field(default_factory=dict)
    token: Mapping[str, Any] = field(default_factory=dict)
    written: Answers = field(default_factory=dict)
    looks: Mapping[str, Answers] = field(default_factory=dict)
    loads: Mapping[str, Answers] = field(default_factory=dict)
    hubs: Mapping[str, Answers] = field(default_factory=dict)
    links: Answers = field(default_factory=dict)
    auth: str = "token"
    ports: Mapping[str, tuple[int, tuple[str, ...]]] = field(default_factory=dict)
    pool: str | None = None
    fits: str = ""
    serving: bool = False

    @property
    def names(self) -> list[str]:
        """Of all nodes."""
        return [node.name for node in self.nodes]

    def answered(self) -> Iterator[tuple[Node, Mapping[str, Any]]]:
        """The nodes that said what machine they are."""
        for node in self.nodes:
            found = self.machines.get(node.name, {})
            if found and "error" not in found:
                yield node, found
