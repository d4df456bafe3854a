"""Is the cluster in order, whatever runs on it? Pure functions of what the nodes answered."""

from collections.abc import Mapping
from functools import partial
from typing import Any

from raybert.doctor.facts import Facts, Node
from raybert.doctor.findings import FAIL, OK, WARN, Finding, by_node
from raybert.doctor.needs import Needs

GIB = 1 << 30
# Ray itself warns at its head below so many
_FILES = 8192
# of the clock: where logs can no longer be read together; where S3 (15 minutes) and tokens begin to refuse
_SKEW, _REFUSED = 2.0, 300.0
# Ray stops spilling where a disk is so full
_FULL = 0.95
_LOOPBACK = ("127.", "::1", "localhost")
_SAME = ("torch", "transformers", "tokenizers", "pyarrow")


def check_cluster(facts: Facts, needs: Needs) -> list[Finding]:
    """All findings of the groups `cluster` and `node`."""
    return [
        *_alive(facts),
        *_silent(facts),
        *_versions(facts, needs),
        *_clocks(facts),
        *_links(facts),
        *_open_to_others(facts),
        *_cpus(facts),
        *_memory(facts),
        *_shared_memory(facts),
        *_spilling(facts),
        *_files(facts),
    ]


def _alive(facts: Facts) -> list[Finding]:
    cpus = sum(node.resources.get("CPU", 0) for node in facts.nodes)
    gpus = sum(node.gpus for node in facts.nodes)
    found = f"{len(facts.nodes)} alive, {cpus:g} CPUs and {gpus:g} GPUs for Ray"
    rows = [Finding("cluster", "nodes", OK, found, nodes=tuple(facts.names))]
    if not cpus:
        fix = "add nodes with CPUs, or start this one with --num-cpus"
        rows = [Finding("cluster", "nodes", FAIL, f"{found}: nothing can run", fix)]
    if facts.dead:
        told = "; ".join(f"{address}: {why or 'no reason given'}" for address, why in facts.dead[-3:])
        more = f" (the last {min(3, len(facts.dead))})" if len(facts.dead) > 3 else ""
        rows.append(
            Finding(
                "cluster",
                "lost nodes",
                WARN,
                f"{len(facts.dead)} died since the cluster began{more}: {told}"[:400],
                "look into raylet.out and the machine's own log there: memory, spot pre-emption or network; jobs go on "
                "without a lost node, but slower",
            )
        )
    return rows


def _silent(facts: Facts) -> list[Finding]:
    def judge(name: str) -> tuple[str, str, str] | None:
        if "error" not in facts.machines[name]:
            return None
        fix = "restart Ray on that node, or take it out of the cluster; a node that is only slow: doctor.timeout=300"
        return FAIL, facts.machines[name]["error"], fix

    return by_node("cluster", "answers", facts.machines, judge)


def _versions(facts: Facts, needs: Needs) -> list[Finding]:
    """Nodes against the driver, and against each other in what the driver may lack."""
    nodes = [node.name for node, _ in facts.answered()]
    reference = _reference(facts)
    told = ", ".join(f"{name} {version}" for name, version in reference.items() if version)
    rows: list[Finding] = []
    for what, wanted in reference.items():
        judge = partial(_other, facts, what, wanted, needs)
        rows += by_node("cluster", what, dict.fromkeys(nodes), judge)
    differing = {name for row in rows for name in row.nodes if row.state == FAIL}
    same = tuple(name for name in nodes if name not in differing)
    if same:
        rows.insert(0, Finding("cluster", "versions", OK, told, nodes=same))
    return rows


def _reference(facts: Facts) -> dict[str, str | None]:
    """What every node should have: what the driver has, or most nodes where the driver has none."""
    found = {"python": facts.driver["python"], "ray": facts.driver["versions"]["ray"]}
    found["raybert"] = _raybert(facts.driver)
    for package in _SAME:
        own = facts.driver["versions"].get(package)
        others = [_plain(each["versions"].get(package)) for _, each in facts.answered()]
        found[package] = _plain(own) or max((v for v in others if v), key=others.count, default=None)
    return found


