"""Several models behind a router, and what Prometheus is told, in a real Ray Serve."""

import json
import re
import time
from pathlib import Path

import httpx
import numpy as np
import pytest

from raybert import Encoder
from raybert.config import load
from raybert.config.serving import ServeConfig
from tests.cluster.test_serve_chaos import deploy, url  # noqa: F401
from tests.encoder.tiny import tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
DASHBOARD = Path(__file__).parents[2] / "cluster" / "grafana-serving.json"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    prompts = {"query": "reads "}
    return {
        "one": str(tiny_model(folder / "one", prompts=prompts)),
        "team/two": str(tiny_model(folder / "two", dense=16)),
    }


@pytest.fixture(scope="module")
def several(url, models):  # noqa: F811
    served = {name: {"model": {"name": path, "dtype": "float32"}} for name, path in models.items()}
    for each in served.values():
        each["workers"] = {"cpus": 1}
    deploy(load(ServeConfig, settings={"models": served}))
    return url


def ask(url, model, path="/v1/embeddings", **more):  # noqa: F811
    body = {"input": ["the quick fox"], "model": model, **more}
    return httpx.post(url + path, json=body, timeout=60)


def test_each_model_answers_for_itself(several, models):
    for name, path in models.items():
        reply = ask(several, name)
        assert reply.status_code == 200, reply.text
        vector = np.array(reply.json()["data"][0]["embedding"], np.float32)
        np.testing.assert_allclose(
            vector, Encoder.load(path, dtype="float32").encode("the quick fox")[0], atol=1e-5
        )
    assert [each["id"] for each in httpx.get(several + "/v1/models").json()["data"]] == list(models)
    assert httpx.get(several + "/health", timeout=30).json() == {"status": "ok"}
    assert set(httpx.get(several + "/info").json()["models"]) == set(models)


def test_a_prompt_by_the_name_of_the_model(several, models):
    encoder = Encoder.load(models["one"], dtype="float32")
    vector = ask(several, "one:query").json()["data"][0]["embedding"]
    np.testing.assert_allclose(vector, encoder.encode("the quick fox", prompt_name="query")[0], atol=1e-5)


def test_a_model_by_its_path(several):
    reply = httpx.post(several + "/models/team/two/embed", json={"inputs": "the fox"}, timeout=60)
    assert reply.status_code == 200, reply.text
    assert len(reply.json()[0]) == 16


def test_errors_come_through_the_router(several):
    assert ask(several, "three").status_code == 404
    reply = ask(several, "one", dimensions=1000)
    assert reply.status_code == 400
    assert reply.json()["error"]["param"] == "dimensions"
    unnamed = httpx.post(several + "/embed", json={"inputs": "a"})
    assert unnamed.status_code == 422
    assert "name one as `model`" in unnamed.json()["error"]


def test_the_dashboard_shows_what_replicas_export(several):
    import ray

    ask(several, "one")
    with httpx.Client() as client:  # a refusal, so that its counter exists
        client.post(several + "/v1/embeddings", json={"input": "a " * 5000, "model": "one"}, timeout=60)
    node = ray.nodes()[0]
    address = f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
    wanted = set(re.findall(r"ray_raybert_\w+", DASHBOARD.read_text()))
    wanted -= {"ray_raybert_rejected_total"}  # nothing was refused yet
    assert len(wanted) > 6
    missing = wanted
    for _ in range(60):
        exported = set(re.findall(r"^(ray_raybert_\w+)", httpx.get(address).text, re.MULTILINE))
        missing = wanted - exported
        if not missing:
            break
        time.sleep(1)
    assert not missing
    assert 'model="one"' in httpx.get(address).text
    json.loads(DASHBOARD.read_text())
