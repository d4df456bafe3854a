"""Asks every node of the cluster, all at once and none for longer than it is given."""

import contextlib
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray import cloudpickle
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raybert.config import WorkersSettings
from raybert.corpus.pool import matches, worker_pool
from raybert.doctor import machine, storage
from raybert.doctor.facts import Answers, Facts, Node
from raybert.doctor.needs import Model, Needs
from raybert.serve.placement import range_of, settle

_EXPECTED = 1  # Ray's DeathReason: drained or stopped, as an autoscaler does
_PINGS = 5
_STORAGE, _MODEL = "raybert.doctor.storage", "raybert.doctor.model"


def gather(needs: Needs, *, timeout: float, hub: bool) -> Facts:
    """What all nodes say, within a session of Ray.

    Args:
        timeout: seconds for one check on one node.
        hub: ask the hub for models that a node has not in its cache.
    """
    nodes, dead = _nodes()
    ports = _ports()
    asked = {"ports": [port for _, port in ports.values()], "binds": list(needs.binds)}
    with _probes(nodes) as probes:
        machines = _ask(
            {node.name: probes[node.name].machine.remote({**asked, "gpus": node.gpus > 0}) for node in nodes},
            timeout,
        )
        # who does not answer is told once
        here = [node for node in nodes if "error" not in machines[node.name]]
        encoders = _of_encoders(needs, here)
        readers = [node for node in here if node.works and matches(node.labels, needs.reader_labels)]
        workers = [node for node in here if node in encoders or node in readers]
        facts = Facts(
            nodes=tuple(nodes),
            dead=tuple(dead),
            driver=machine.examine(),
            machines=machines,
            clocks={node.name: _clock(probes[node.name]) for node in here},
            links=_links(probes, here, timeout),
            auth=_auth(),
            ports=_listeners(ports, nodes, machines),
            serving=_serving(),
        )

        def ask(where: Sequence[Node], module: str, function: str, *arguments: Any) -> Answers:
            calls = {node.name: (module, function, arguments) for node in where}
            return _ask({name: probes[name].call.remote(*call) for name, call in calls.items()}, timeout)

        facts = _reads(facts, needs, workers, ask)
        facts = _writes(facts, needs, workers, probes, timeout)
        facts = _models(facts, needs, encoders, ask, hub)
    return replace(facts, **_fits(needs))


# -- nodes and their processes


def _nodes() -> tuple[list[Node], list[tuple[str, str]]]:
    here = ray.get_runtime_context().get_node_id()
    every = ray.nodes()
    alive = [each for each in every if each["Alive"]]
    addresses = [each["NodeManagerAddress"] for each in alive]
    found = []
    for each in alive:
        address, number = each["NodeManagerAddress"], each["NodeID"]
        found.append(
            Node(
                name=address if addresses.count(address) == 1 else f"{address}/{number[:6]}",
                id=number,
                address=address,
                resources=each["Resources"],
                labels=each.get("Labels") or {},
                head="node:__internal_head__" in each["Resources"],
                driver=number == here,
            )
        )
    dead = [
        (each["NodeManagerAddress"], each["DeathReasonMessage"])
        for each in every
        if not each["Alive"] and each["DeathReason"] != _EXPECTED
    ]
    return sorted(found, key=lambda node: (not node.head, node.name)), dead


@contextlib.contextmanager
def _probes(nodes: Sequence[Node]) -> Iterator[dict[str, Any]]:
    """A process a node, which takes no CPU from anybody. Its code travels with it: the node's raybert may be another."""
    cloudpickle.register_pickle_by_value(machine)
    probes = {}
    try:
        kind = ray.remote(num_cpus=0, max_restarts=0, max_concurrency=4)(machine.Probe)
        for node in nodes:
            there = NodeAffinitySchedulingStrategy(node.id, soft=False)
            probes[node.name] = kind.options(scheduling_strategy=there).remote()
        yield probes
    finally:
        cloudpickle.unregister_pickle_by_value(machine)
        for probe in probes.values():
            ray.kill(probe)


