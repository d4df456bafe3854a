"""The service under load while things are killed, stopped and replaced."""

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
import psutil
import pytest

from raybert.config import load
from raybert.config.serving import ServeConfig
from tests.cluster.processes import free_ports
from tests.encoder.tiny import tiny_model

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def config(model: str, **settings: object) -> ServeConfig:
    given = {"model.name": model, "model.dtype": "float32", "serve.name": "tiny", "workers.cpus": 1}
    return load(ServeConfig, settings={**given, **settings})


def deploy(settings: ServeConfig) -> None:
    from ray import serve

    from raybert.serve.app import build
    from raybert.serve.command import LOGGING

    serve.run(build(settings), name="raybert", logging_config=LOGGING)


@pytest.fixture(scope="module")
def url(ray_local: None) -> Iterator[str]:
    """Where a service will answer, once it is deployed."""
    from ray import serve

    (port,) = free_ports(1)
    serve.start(http_options={"host": "127.0.0.1", "port": port, "request_timeout_s": 20})
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


@pytest.fixture
def replicas(url: str, tiny: str) -> str:
    """The service with two replicas of a tiny model."""
    deploy(config(tiny, **{"workers.count": 2}))
    wait_for(lambda: len(processes("ServeReplica")) == 2, 60)  # those of the test before go last
    return url


def processes(kind: str) -> list[psutil.Process]:
    """Of Ray Serve, of this cluster."""
    found = []
    for each in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if kind in " ".join(each.cmdline()) and each.status() != psutil.STATUS_ZOMBIE:
                found.append(each)
    return found


@dataclass
class Load:
    """Clients that ask one after the other, each request until it is answered, at one of the addresses in `url` each time."""

    url: str
    tries: int = 1
    clients: int = 6
    answers: Counter = field(default_factory=Counter)
    retried: Counter = field(default_factory=Counter)
    dimensions: set = field(default_factory=set)
    slowest: float = 0.0

    def __enter__(self) -> "Load":
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(60)

    def _ask(self, number: int) -> None:
        count = 0
        with httpx.Client(timeout=25) as client:
            while not self._stop.is_set():
                count += 1
                started = time.monotonic()
                status = self._until_answered(client, f"text {number} {count}")
                with self._lock:
                    self.answers[status] += 1
                    self.slowest = max(self.slowest, time.monotonic() - started)

    def _until_answered(self, client: httpx.Client, text: str) -> object:
        status: object = None
        places = self.url.split()
        for attempt in range(self.tries):
            try:
                place = places[(hash(text) + attempt) % len(places)]
                reply = client.post(f"{place}/v1/embeddings", json={"input": text, "model": "tiny"})
                status = reply.status_code
                if status == 200:
                    self.dimensions.add(len(reply.json()["data"][0]["embedding"]))
                    return 200
            except httpx.TransportError as error:
                status = type(error).__name__
            with self._lock:
                self.retried[status] += 1
            time.sleep(min(2.0, 0.1 * 2**attempt))
        return status


def wait_for(condition, seconds: float) -> float:
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < seconds, "it did not happen in time"
        time.sleep(0.2)
    return time.monotonic() - started


def test_a_killed_replica_loses_no_request_of_a_client_that_retries(replicas):
    before = {each.pid for each in processes("ServeReplica")}
    assert len(before) == 2
    with Load(replicas, tries=8) as load:
        time.sleep(2)
        os.kill(next(iter(before)), signal.SIGKILL)
        wait_for(lambda: len({each.pid for each in processes("ServeReplica")} - before) == 1, 60)
        time.sleep(3)
    print(load)
    assert set(load.answers) == {200}
    assert load.answers[200] > 50


def test_a_killed_proxy_loses_no_request_of_a_client_that_retries(replicas):
    (proxy,) = processes("ProxyActor")
    with Load(replicas, tries=40) as load:
        time.sleep(2)
        os.kill(proxy.pid, signal.SIGKILL)
        wait_for(lambda: any(each.pid != proxy.pid for each in processes("ProxyActor")), 60)
        time.sleep(5)
    print(load)
    assert set(load.answers) == {200}
    assert load.retried, "the kill was not felt: was it the proxy?"


def test_a_new_model_rolls_in_and_back_without_a_failed_request(replicas, tiny, tmp_path):
    other = str(tiny_model(tmp_path / "other", dense=16))
    with Load(replicas) as load:
        time.sleep(1)
        deploy(config(other, **{"workers.count": 2}))
        wait_for(lambda: 16 in load.dimensions, 30)
        load.dimensions.clear()
        deploy(config(tiny, **{"workers.count": 2}))
        wait_for(lambda: 32 in load.dimensions, 30)
    print(load)
    assert set(load.answers) == {200}


def test_a_model_that_does_not_load_leaves_the_old_one_serving(replicas, tmp_path):
    with Load(replicas) as load:
        time.sleep(1)
        with pytest.raises(RuntimeError):
            deploy(config(str(tmp_path), **{"workers.count": 2}))
        time.sleep(1)
    print(load)
    assert set(load.answers) == {200}


def test_a_stopped_replica_is_replaced(replicas):
    before = processes("ServeReplica")
    with Load(replicas, tries=8) as load:
        time.sleep(1)
        os.kill(before[0].pid, signal.SIGSTOP)
        seconds = wait_for(lambda: set(processes("ServeReplica")) - set(before), 60)
        wait_for(lambda: not before[0].is_running(), 60)
        time.sleep(2)
    print(load, seconds)
    assert set(load.answers) == {200}
