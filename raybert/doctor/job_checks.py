"""Can the job run on this cluster? Pure functions of what the nodes answered and what the job needs."""

from collections.abc import Mapping
from typing import Any

from raybert.corpus.filesystems import public_uri
from raybert.corpus.paths import public_name
from raybert.corpus.pool import matches
from raybert.doctor.facts import Facts
from raybert.doctor.findings import FAIL, OK, WARN, Finding, by_node
from raybert.doctor.needs import Model, Needs

GIB = 1 << 30
_LITTLE = GIB
_IN_BFLOAT16 = "computes in bfloat16"


def check_job(facts: Facts, needs: Needs) -> list[Finding]:
    """All findings about one job; none where the cluster alone is examined."""
    found = [*_gpus(facts, needs)]
    if not needs.verb:
        return found
    found += [*_bfloat16(facts, needs), *_compilers(facts, needs), *_training(facts, needs)]
    for setting, path in (*needs.reads, *needs.driver_reads):
        found += _readable(facts, setting, path)
    found += _writable(facts, needs)
    for model in needs.models:
        found += _model(facts, model)
    return [*found, *_ports(facts, needs), *_fits(facts, needs)]


# -- hardware


def _gpus(facts: Facts, needs: Needs) -> list[Finding]:
    promised = {node.name: node.gpus for node in facts.nodes}

    def judge(name: str) -> tuple[str, str, str] | None:
        found = facts.machines[name].get("gpu") or {"gpus": []}
        there, wanted = found["gpus"], promised[name]
        if not wanted and not there:
            return None
        if "error" in found and wanted:
            return (
                FAIL,
                f"Ray counts {wanted:g} GPUs, torch cannot use them: {found['error']}",
                _driver_fix(found),
            )
        if len(there) < wanted:
            return FAIL, f"Ray counts {wanted:g} GPUs, torch sees {len(there)}", _driver_fix(found)
        told = f"{len(there)} x {there[0]['name']}, driver {found.get('driver')}, CUDA {found.get('cuda')}"
        if len(there) > wanted:
            return WARN, f"{told}; Ray was told of {wanted:g}", f"start the node with --num-gpus={len(there)}"
        slow = (
            ""
            if all(each["bfloat16"] for each in there)
            else "; no bfloat16: float32 or float16 is computed in"
        )
        return OK, told + slow, ""

    rows = by_node("hardware", "GPUs", {node.name: None for node, _ in facts.answered()}, judge)
    if needs.wants_gpus and not needs.grows and not any(promised.values()):
        fix = "start GPU nodes (--num-gpus), or let a running autoscaler add them, or set workers.gpus=0"
        rows.append(
            Finding("hardware", "GPUs", FAIL, "workers.gpus asks for GPUs, the cluster has none", fix)
        )
    return rows


def _driver_fix(found: Mapping[str, Any]) -> str:
    if found.get("torch") and found.get("cuda") is None:
        return f"torch {found['torch']} is a build for CPUs: install one for CUDA on this node"
    if not found.get("driver"):
        return "install NVIDIA's driver on the host; in a container, start it with --gpus all or the device plugin"
    return f"the driver {found['driver']} may be too old for CUDA {found.get('cuda')} of torch: update it, or take another torch"


def _bfloat16(facts: Facts, needs: Needs) -> list[Finding]:
    """What is left to the hardware is settled on one node, and must hold on all."""
    on_gpus = not needs.refuses_gpus and any(node.gpus for node in facts.nodes)
    if not needs.automatic or on_gpus:
        return []
    workers = _workers(facts, needs)
    fast = tuple(name for name, machine in workers.items() if machine["bfloat16"])
    slow = tuple(name for name in workers if name not in fast)
    if fast and slow:
        found = f"no bfloat16 in these CPUs, {', '.join(fast[:3])} have it: {needs.automatic}=auto is settled on any node"
        fix = f"set {needs.automatic}=float32, or keep the job on nodes that are alike"
        return [Finding("hardware", "bfloat16", FAIL, found, fix, slow)]
    told = ", ".join(sorted({flag for name in fast for flag in workers[name]["bfloat16"]}))
    found = (
        f"{told}: {needs.automatic}=auto {_IN_BFLOAT16}"
        if fast
        else f"not in these CPUs: {needs.automatic}=auto is float32"
    )
    return [Finding("hardware", "bfloat16", OK, found, nodes=fast or slow)]