def _ask(calls: Mapping[str, Any], timeout: float) -> Answers:
    """The answers by node; those that do not come are errors."""
    if not calls:
        return {}
    came, _ = ray.wait(list(calls.values()), num_returns=len(calls), timeout=timeout)
    return {
        name: _answer(call) if call in came else {"error": f"no answer within {timeout:g} s", "silent": True}
        for name, call in calls.items()
    }


def _answer(call: Any) -> Mapping[str, Any]:
    try:
        return ray.get(call)
    except ray.exceptions.RayError as error:
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}", "silent": True}


# -- the cluster


def _clock(probe: Any) -> dict[str, float]:
    """Seconds that a node is ahead of the driver, by the quickest of some questions, whose halves are taken for alike."""
    best = {"error": "no answer"}
    for _ in range(_PINGS):
        asked, began = time.time(), time.perf_counter()
        try:
            there = ray.get(probe.now.remote(), timeout=10)
        except ray.exceptions.RayError:
            continue
        took = time.perf_counter() - began
        if "within" not in best or took / 2 < best["within"]:
            best = {"ahead": there - (asked + took / 2), "within": took / 2}
    return best


def _links(probes: Mapping[str, Any], nodes: Sequence[Node], timeout: float) -> Answers:
    """Whether each node reaches the next one, at a port of its own."""
    if len({node.address for node in nodes}) < 2:
        return {}
    doors = _ask({node.name: probes[node.name].listen.remote() for node in nodes}, timeout)
    calls = {}
    for node, other in zip(nodes, [*nodes[1:], nodes[0]], strict=True):
        if (door := doors[other.name].get("port")) is not None:
            calls[node.name, other.address] = probes[node.name].connect.remote(
                other.address, door, timeout / 2
            )
    found = _ask(calls, timeout)
    return {name: {"to": to, **answer} for (name, to), answer in found.items()}


def _ports() -> dict[str, tuple[str, int]]:
    """(host, port) of what Ray's head listens on, by its name."""
    import ray._private.worker as worker

    found = {"Ray (GCS)": ray.get_runtime_context().gcs_address}
    if worker.get_dashboard_url():
        found["Ray's dashboard"] = worker.get_dashboard_url()
    split = {name: address.rpartition(":") for name, address in found.items()}
    return {name: (host, int(port)) for name, (host, _, port) in split.items() if port.isdecimal()}


def _listeners(
    ports: Mapping[str, tuple[str, int]], nodes: Sequence[Node], machines: Answers
) -> dict[str, tuple[int, tuple[str, ...]]]:
    head = next((node.name for node in nodes if node.head), "")
    listens = machines.get(head, {}).get("listens", {})
    return {name: (port, tuple(listens.get(port, ()))) for name, (_, port) in ports.items()}


def _auth() -> str:
    """How Ray's own calls are authenticated; the driver could not be connected otherwise."""
    from ray._private.authentication.authentication_utils import get_authentication_mode_name
    from ray._raylet import get_authentication_mode

    return get_authentication_mode_name(get_authentication_mode())


def _serving() -> bool:
    try:
        ray.get_actor("SERVE_CONTROLLER_ACTOR", namespace="serve")
    except ValueError:
        return False
    return True


# -- the job

Ask = Callable[..., Answers]


def _reads(facts: Facts, needs: Needs, workers: Sequence[Node], ask: Ask) -> Facts:
    first, files = {}, {}
    for _, path in (*needs.reads, *needs.driver_reads):
        first[path] = storage.first_file(path)
    for _, path in needs.reads:
        if "error" not in first[path]:
            own = {"": storage.read_file(first[path]["path"])}
            files[path] = {**own, **ask(workers, _STORAGE, "read_file", first[path]["path"])}
    return replace(facts, first=first, files=files)


