"""The processes of a run: how many of what size the cluster feeds, on which of its nodes, and waiting for nodes to come."""

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from raybert.config import WorkersSettings
from raybert.corpus.session import is_private


@dataclass(frozen=True)
class Pool:
    """The worker processes of one run: between `low` and `high` of them, each with `cpus` and `gpus`.

    `labels` are those of the nodes they run on, `reader_labels` of the nodes where others read for them.
    """

    low: int
    high: int
    cpus: int
    gpus: float
    labels: Mapping[str, str] = field(default_factory=dict)
    reader_labels: Mapping[str, str] = field(default_factory=dict)

    def at_most(self, count: int) -> "Pool":
        """No more processes than there is work for."""
        return replace(self, low=min(self.low, count), high=min(self.high, count))

    @property
    def needs(self) -> dict[str, Any]:
        """What Ray is to give one process, as options of a task or an actor."""
        return {
            "num_cpus": self.cpus,
            "num_gpus": self.gpus or None,
            "label_selector": dict(self.labels) or None,
        }


def threads_of(workers: WorkersSettings) -> int:
    """CPUs of one encoder. Processes of one thread each beat one of many: nothing waits for its slowest thread."""
    return 1 if workers.cpus == "auto" else workers.cpus


def worker_pool(workers: WorkersSettings, *, reading: bool = True, whole_nodes: bool = False) -> Pool:
    """How many processes of what size this cluster can feed, as asked or, for `auto`, as many as fit beside a CPU.

    With `workers.wait` a cluster that is too small is first given that many seconds to grow.

    Args:
        reading: one CPU more is needed, for those who read for the processes.
        whole_nodes: without GPUs workers.cpus=auto is not one, but what the processes of a node have of its CPUs less
            one, and workers.count=auto one a node: for processes that wait for each other, of which a few with many
            threads lose less time.

    Raises:
        ValueError: a request that could only hang: every process needs its CPUs and GPUs, and one CPU more is needed if
            others read for them.
        RuntimeError: the nodes that were waited for did not come.
    """
    pool, fits = _measure(workers, reading, whole_nodes)
    grows = bool(workers.wait) and not is_private()
    if grows and pool.low > fits:
        _wait_for_nodes(pool, reading, workers.wait)
        pool, fits = _measure(workers, reading, whole_nodes)
    if pool.low > fits:
        raise ValueError(_too_small(pool, reading))
    # a cluster that grows has room for all that is asked for, later
    return pool if grows else replace(pool, high=min(pool.high, max(pool.low, fits)))


def _measure(workers: WorkersSettings, reading: bool, whole_nodes: bool) -> tuple[Pool, int]:
    """The pool as asked for, with numbers for `auto`; and how many processes of it fit now."""
    nodes = _nodes(workers.labels).values()
    gpus_here = sum(node.get("GPU", 0.0) for node in nodes)
    gpus = (1.0 if gpus_here else 0.0) if workers.gpus == "auto" else workers.gpus
    cpus = threads_of(workers)
    low, high = workers.count if isinstance(workers.count, list) else (workers.count, workers.count)
    if whole_nodes and workers.cpus == "auto" and not gpus:
        least = min((int(node["CPU"]) for node in nodes if node.get("CPU")), default=0)
        a_node = 1 if workers.count == "auto" else math.ceil(high / max(1, len(nodes)))
        cpus = max(1, (least - 1) // a_node)
    # a process lies on one node
    fits = sum(int(node.get("CPU", 0)) // cpus for node in nodes)
    if gpus:
        fits = min(fits, sum(int(node.get("GPU", 0) / gpus) for node in nodes))
    beside = _beside_reading(workers, fits, cpus)
    if workers.count == "auto":
        low = high = max(1, beside)
    pool = Pool(low, high, cpus, gpus, workers.labels, workers.reader_labels)
    return pool, max(0, beside if reading else fits)


def _beside_reading(workers: WorkersSettings, fits: int, cpus: int) -> int:
    """How many of the processes that fit leave a CPU for reading, of a node that it may run on."""
    theirs, readers = _nodes(workers.labels), _nodes(workers.reader_labels)
    if any(readers[name].get("CPU", 0) >= 1 for name in readers.keys() - theirs.keys()):
        return fits
    if not readers:
        return 0
    return fits if fits * cpus <= sum(node.get("CPU", 0) for node in theirs.values()) - 1 else fits - 1


def _nodes(labels: Mapping[str, str]) -> dict[str, dict[str, float]]:
    """Resources of the nodes that have these labels, by the node's id."""
    import ray

    return {
        node["NodeID"]: node["Resources"]
        for node in ray.nodes()
        if node["Alive"] and matches(node.get("Labels") or {}, labels)
    }


def matches(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether a node with `labels` is one of those `wanted`, by Ray's rules: a, !a, in(a,b) or !in(a,b)."""
    for key, value in wanted.items():
        values = value.removeprefix("!").removeprefix("in(").removesuffix(")").split(",")
        if (labels.get(key) in [one.strip() for one in values]) == value.startswith("!"):
            return False
    return True


def _wait_for_nodes(pool: Pool, reading: bool, seconds: float) -> None:
    """Ask for room for the first processes, as an autoscaler understands it, and wait until it is there."""
    from ray.util.placement_group import placement_group, remove_placement_group

    bundles = [{"CPU": pool.cpus, **({"GPU": pool.gpus} if pool.gpus else {})}] * pool.low
    labels = [dict(pool.labels)] * pool.low
    if reading:
        bundles, labels = [*bundles, {"CPU": 1}], [*labels, dict(pool.reader_labels)]
    print(
        f"raybert: waiting up to {seconds:g} s for nodes with {_room(pool, reading)}",
        file=sys.stderr,
        flush=True,
    )
    group = placement_group(bundles, bundle_label_selector=labels if any(labels) else None)
    try:
        if not group.wait(seconds):
            raise RuntimeError(
                f"workers.wait={seconds:g}: no nodes came with {_room(pool, reading)}; is there a group of nodes of that "
                "size, may it grow, and has the cloud any? `ray status` tells"
            )
    finally:
        remove_placement_group(group)


def _room(pool: Pool, reading: bool) -> str:
    gpus = f" and {pool.gpus:g} GPUs" if pool.gpus else ""
    return (
        f"{pool.low} x {pool.cpus} CPUs{gpus}{_labelled(pool.labels)}{_and_reading(pool) if reading else ''}"
    )


def _too_small(pool: Pool, reading: bool) -> str:
    nodes = _nodes(pool.labels).values()
    cpus, gpus = (sum(node.get(kind, 0) for node in nodes) for kind in ("CPU", "GPU"))
    grow = "" if is_private() else ", or give workers.wait=SECONDS if an autoscaler adds nodes"
    return (
        f"workers.count={pool.low} x workers.cpus={pool.cpus}, workers.gpus={pool.gpus:g}"
        f"{_and_reading(pool) if reading else ''} do not fit: the cluster has {cpus:g} CPUs and {gpus:g} GPUs on "
        f"{len(nodes)} node(s){_labelled(pool.labels)}; lower workers.count or workers.cpus{grow}"
    )


def _and_reading(pool: Pool) -> str:
    return f" and 1 CPU for reading{_labelled(pool.reader_labels)}"


def _labelled(labels: Mapping[str, str]) -> str:
    return f" labelled {dict(labels)}" if labels else ""
