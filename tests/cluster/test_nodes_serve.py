"""A service with replicas on two nodes of which one is lost under load."""

import json
import re
import signal
import time

import pytest

from tests.cluster.hosts import Host, Hosts
from tests.cluster.test_serve_chaos import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.nodes, pytest.mark.timeout(600)]

# Runs on the head's host, for as long as its input is open: six clients that ask the proxies in turn
CLIENTS = """
import json, sys
from tests.cluster.test_serve_chaos import Load
with Load(sys.argv[1], tries=40) as load:
    sys.stdin.read()
print(json.dumps({"answers": load.answers, "retried": load.retried, "slowest": load.slowest}))
"""


@pytest.fixture
def service(cluster, tiny, tmp_path):
    """`raybert serve` on the head's host with two replicas, each of which fills a node."""
    settings = {"model.name": tiny, "model.dtype": "float32", "serve.name": "tiny", "serve.host": "0.0.0.0"}
    settings |= {"serve.port": 8000, "serve.anonymous": "true", "workers.count": 2, "workers.cpus": 2}
    words = [f"{key}={value}" for key, value in settings.items()]
    lines = tmp_path / "lines"
    with lines.open("w") as out:
        process = cluster[0].python(
            "-m", "raybert", "serve", *words, "workers.gpus=0", out=out, RAY_ADDRESS=cluster.address
        )
    wait_for(lambda: process.poll() is not None or "at http://" in lines.read_text(), 300)
    assert process.poll() is None, lines.read_text()
    yield cluster
    process.send_signal(signal.SIGINT)
    assert process.wait(120) == 0, lines.read_text()


def with_replicas(hosts: Hosts) -> list[Host]:
    return [host for host in hosts.hosts if host.processes("ServeReplica")]


def test_a_killed_node_loses_no_request_of_clients_that_retry(service):
    lost, other = with_replicas(service)
    wait_for(lambda: all(host.processes("ProxyActor") for host in (service[0], lost, other)), 120)
    places = " ".join(f"http://{host.address}:8000" for host in (service[0], lost))
    clients = service[0].python("-c", CLIENTS, places)
    time.sleep(8)
    service.kill(lost)
    seconds = wait_for(lambda: len(with_replicas(service)) == 2, 240)
    time.sleep(5)
    out, err = clients.communicate(timeout=120)
    assert re.search(r"^{", out, re.MULTILINE), err
    found = json.loads(out.splitlines()[-1])
    print(f"{found}; a second replica again after {seconds:.0f} s")
    assert set(found["answers"]) == {"200"}
    assert found["answers"]["200"] > 50
    assert found["retried"], "the kill was not felt"
