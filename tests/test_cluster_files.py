"""The files in cluster/ for Kubernetes: against the real schemas, and each other."""

import copy
import json
import re
import shlex
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError

from raybert.__main__ import parse
from tests.conftest import SHARED

ROOT = Path(__file__).parent.parent
CLUSTER = ROOT / "cluster"
MANIFESTS = sorted(CLUSTER.glob("ray*.yaml"))
CRDS = SHARED.parent / "kuberay_crds"
METADATA = {
    "type": "object",
    "required": ["name"],
    "properties": {
        "name": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": {"additionalProperties": {"type": "string"}},
        "annotations": {"additionalProperties": {"type": "string"}},
    },
    "additionalProperties": False,
}

by_manifest = pytest.mark.parametrize("file", MANIFESTS, ids=lambda path: path.stem)
with_schemas = pytest.mark.skipif(not CRDS.is_dir(), reason="needs KubeRay's schemas beside the checkout")


def read(name: str | Path) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / name).read_text())


def spec_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """The RayClusterSpec in it."""
    spec = manifest["spec"]
    if manifest["kind"] == "RayCronJob":
        spec = spec["jobTemplate"]
    return spec.get("rayClusterSpec") or spec.get("rayClusterConfig") or spec


def pods(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The specs of its Ray pods, the head's first."""
    spec = spec_of(manifest)
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


# -- schemas


@cache
def schema_of(kind: str) -> dict[str, Any]:
    """KubeRay's schema of a kind in version v1, with unknown keys forbidden."""
    definition = yaml.load((CRDS / f"ray.io_{kind.lower()}s.yaml").read_text(), Loader=yaml.CSafeLoader)
    (version,) = (each for each in definition["spec"]["versions"] if each["name"] == "v1")
    schema = strict(version["schema"]["openAPIV3Schema"])
    return schema | {"properties": {**schema["properties"], "metadata": METADATA}, "required": ["spec"]}


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """A structural schema as the API server's strict validation reads it: what it does not name is an error."""
    found = dict(schema)
    if "properties" in schema:
        found["properties"] = {key: strict(each) for key, each in schema["properties"].items()}
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            found[key] = strict(schema[key])
    if schema.get("type") == "object" and not schema.get("x-kubernetes-preserve-unknown-fields"):
        found.setdefault("additionalProperties", False)
    return found


def check(manifest: dict[str, Any]) -> None:
    Draft202012Validator(schema_of(manifest["kind"])).validate(manifest)


@with_schemas
@by_manifest
def test_kuberay_knows_every_key(file):
    manifest = read(file)
    assert manifest["apiVersion"] == "ray.io/v1"
    check(manifest)


@with_schemas
@by_manifest
def test_what_is_commented_out_is_right_too(file):
    text = file.read_text()
    examples = re.findall(r"^ *# (nodeSelector: .*)$", text, re.MULTILINE)
    assert len(examples) == 3
    for example in examples:
        used = text.replace(f"# {example}", example)
        assert used != text
        check(yaml.safe_load(used))


@with_schemas
@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("unknown", 1),
        ("authOptions.mode", "open"),
        ("autoscalerOptions.idleTimeoutSecond", 60),
        ("workerGroupSpecs.1.groupName", None),
        ("workerGroupSpecs.1.minReplicas", "0"),
        ("headGroupSpec.rayStartParams.num-cpus", 0),
        ("headGroupSpec.template.spec.terminationGracePeriod", 60),
        ("headGroupSpec.template.spec.containers.0.resources.limits.memory", "16 Gi"),
        ("headGroupSpec.template.spec.volumes.0.emptyDir.size", "5Gi"),
        ("headGroupSpec.template.spec.containers.0.securityContext.runAsNonRoot", "yes"),
    ],
)
def test_a_mistake_is_found(path, value):
    manifest = copy.deepcopy(read("raycluster.yaml"))
    *way, last = path.split(".")
    place = manifest["spec"]
    for key in way:
        place = place[int(key) if key.isdecimal() else key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    with pytest.raises(ValidationError):
        check(manifest)


@with_schemas
def test_the_network_policy_is_one():
    policy = read("networkpolicy.yaml")
    assert (policy["apiVersion"], policy["kind"]) == ("networking.k8s.io/v1", "NetworkPolicy")
    assert set(policy["spec"]) == {"podSelector", "policyTypes", "ingress"}
    cluster = schema_of("RayCluster")["properties"]["spec"]["properties"]
    rules = cluster["networkPolicy"]["properties"]["head"]["properties"]["ingressRules"]  # Kubernetes' own
    Draft202012Validator(rules).validate(policy["spec"]["ingress"])
    selector = rules["items"]["properties"]["from"]["items"]["properties"]["podSelector"]
    Draft202012Validator(selector).validate(policy["spec"]["podSelector"])


# -- pods


@by_manifest
def test_pods_are_what_production_wants(file):
    image = (CLUSTER / "Dockerfile").read_text()
    for pod in pods(read(file)):
        (container,) = pod["containers"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        limits = container["resources"]["limits"]
        assert container["resources"]["requests"] == limits
        assert "ephemeral-storage" in limits
        assert pod["terminationGracePeriodSeconds"] >= 60
        assert "ray stop" in " ".join(container["lifecycle"]["preStop"]["exec"]["command"])
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        volumes = {volume["name"]: volume["emptyDir"] for volume in pod["volumes"]}
        assert set(mounts) == set(volumes)
        assert mounts["shm"] == "/dev/shm"
        assert volumes["shm"]["medium"] == "Memory"
        # Ray gives its object store 30 % of the memory, on the disk where /dev/shm is smaller
        assert gib(volumes["shm"]["sizeLimit"]) >= 0.3 * gib(limits["memory"])
        assert f"HF_HOME={mounts['models']}/" in image
        if "nvidia.com/gpu" in limits:
            assert {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"} in pod[
                "tolerations"
            ]


def gib(quantity: str) -> float:
    return float(quantity.removesuffix("Gi"))


@by_manifest
def test_only_who_has_the_token_submits_and_the_head_computes_nothing(file):
    spec = spec_of(read(file))
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    assert pods(read(file))[1].get("automountServiceAccountToken") is False


@by_manifest
def test_nothing_but_heads_and_services_run_while_nothing_is_asked(file):
    manifest = read(file)
    spec = spec_of(manifest)
    assert spec["enableInTreeAutoscaling"] is True
    waiting = {group["groupName"]: group["minReplicas"] for group in spec["workerGroupSpecs"]}
    serving = manifest["kind"] == "RayService"
    assert waiting == {name: int(serving and name == "cpu") for name in waiting}
    assert all(group["replicas"] == group["minReplicas"] for group in spec["workerGroupSpecs"])


def test_all_clusters_are_the_same_but_for_what_they_are_for():
    model = read("raycluster.yaml")["spec"]
    assert spec_of(read("rayjob-embed.yaml")) == model
    assert spec_of(read("raycronjob-embed.yaml")) == model
    training = spec_of(read("rayjob-pretrain.yaml"))
    assert training == {**model, "workerGroupSpecs": model["workerGroupSpecs"][1:]}
    service = copy.deepcopy(spec_of(read("rayservice.yaml")))
    assert service.pop("gcsFaultToleranceOptions")
    service["workerGroupSpecs"][0] |= {"replicas": 0, "minReplicas": 0}
    for group in (service["headGroupSpec"], *service["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        pod["terminationGracePeriodSeconds"] = 60
        pod["containers"][0]["lifecycle"]["preStop"]["exec"]["command"] = ["ray", "stop"]
        del pod["containers"][0]["env"]
    assert service == model


# -- jobs and the service


@pytest.mark.parametrize("name", ["rayjob-embed.yaml", "rayjob-pretrain.yaml", "raycronjob-embed.yaml"])
def test_its_entrypoint_is_a_job_that_fits_on_its_cluster(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    manifest = read(name)
    job = manifest["spec"].get("jobTemplate", manifest["spec"])
    python, script, *arguments = shlex.split(job["entrypoint"])
    assert (python, Path(script).parent) == ("python", Path("jobs"))
    assert Path(script).exists()
    config = parse(Path(script).stem, arguments)
    groups = {group["groupName"]: group for group in job["rayClusterSpec"]["workerGroupSpecs"]}
    assert config.workers.gpus == 1
    assert config.workers.count[1] <= groups["gpu"]["maxReplicas"]
    assert job["shutdownAfterJobFinishes"] is True
    assert job["backoffLimit"] > 0
    submitter = job["submitterPodTemplate"]
    assert submitter["metadata"]["labels"] == {"raybert/submits": "true"}
    rules = read("networkpolicy.yaml")["spec"]["ingress"]
    let_in = {"podSelector": {"matchLabels": submitter["metadata"]["labels"]}}
    assert {"from": [let_in], "ports": [{"port": 8265}]} in rules


def test_a_night_ends_before_the_next_one():
    spec = read("raycronjob-embed.yaml")["spec"]
    assert re.fullmatch(r"\d+ \d+ \* \* \*", spec["schedule"])
    assert 0 < spec["jobTemplate"]["activeDeadlineSeconds"] < 24 * 3600


def test_the_service_is_that_of_jobs():
    from ray.serve.schema import ServeDeploySchema

    from raybert.serve.app import app

    text = read("rayservice.yaml")["spec"]["serveConfigV2"]
    config = yaml.safe_load(text)
    assert config == yaml.safe_load((ROOT / "jobs/serve.yaml").read_text())
    schema = ServeDeploySchema.model_validate(config)
    assert schema.model_dump(exclude_unset=True) == config  # it drops what it does not know
    (application,) = schema.applications
    assert application.import_path == "raybert.serve.app:app"
    assert app(application.args)
    with pytest.raises(ValueError, match="did you mean"):
        app({**application.args, "worker": {}})
    variable = application.args["serve"]["keys_from"].removeprefix("env:")
    for pod in pods(read("rayservice.yaml")):
        assert variable in {each["name"] for each in pod["containers"][0]["env"]}
        # what is asked may take so long
        assert pod["terminationGracePeriodSeconds"] > config["http_options"]["request_timeout_s"]


# -- what belongs together


def test_ray_is_the_same_version_everywhere():
    (pin,) = re.findall(r"^ray==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    texts = {path.name: path.read_text() for path in CLUSTER.iterdir() if path.is_file()}
    named = {
        name: re.findall(r"(?:rayproject/ray:|rayVersion: )\"?(\d[\d.]*\d)", text)
        for name, text in texts.items()
    }
    assert {name for name, versions in named.items() if versions} >= {
        *(path.name for path in MANIFESTS),
        *("Dockerfile", "aws.yaml", "gcp.yaml"),
    }
    assert {version for versions in named.values() for version in versions} == {pin}


def test_the_image_is_the_same_everywhere():
    images = set()
    for file in MANIFESTS:
        images |= set(re.findall(r"image: (?:&image )?([^*\s]+)", file.read_text()))
    assert len(images) == 1
    assert f"--tag {images.pop()} ." in (CLUSTER / "Dockerfile").read_text()


def test_no_file_holds_a_secret():
    for path in CLUSTER.rglob("*.yaml"):
        text = path.read_text()
        assert not re.search(r"AKIA[A-Z0-9]{16}|BEGIN [A-Z ]*PRIVATE KEY|^kind: Secret", text, re.MULTILINE)
        for name, rest in re.findall(r"name: (\w*(?:KEY|TOKEN|PASSWORD|SECRET)\w*)(.*)", text):
            assert "valueFrom" in rest, f"{path.name}: {name} has its value in the file"


def test_the_image_gets_what_it_copies():
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    copied = [line.split()[2:-1] for line in lines if line.startswith("COPY ")]
    kept = re.findall(r"^!(.*)$", (CLUSTER / "Dockerfile.dockerignore").read_text(), re.MULTILINE)
    assert sorted(source for sources in copied for source in sources) == sorted(kept)
    assert all((ROOT / name).exists() for name in kept)
    assert [line for line in lines if line.startswith("USER ")] == ["USER ray"]
    (install,) = (line for line in lines if line.startswith("RUN pip install"))
    assert "--constraint constraints.txt" in install


# -- what is seen


def test_prometheus_reads_every_pod_that_may_be_read():
    monitor = read("podmonitor.yaml")
    policy = read("networkpolicy.yaml")["spec"]
    assert (monitor["apiVersion"], monitor["kind"]) == ("monitoring.coreos.com/v1", "PodMonitor")
    # of the operator's schema: https://prometheus-operator.dev/docs/api-reference/api/
    assert set(monitor["spec"]) == {"namespaceSelector", "selector", "podMetricsEndpoints"}
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert set(endpoint) == {"port", "interval", "relabelings"}
    assert all(set(each) == {"sourceLabels", "targetLabel"} for each in endpoint["relabelings"])
    assert endpoint["port"] == "metrics"  # as KubeRay names 8080
    assert monitor["spec"]["selector"] == policy["podSelector"]
    space = {"matchLabels": {"kubernetes.io/metadata.name": monitor["metadata"]["namespace"]}}
    assert {"from": [{"namespaceSelector": space}], "ports": [{"port": 8080}]} in policy["ingress"]


def test_the_dashboard_shows_metrics_that_there_are():
    from raybert.serve import metrics

    board = json.loads((CLUSTER / "grafana-serving.json").read_text())
    asked = " ".join(target["expr"] for panel in board["panels"] for target in panel.get("targets", []))
    named = set(re.findall(r"\bray_\w+", asked))
    assert len(named) > 6
    source = Path(metrics.__file__).read_text()
    told = {f"raybert_{name}_total" for name in metrics._COUNTERS}
    told |= set(re.findall(r'"(raybert_queue_\w+)"', source))
    told |= {f"{name}_bucket" for name in re.findall(r'"(raybert_(?:phase|step)_\w+)"', source)}
    assert named <= {f"ray_{name}" for name in told}


def commands() -> list[str]:
    """The lines of the README's blocks of shell, continued ones joined."""
    blocks = re.findall(r"```bash\n(.*?)```", (CLUSTER / "README.md").read_text(), re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def test_the_readme_names_what_there_is(monkeypatch):
    monkeypatch.chdir(ROOT)
    text = (CLUSTER / "README.md").read_text()
    for name in re.findall(r"(?:cluster|jobs)/[\w.-]+\.\w+", text):
        assert Path(name).exists(), name
    for path in CLUSTER.iterdir():
        if path.name not in ("README.md", "Dockerfile.dockerignore"):
            assert f"`{path.name}`" in text, f"{path.name} is not in the table"
    jobs = [shlex.split(line.partition(" -- ")[2]) for line in commands() if "ray job submit" in line]
    assert jobs
    for python, script, *arguments in jobs:
        assert python == "python"
        assert parse(Path(script).stem, arguments)