def _writes(
    facts: Facts, needs: Needs, workers: Sequence[Node], probes: Mapping[str, Any], timeout: float
) -> Facts:
    """Every node writes, reads, lists and deletes a file, and looks for one of the driver's."""
    if not needs.writes:
        return facts
    token = f"doctor-{uuid.uuid4().hex[:12]}"
    names = {node.name: f"{token}-{node.id[:8]}" for node in workers}
    laid = storage.put_token(needs.writes, token)
    try:
        seen = None if "error" in laid else token
        calls = {name: (_STORAGE, "write_and_read", (needs.writes, own, seen)) for name, own in names.items()}
        answers = _ask({name: probes[name].call.remote(*call) for name, call in calls.items()}, timeout)
    finally:
        storage.clear(needs.writes, [token, *names.values()], made=laid["made"])
    return replace(facts, token=laid, written=answers)


def _of_encoders(needs: Needs, nodes: Sequence[Node]) -> list[Node]:
    """The nodes on which the model is loaded: those with GPUs where there are any, unless none are wanted."""
    found = [node for node in nodes if node.works and matches(node.labels, needs.labels)]
    with_gpus = [node for node in found if node.gpus]
    return found if needs.refuses_gpus or not with_gpus else with_gpus


def _models(facts: Facts, needs: Needs, nodes: Sequence[Node], ask: Ask, hub: bool) -> Facts:
    looks: dict[str, Answers] = {}
    loads: dict[str, Answers] = {}
    hubs: dict[str, Answers] = {}
    for model in needs.models:
        asked = _asked(model, needs)
        looks[model.setting] = found = ask(nodes, _MODEL, "look", asked)
        if hub and (lack := [node for node in nodes if found[node.name].get("hub")]):
            hubs[model.setting] = ask(lack, _MODEL, "ask_hub", asked)
        have = [node for node in nodes if "error" not in found[node.name]]
        # once is enough: the others have the same files
        loads[model.setting] = ask(have[:1], _MODEL, "load", needs.verb, model.config)
    return replace(facts, looks=looks, loads=loads, hubs=hubs)


def _asked(model: Model, needs: Needs) -> dict[str, Any]:
    asked = {"name": model.name, "revision": model.revision, "code": model.code}
    return {**asked, "tokenizer": needs.verb == "prepare"}


def _fits(needs: Needs) -> dict[str, Any]:
    """Whether the workers of the job have room, and what they are."""
    if not needs.verb:
        return {}
    try:
        if needs.verb == "serve":
            return {"pool": "", "fits": _replicas(needs)}
        # an examination makes no cluster grow
        workers: WorkersSettings = needs.workers.model_copy(update={"wait": 0.0})
        pool = worker_pool(workers, reading=not needs.training, whole_nodes=needs.training)
    except ValueError as error:
        return {"pool": str(error)}
    count = f"{pool.low}" if pool.low == pool.high else f"{pool.low} to {pool.high}"
    return {"pool": "", "fits": f"{count} worker(s) with {pool.cpus} CPU(s) and {pool.gpus:g} GPU(s) each"}


def _replicas(needs: Needs) -> str:
    """What the service starts with. Raises ValueError where that finds no room."""
    nodes = [node for node in ray.nodes() if node["Alive"]]
    left = {node["NodeID"]: dict(node["Resources"]) for node in nodes}
    told = []
    for name, served in settle(needs.config).items():
        least, cpus, gpus = range_of(served)[0], int(served.workers.cpus), float(served.workers.gpus)
        labelled = [n["NodeID"] for n in nodes if matches(n.get("Labels") or {}, served.workers.labels)]
        room = [left[number] for number in labelled]
        for _ in range(least):
            free = [each for each in room if each.get("CPU", 0) >= cpus and each.get("GPU", 0) >= gpus]
            if not free:
                raise ValueError(
                    f"{least} replica(s) of {name} with {cpus} CPU(s) and {gpus:g} GPU(s) each find no room on "
                    f"{len(room)} node(s) that may take them; lower workers.count or workers.cpus"
                )
            free[0]["CPU"] -= cpus
            free[0]["GPU"] = free[0].get("GPU", 0) - gpus
        told.append(f"{name}: {least} replica(s) with {cpus} CPU(s) and {gpus:g} GPU(s) each")
    return "; ".join(told)
