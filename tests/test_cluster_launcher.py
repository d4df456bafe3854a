"""The files for `ray up`: against Ray's schema and the clouds' own descriptions of a virtual machine."""

import json
from importlib import resources
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
FILES = [ROOT / "cluster/aws.yaml", ROOT / "cluster/gcp.yaml"]
ROLE = "arn:aws:iam::123456789012:instance-profile/raybert"

by_file = pytest.mark.parametrize("file", FILES, ids=lambda path: path.stem)


def read(file: Path) -> dict:
    return yaml.safe_load(file.read_text())


@by_file
def test_ray_takes_it(file):
    import ray.autoscaler
    from jsonschema import ValidationError, validate

    schema = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
    config = read(file)
    validate(config, schema)
    for place in (config, config["docker"], config["auth"], config["available_node_types"]["gpu_spot"]):
        place["unknown"] = 1
        with pytest.raises(ValidationError, match="unknown"):
            validate(config, schema)
        del place["unknown"]


@by_file
def test_nothing_but_the_head_runs_while_nothing_is_asked(file):
    config = read(file)
    groups = config["available_node_types"]
    head = groups.pop(config["head_node_type"])
    assert head["resources"]["CPU"] == 0
    assert "--num-cpus=0" in config["head_start_ray_commands"][-1]
    assert all(group["min_workers"] == 0 for group in groups.values())
    assert config["max_workers"] == sum(group["max_workers"] for group in groups.values())
    assert config["provider"]["cache_stopped_nodes"] is False
    assert config["idle_timeout_minutes"] <= 10


@by_file
def test_the_token_is_on_and_the_dashboard_is_closed(file):
    config = read(file)
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"]["/home/ray/.ray/auth_token"] == "~/.ray/auth_token"
    assert "--dashboard-host=127.0.0.1" in config["head_start_ray_commands"][-1]


@by_file
def test_spot_nodes_say_that_they_are(file):
    for name, group in read(file)["available_node_types"].items():
        node = group["node_config"]
        spot = "InstanceMarketOptions" in node or "provisioningModel" in node.get("scheduling", {})
        assert spot == name.endswith("_spot")
        assert group.get("labels", {}) == ({"market": "spot"} if spot else {})


@by_file
def test_what_the_set_up_installs_is_there(file):
    config = read(file)
    assert (ROOT / config["file_mounts"]["/home/ray/raybert"]).resolve() == ROOT.resolve()
    (command,) = config["setup_commands"]
    assert "--constraint /home/ray/raybert/constraints.txt" in command
    assert "raybert" not in config["rsync_exclude"]


@pytest.fixture
def ec2(monkeypatch, tmp_path):
    """Amazon's API as moto answers it; botocore checks every parameter against Amazon's own description first."""
    moto = pytest.importorskip("moto")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-west-2")
    monkeypatch.setenv("HOME", str(tmp_path))  # Ray puts a new SSH key there
    (tmp_path / ".ssh").mkdir()
    with moto.mock_aws():
        import boto3

        boto3.client("iam").create_instance_profile(InstanceProfileName="raybert")
        yield boto3.client("ec2")


def aws_nodes(config: dict) -> dict[str, str]:
    """Start one node of each group as `ray up` does: the ids by group."""
    from ray.autoscaler._private.aws.config import bootstrap_aws
    from ray.autoscaler._private.providers import _get_node_provider
    from ray.autoscaler._private.util import prepare_config

    config = prepare_config(config)
    # Ray would make a role with all rights, and wait half a minute for it
    config["available_node_types"]["head"]["node_config"]["IamInstanceProfile"] = {"Arn": ROLE}
    config = bootstrap_aws(config)
    provider = _get_node_provider(config["provider"], config["cluster_name"], use_cache=False)
    tags = {"ray-node-kind": "worker", "ray-node-status": "uninitialized", "ray-launch-config": "x"}
    return {
        name: next(iter(provider.create_node(group["node_config"], {**tags, "ray-node-name": name}, 1)))
        for name, group in config["available_node_types"].items()
    }


@pytest.mark.slow
def test_amazon_starts_each_of_its_nodes(ec2):
    config = read(FILES[0])
    started = aws_nodes(config)
    assert set(started) == set(config["available_node_types"])
    for name, node in started.items():
        (reservation,) = ec2.describe_instances(InstanceIds=[node])["Reservations"]
        (instance,) = reservation["Instances"]
        wanted = config["available_node_types"][name]["node_config"]
        assert instance["InstanceType"] == wanted["InstanceType"]
        assert (instance.get("InstanceLifecycle") == "spot") == name.endswith("_spot")
        (group,) = instance["SecurityGroups"]
    (rules,) = ec2.describe_security_groups(GroupIds=[group["GroupId"]])["SecurityGroups"]
    opened = [rule for rule in rules["IpPermissions"] if rule.get("IpRanges")]
    assert [(rule["FromPort"], rule["ToPort"]) for rule in opened] == [(22, 22)]


@pytest.mark.parametrize("wrong", [{"InstanceTyp": "x"}, {"MetadataOptions": {"HttpTokens": 1}}], ids=str)
def test_amazon_refuses_a_wrong_node(wrong):
    session = pytest.importorskip("botocore.session").get_session()
    from botocore.validate import ParamValidator

    shape = session.get_service_model("ec2").operation_model("RunInstances").input_shape
    node = read(FILES[0])["available_node_types"]["head"]["node_config"] | {"MinCount": 1, "MaxCount": 1}
    assert not ParamValidator().validate(node, shape).has_errors()
    assert ParamValidator().validate(node | wrong, shape).has_errors()


def google_schemas() -> dict:
    """Google's description of Compute Engine, as its client brings it."""
    pytest.importorskip("googleapiclient")
    file = resources.files("googleapiclient.discovery_cache") / "documents/compute.v1.json"
    return json.loads(file.read_text())["schemas"]


def check_google(value: object, schema: dict, schemas: dict, where: str) -> None:
    """Raise AssertionError where `value` has a field or a type that Google's description has not."""
    schema = schemas[schema["$ref"]] if "$ref" in schema else schema
    kinds = {"object": dict, "array": list, "string": str, "integer": int, "boolean": bool}
    # 64-bit numbers are strings of digits in JSON, and taken as numbers too
    kind = (str, int) if schema.get("format") == "int64" else kinds[schema["type"]]
    assert isinstance(value, kind), f"{where}: {value!r} is no {schema['type']}"
    if isinstance(value, dict):
        for key, each in value.items():
            inner = schema.get("properties", {}).get(key) or schema.get("additionalProperties")
            assert inner, f"{where}.{key}: unknown"
            check_google(each, inner, schemas, f"{where}.{key}")
    elif isinstance(value, list):
        for each in value:
            check_google(each, schema["items"], schemas, f"{where}[]")
    elif "enum" in schema:
        assert value in schema["enum"], f"{where}: {value!r} is none of {schema['enum']}"


def test_google_knows_every_setting_of_its_nodes():
    schemas = google_schemas()
    for name, group in read(FILES[1])["available_node_types"].items():
        check_google(group["node_config"], schemas["Instance"], schemas, name)


@pytest.mark.parametrize(
    "wrong",
    [{"machinType": "x"}, {"scheduling": {"provisioningModel": "CHEAP"}}, {"disks": {"boot": True}}],
    ids=str,
)
def test_google_refuses_a_wrong_node(wrong):
    schemas = google_schemas()
    with pytest.raises(AssertionError, match=r"unknown|is none of|is no array"):
        check_google(wrong, schemas["Instance"], schemas, "node")
