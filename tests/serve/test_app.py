"""Settings to a Ray Serve application, without a Ray."""

from pathlib import Path

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from raybert.config import ConfigError
from raybert.serve.app import app

SHIPPED = Path(__file__).parents[2] / "jobs" / "serve.yaml"


def test_the_shipped_file_is_one_that_ray_serve_takes():
    content = yaml.safe_load(SHIPPED.read_text())
    checked = ServeDeploySchema.model_validate(content)
    (application,) = checked.applications
    assert application.import_path == "raybert.serve.app:app"
    made = app(application.args)
    assert made._bound_deployment.name == "all-MiniLM-L6-v2"


def test_one_model_is_one_deployment_and_several_are_behind_a_router():
    who = {"serve.anonymous": True}
    one = app({"model.name": "some/model", "serve.name": "mine", **who})._bound_deployment
    assert one.name == "mine"
    several = {"a": {"model": {"name": "x"}, "workers": {"count": [1, 3]}}, "b/c": {"model": {"name": "y"}}}
    router = app({"models": several, **who})._bound_deployment
    assert router.name == "router"
    inner = {name: bound._bound_deployment for name, bound in router.init_kwargs.items()}
    assert {name: each.name for name, each in inner.items()} == {"a": "a", "b/c": "b--c"}
    assert inner["a"]._deployment_config.autoscaling_config.max_replicas == 3
    assert inner["b/c"]._deployment_config.autoscaling_config is None


def test_the_network_policy_opens_no_port_of_haproxy_but_the_one_for_requests():
    policy = yaml.safe_load((SHIPPED.parents[1] / "cluster/networkpolicy.yaml").read_text())
    assert (policy["kind"], policy["apiVersion"]) == ("NetworkPolicy", "networking.k8s.io/v1")
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    pods = policy["spec"]["podSelector"]
    for rule in policy["spec"]["ingress"]:
        open_to_all_ports = "ports" not in rule
        # Ray's own pods may reach each other everywhere, others only what is named
        assert open_to_all_ports == (rule["from"] == [{"podSelector": pods}])
        assert {port["port"] for port in rule.get("ports", [])} <= {8000, 8080, 8265}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, "who may ask"),
        ({"serve.anonymous": "auto"}, "who may ask"),
        ({"serve.anonymous": True, "model.name": ""}, "model.name is missing"),
        ({"serve.anonymous": True, "serve.port": 80}, "http_options"),
        ({"serve.anonymous": True, "serve.ingress": "haproxy"}, "RAY_SERVE_ENABLE_HA_PROXY"),
        ({"serve.anonymous": True, "models.b.model.name": "x"}, "exclude each other"),
        ({"serve.anonymous": True, "serve.name": "a name"}, "cannot be the name"),
        ({"serve.anonymous": True, "serve.nam": "a"}, "serve.nam"),
    ],
)
def test_settings_that_cannot_be_used(settings, told):
    with pytest.raises(ConfigError) as refused:
        app({"model.name": "m", **settings})
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)