def _other(
    facts: Facts, what: str, wanted: str | None, needs: Needs, node: str
) -> tuple[str, str, str] | None:
    """What is said of a node with another version."""
    has = _version(facts.machines[node], what)
    if has == wanted:
        return None
    if has is None:
        state = FAIL if needs.verb else WARN
        hint = "submit with `ray job submit --working-dir .`, or " if what == "raybert" else ""
        return (
            state,
            f"no {what} on this node",
            f"{hint}give all nodes the image or environment of the driver",
        )
    whose = "of the driver" if what in ("python", "ray", "raybert") else "elsewhere"
    found = f"{what} {has}, {wanted} {whose}"
    if what == "raybert":
        found += f" (in {facts.machines[node]['raybert']['folder']})"
    return FAIL, found, f"install {what} {wanted} there too: give all nodes one image or environment"


def _version(machine: Mapping[str, Any], what: str) -> str | None:
    if what == "python":
        return machine["python"]
    if what == "raybert":
        return _raybert(machine)
    return _plain(machine["versions"].get(what)) if what in _SAME else machine["versions"].get(what)


def _raybert(machine: Mapping[str, Any]) -> str | None:
    own = machine["raybert"]
    return f"{own['version']} (code {own['digest']})" if own else None


def _plain(version: str | None) -> str | None:
    """Without what a build says of its hardware: 2.9.0+cu126 is 2.9.0."""
    return version.partition("+")[0] if version else None


def _clocks(facts: Facts) -> list[Finding]:
    known = {name: each for name, each in facts.clocks.items() if "ahead" in each}
    fix = "synchronise the clocks (chrony or systemd-timesyncd, or the host's of a virtual machine)"

    def judge(name: str) -> tuple[str, str, str] | None:
        ahead, within = known[name]["ahead"], known[name]["within"]
        if abs(ahead) - within <= _SKEW:
            return None
        side = "ahead of" if ahead > 0 else "behind"
        state = FAIL if abs(ahead) > _REFUSED else WARN
        return state, f"{abs(ahead):.1f} s {side} the driver's (± {within:.1f} s)", fix

    rows = by_node("cluster", "clock", known, judge)
    off = {name for row in rows for name in row.nodes}
    good = tuple(name for name in known if name not in off)
    if good:
        most = max(abs(known[name]["ahead"]) for name in good)
        within = max(known[name]["within"] for name in good)
        told = f"at most {most:.2f} s from the driver's (± {within:.2f} s)"
        rows.insert(0, Finding("cluster", "clock", OK, told, nodes=good))
    unknown = tuple(name for name in facts.clocks if name not in known)
    if unknown:
        rows.append(Finding("cluster", "clock", WARN, "could not be asked", "ask again", unknown))
    return rows


def _links(facts: Facts) -> list[Finding]:
    def judge(name: str) -> tuple[str, str, str]:
        answer = facts.links[name]
        if "error" not in answer:
            return OK, "each reaches the next at a port of its own", ""
        fix = "open all ports between the nodes (security group, network policy, firewall): Ray and training choose theirs"
        return FAIL, f"{answer['to']} is not reached: {answer['error']}", fix

    return by_node("cluster", "network", facts.links, judge)


def _open_to_others(facts: Facts) -> list[Finding]:
    """Whoever reaches Ray's ports without a token runs any code."""
    told = f"authentication by {facts.auth}" if facts.auth != "disabled" else "authentication is off"
    seen = {
        name: (port, others)
        for name, (port, addresses) in facts.ports.items()
        if (others := [each for each in addresses if not each.startswith(_LOOPBACK)])
    }
    where = "; ".join(f"{name} listens on {', '.join(at)}:{port}" for name, (port, at) in seen.items())
    if facts.auth == "disabled" and seen:
        fix = (
            "whoever reaches it runs any code: start all nodes with RAY_AUTH_MODE=token and one token "
            "(`ray get-auth-token --generate`), and keep the ports inside the network"
        )
        return [Finding("cluster", "access", WARN, f"{told}, and {where}", fix)]
    return [Finding("cluster", "access", OK, f"{told}{'; ' + where if where else ''}")]


