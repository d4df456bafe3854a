"""Bulk embedding over three nodes of which one is lost: every row exactly once, bytes as of an undisturbed run."""

import random
import subprocess
import threading
import time

import pytest

from tests.cluster.hosts import Host, Hosts
from tests.cluster.processes import Job, wait_for, write_corpus
from tests.cluster.test_kill import ROWS, check

pytestmark = [pytest.mark.slow, pytest.mark.nodes, pytest.mark.timeout(900)]
ROWS_PER_SHARD, SHARDS = 10, 402


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "in"
    write_corpus(folder, ROWS)
    return str(folder)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny, corpus):
    """Hashes of a run on this machine alone, that nothing happened to."""
    job = Job(tiny, corpus, str(tmp_path_factory.mktemp("undisturbed") / "out"), ROWS_PER_SHARD)
    assert "4,000 embedded + 0 rejected" in job.run("workers.count=2")
    return job.hashes()


@pytest.fixture
def job(tiny, corpus, tmp_path):
    return Job(tiny, corpus, str(tmp_path / "out"), ROWS_PER_SHARD)


def start(job: Job, hosts: Hosts) -> subprocess.Popen[str]:
    """The command on the head's host, with an encoder a node."""
    arguments = ["-m", "raybert", "embed", *job.arguments, "workers.count=3", "workers.gpus=0"]
    return hosts[0].python(*arguments, RAY_ADDRESS=hosts.address)


def node_at_work(hosts: Hosts) -> Host:
    """A node with encoders, not that of the driver."""
    return next(host for host in hosts.hosts[1:] if host.processes("EncodeAndCommit"))


def longest_pause(job: Job, until: threading.Event) -> float:
    """The longest time without a commit, in seconds."""
    commits, since, longest = job.commits(), time.monotonic(), 0.0
    while not until.wait(0.1):
        longest = max(longest, time.monotonic() - since)
        if job.commits() != commits:
            commits, since = job.commits(), time.monotonic()
    return longest


def end(process: subprocess.Popen[str], job: Job) -> tuple[str, float]:
    """What the run said to its good end, and its longest pause from now on."""
    ended, pauses = threading.Event(), []
    thread = threading.Thread(target=lambda: pauses.append(longest_pause(job, ended)))
    thread.start()
    try:
        out, err = process.communicate(timeout=400)
    finally:
        ended.set()
        thread.join()
    assert process.returncode == 0, f"exit {process.returncode}\n{out}\n{err}"
    assert "4,000 embedded + 0 rejected" in out
    return err, pauses[0]


def test_a_node_killed_at_a_random_moment(cluster, job, undisturbed):
    process = start(job, cluster)
    moment = random.Random(7).randint(5, SHARDS // 2)
    assert wait_for(lambda: job.commits() >= moment, process, 300)
    cluster.kill(node_at_work(cluster))
    at = job.commits()
    assert at < SHARDS, "the node must die while there is work"
    _, pause = end(process, job)
    check(job, undisturbed)
    print(f"killed at {at} of {SHARDS} shards; longest pause {pause:.1f} s; {ROWS:,} rows, none twice")


def test_a_node_without_network_for_half_a_minute(cluster, job, undisturbed):
    process = start(job, cluster)
    assert wait_for(lambda: job.commits() >= 20, process, 300)
    host = node_at_work(cluster)
    cluster.cut(host)
    at = job.commits()
    time.sleep(30)
    assert process.poll() is None, "the run cannot end without what that node has in its hands"
    cluster.mend(host)
    back = job.commits()
    _, pause = end(process, job)
    check(job, undisturbed)
    print(
        f"cut off at {at} of {SHARDS} shards, back at {back}; longest pause {pause:.1f} s; {ROWS:,} rows, none twice"
    )