def _compilers(facts: Facts, needs: Needs) -> list[Finding]:
    """Of the attention in C, and of DeepSpeed's optimizer on the CPU."""
    workers = _workers(facts, needs)

    def kernel(name: str) -> tuple[str, str, str] | None:
        machine = workers[name]
        if "avx512_bf16" not in machine["bfloat16"]:
            return None
        if machine["compilers"]:
            return OK, f"{machine['compilers'][0]} builds the attention kernel", ""
        state = FAIL if needs.kernels == "native" else WARN
        found = (
            "no C compiler: torch's slower attention is used"
            if state == WARN
            else "model.kernels=native, but no C compiler"
        )
        return state, found, "install gcc (apt install gcc libc6-dev) on these nodes, or in their image"

    def adam(name: str) -> tuple[str, str, str]:
        lacks = [each for each in ("g++", "ninja") if each not in workers[name]["builders"]]
        if not lacks:
            return OK, "g++ and ninja build DeepSpeed's optimizer", ""
        fix = f"install {' and '.join(lacks)} on these nodes, or set train.offload=false"
        return FAIL, f"train.offload=true needs {' and '.join(lacks)}", fix

    rows = by_node("hardware", "C compiler", workers, kernel) if needs.kernels else []
    return rows + (by_node("hardware", "C++ compiler", workers, adam) if needs.offload else [])


def _training(facts: Facts, needs: Needs) -> list[Finding]:
    if not needs.training:
        return []
    workers = _workers(facts, needs)
    gpus = {node.name: node.gpus for node in facts.nodes}

    def engine(name: str) -> tuple[str, str, str]:
        version = workers[name]["versions"].get("deepspeed")
        if version:
            return OK, f"deepspeed {version}", ""
        return FAIL, "no deepspeed on this node", "install it there: pip install 'deepspeed>=0.19'"

    def exchange(name: str) -> tuple[str, str, str]:
        machine = workers[name]
        if gpus[name] and not needs.refuses_gpus:
            if (machine.get("gpu") or {}).get("nccl"):
                return OK, "nccl", ""
            return (
                FAIL,
                "torch has no NCCL, by which GPUs exchange gradients",
                "install a torch build for CUDA there",
            )
        return OK, "gloo", ""

    return [
        *by_node("training", "engine", workers, engine),
        *by_node("training", "exchange", workers, exchange),
    ]


def _workers(facts: Facts, needs: Needs) -> dict[str, Mapping[str, Any]]:
    """The machines that encoders may run on."""
    return {
        node.name: machine
        for node, machine in facts.answered()
        if node.works and matches(node.labels, needs.labels)
    }


# -- storage


def _readable(facts: Facts, setting: str, path: str) -> list[Finding]:
    first, answers = facts.first[path], facts.files.get(path, {})
    shown = f"{setting}={public_uri(path)}"
    if "error" in first:
        fix = "give a path, folder or glob that the driver can read; for s3:// its key, region and endpoint"
        return [Finding("storage", "read", FAIL, f"{shown}: {first['error']}", fix)]
    there = f"{shown}: {first['files']:,} file(s), {first['bytes'] / GIB:.2f} GiB"
    own = answers.get("", {})
    if "error" in own:
        fix = "the driver lists this file, but cannot read it: check the permissions"
        return [Finding("storage", "read", FAIL, f"{first['uri']}: {own['error']}", fix)]
    if not answers:
        return [Finding("storage", "read", OK, f"{there}, read by the driver")]

    def judge(name: str) -> tuple[str, str, str]:
        answer = answers[name]
        if "error" in answer:
            return FAIL, f"{first['uri']} cannot be read here: {answer['error']}", _shared_fix(path)
        if answer != own:
            found = f"{first['uri']} is another file here than on the driver: {answer['size']:,} bytes, not {own['size']:,}"
            return FAIL, found, _shared_fix(path)
        return OK, there, ""

    return by_node("storage", "read", {name: None for name in answers if name}, judge)


def _writable(facts: Facts, needs: Needs) -> list[Finding]:
    if not needs.writes:
        return []
    shown = f"output.path={public_uri(needs.writes)}"
    rows = []
    if "error" in facts.token:
        fix = f"the driver cannot write there: {_write_fix(facts.token['error'])}"
        rows.append(Finding("storage", "write", FAIL, f"{shown}: {facts.token['error']}", fix))

    def judge(name: str) -> tuple[str, str, str]:
        answer = facts.written[name]
        if "error" in answer:
            where = f" ({answer['step']})" if "step" in answer else ""
            return FAIL, f"{shown}: {answer['error']}{where}", _write_fix(answer["error"])
        if answer["shared"] is False:
            found = f"{shown} is another folder here than on the driver: its file is not there"
            return FAIL, found, _shared_fix(needs.writes)
        if answer["free"] is not None and answer["free"] < _LITTLE:
            return (
                WARN,
                f"{shown}: {answer['free'] / GIB:.2f} GiB are free",
                "free space, or take another output.path",
            )
        seen = ", the same for all" if answer["shared"] else ""
        return OK, f"{shown}: written, listed, read and deleted{seen}", ""

    return rows + by_node("storage", "write", facts.written, judge)