def _cpus(facts: Facts) -> list[Finding]:
    def judge(name: str) -> tuple[str, str, str]:
        node, machine = _pair(facts, name)
        promised, real = node.resources.get("CPU", 0), machine["cpus"]
        if promised <= real + 1:  # a private Ray has one more, for reading
            return OK, f"{promised:g} for Ray, {real:g} are there", ""
        found = f"Ray counts {promised:g} CPUs, the machine or its cgroup gives {real:g}"
        return WARN, found, f"start the node with --num-cpus={max(1, int(real))}, or raise its limit"

    return by_node("node", "CPUs", _answered(facts), judge)


def _memory(facts: Facts) -> list[Finding]:
    def judge(name: str) -> tuple[str, str, str]:
        node, machine = _pair(facts, name)
        promised = node.resources.get("memory", 0) + node.resources.get("object_store_memory", 0)
        if promised <= machine["memory"] * 1.01:
            return OK, f"{promised / GIB:.1f} GiB for Ray of {machine['memory'] / GIB:.1f}", ""
        found = f"Ray counts {promised / GIB:.1f} GiB, the limit is {machine['memory'] / GIB:.1f}: processes will be killed"
        return WARN, found, "start the node with less --memory and --object-store-memory, or raise its limit"

    return by_node("node", "memory", _answered(facts), judge)


def _shared_memory(facts: Facts) -> list[Finding]:
    def judge(name: str) -> tuple[str, str, str]:
        node, machine = _pair(facts, name)
        store, room = node.resources.get("object_store_memory", 0), machine["shm"]["size"]
        if store <= room * 1.01:
            return OK, f"object store of {store / GIB:.1f} GiB, /dev/shm has {room / GIB:.1f}", ""
        found = f"object store of {store / GIB:.1f} GiB, but /dev/shm has {room / GIB:.1f}: Ray falls back to a disk"
        fix = (
            f"give /dev/shm {store / GIB:.0f} GiB (docker --shm-size, or an emptyDir with medium: Memory), or start the "
            "node with less --object-store-memory"
        )
        return WARN, found, fix

    return by_node("node", "/dev/shm", _answered(facts), judge)


def _spilling(facts: Facts) -> list[Finding]:
    def judge(name: str) -> tuple[str, str, str]:
        node, machine = _pair(facts, name)
        temp, store = machine["temp"], node.resources.get("object_store_memory", 0)
        found = f"{temp['free'] / GIB:.0f} of {temp['size'] / GIB:.0f} GiB are free in {temp['path']}"
        fix = "free space there, or start the node with another --temp-dir"
        if not temp["size"] or 1 - temp["free"] / temp["size"] > _FULL:
            return FAIL, f"{found}: Ray spills nothing to a disk that is {_FULL:.0%} full", fix
        if temp["free"] < store:
            return WARN, f"{found}, less than the object store of {store / GIB:.1f} GiB that may spill", fix
        return OK, found, ""

    return by_node("node", "disk", _answered(facts), judge)


def _files(facts: Facts) -> list[Finding]:
    def judge(name: str) -> tuple[str, str, str]:
        _, machine = _pair(facts, name)
        limit = machine["files"]
        if 0 <= limit < _FILES:
            fix = "start Ray after `ulimit -n 65536` (LimitNOFILE of systemd, docker --ulimit nofile=65536)"
            return WARN, f"{limit:,} open files a process; busy nodes need more", fix
        return OK, "no limit of open files" if limit < 0 else f"{limit:,} open files a process", ""

    return by_node("node", "open files", _answered(facts), judge)


def _answered(facts: Facts) -> dict[str, None]:
    return {node.name: None for node, _ in facts.answered()}


def _pair(facts: Facts, name: str) -> tuple[Node, Mapping[str, Any]]:
    return next((node, found) for node, found in facts.answered() if node.name == name)