def _shared_fix(path: str) -> str:
    if "://" in path and not path.startswith("file://"):
        return "give these nodes the same credentials, region and endpoint as the driver"
    return "mount one shared file system at this path on all nodes (NFS, EFS, FSx, Filestore), or use s3:// or gs://"


def _write_fix(error: str) -> str:
    text = error.lower()
    if "read-only" in text:
        return "mount it for writing on these nodes, or take another output.path"
    if "no space" in text or "quota" in text:
        return "free space, or take another output.path"
    if "no module named" in text:
        return "install the raybert of the driver on these nodes"
    return "let the user of the nodes write there (permissions; for s3:// the policy of the key), or take another output.path"


# -- model


def _model(facts: Facts, model: Model) -> list[Finding]:
    shown, looks = f"{model.setting}={public_name(model.name)}", facts.looks.get(model.setting, {})
    digests = [answer["digest"] for answer in looks.values() if "error" not in answer]
    usual = max(digests, key=digests.count, default="")
    hubs = facts.hubs.get(model.setting, {})

    def judge(name: str) -> tuple[str, str, str]:
        answer = looks[name]
        if "error" in answer:
            return _lacking(shown, model, answer, hubs.get(name))
        if answer["digest"] != usual:
            found = f"{shown} has other files here (digest {answer['digest']}) than elsewhere ({usual})"
            return (
                FAIL,
                found,
                "copy one state of the model to all nodes, or name its commit in model.revision",
            )
        return OK, f"{shown}: digest {usual}", ""

    return [*by_node("model", "found", looks, judge), *_loaded(facts, model, shown)]


def _lacking(
    shown: str, model: Model, answer: Mapping[str, Any], hub: Mapping[str, Any] | None
) -> tuple[str, str, str]:
    fetch = f"run `hf download {model.name}` on these nodes, or put the model into a shared folder or s3:// and name that"
    if not answer.get("hub"):
        fix = "put the folder there on these nodes, or on shared storage or s3://, and name that"
        if "No module named" in answer["error"]:
            fix = "install the raybert of the driver on these nodes"
        return FAIL, f"{shown}: {answer['error']}", fix
    if answer["offline"]:
        return FAIL, f"{shown} is not in the cache here, and HF_HUB_OFFLINE is set", fetch
    if hub is None:
        fix = f"nothing, if these nodes reach the hub (doctor.hub=true asks); else {fetch}"
        return WARN, f"{shown} is not in the cache here; the job will fetch it from the hub", fix
    if "error" in hub:
        return FAIL, f"{shown} is not in the cache here, and the hub does not give it: {hub['error']}", fetch
    return OK, f"{shown}: the hub has it, the job will fetch it", ""


def _loaded(facts: Facts, model: Model, shown: str) -> list[Finding]:
    loads = facts.loads.get(model.setting, {})

    def judge(name: str) -> tuple[str, str, str]:
        answer = loads[name]
        if "error" in answer:
            fix = (
                "a large model or a busy node: doctor.timeout=600; a process that died: too little memory, most often"
                if answer.get("silent")
                else "see the message: it is that of the job"
            )
            return FAIL, f"{shown} does not load: {answer['error']}", fix
        note = f" (not faster: {answer['note']})" if answer.get("note") else ""
        return OK, f"{answer['found']}{note}, loaded in {answer['seconds']:g} s", ""

    return by_node("model", "loads", loads, judge)


# -- the service, and room for all


def _ports(facts: Facts, needs: Needs) -> list[Finding]:
    answered = {node.name: machine for node, machine in facts.answered()}

    def judge(name: str) -> tuple[str, str, str]:
        taken = answered[name]["taken"]
        if not taken:
            return OK, f"{', '.join(f'{host}:{port}' for host, port in needs.binds)} is free", ""
        host, port, why = taken[0]
        if facts.serving:
            return (
                WARN,
                f"{host}:{port}: {why}",
                "nothing, if it is the service that runs on this cluster already",
            )
        return (
            FAIL,
            f"{host}:{port} cannot be used: {why}",
            "stop what listens there, or take another serve.port",
        )

    return by_node("service", "port", answered, judge) if needs.binds else []


def _fits(facts: Facts, needs: Needs) -> list[Finding]:
    if facts.pool is None:
        return []
    if not facts.pool:
        return [Finding("workers", "room", OK, facts.fits)]
    if needs.grows:
        fix = "nothing, if the autoscaler may add such nodes; they were not examined"
        return [Finding("workers", "room", WARN, f"not yet: {facts.pool}", fix)]
    return [Finding("workers", "room", FAIL, facts.pool, "lower what workers asks for, or add nodes")]
