"""SIGKILL for the driver, an encoder, a node: every row exactly once, byte for byte what an undisturbed run writes."""

import os
import random
import re
import signal
import time

import psutil
import pytest

from raybert.corpus.ledger import Ledger
from tests.cluster.processes import Job, encoders, kill_tree, random_moment, wait_for, write_corpus

ROWS, SHARDS = 4000, 81


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus") / "in"
    write_corpus(folder, ROWS)
    return str(folder)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, tiny, corpus):
    """Hashes of a run that nothing happened to."""
    job = Job(tiny, corpus, str(tmp_path_factory.mktemp("undisturbed") / "out"))
    assert "4,000 embedded + 0 rejected" in job.run("workers.count=2")
    hashes = job.hashes()
    assert len(hashes) == SHARDS
    return hashes


def check(job: Job, undisturbed) -> None:
    assert job.hashes() == undisturbed
    ledger = Ledger(job.output)
    assert ledger.store.sizes("_raybert/tmp") == {}
    assert sum(commit.embedded for commit in ledger.commits(ledger.done()).values()) == ROWS


def kill_driver_and_resume(job: Job, kills: int, seed: int) -> int:
    """Kill the driver `kills` times at random moments, resuming each time; returns how often it was really running."""
    rng = random.Random(seed)
    hit = 0
    for i in range(kills):
        process = job.start(f"workers.count={rng.choice([1, 2])}")
        before = job.commits()
        # a part of its share only: what is committed during the pause must not end the job
        commits, pause = random_moment(rng, (SHARDS - before) // (2 * (kills - i + 1)))
        wait_for(lambda at=before + commits: job.commits() >= at, process)
        time.sleep(pause)
        if process.poll() is None:
            hit += 1
            kill_tree(process)
    job.run()
    return hit


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_driver_killed_at_ten_random_moments(tiny, corpus, undisturbed, tmp_path):
    job = Job(tiny, corpus, str(tmp_path / "out"))
    assert kill_driver_and_resume(job, kills=10, seed=2) == 10
    check(job, undisturbed)


def test_encoder_killed_then_the_driver(tiny, corpus, undisturbed, tmp_path):
    job = Job(tiny, corpus, str(tmp_path / "out"))
    process = job.start("workers.count=2")
    assert wait_for(lambda: job.commits() >= 5, process)
    next(encoders(process.pid)).send_signal(signal.SIGKILL)
    at = job.commits()
    assert wait_for(lambda: job.commits() >= at + 10, process), "the run must go on without that encoder"
    kill_tree(process)
    assert job.commits() < SHARDS
    job.run("workers.count=1")
    check(job, undisturbed)


@pytest.mark.slow
def test_encoder_killed_and_the_run_ends_well(tiny, corpus, undisturbed, tmp_path):
    job = Job(tiny, corpus, str(tmp_path / "out"))
    process = job.start("workers.count=1")
    assert wait_for(lambda: job.commits() >= 5, process)
    next(encoders(process.pid)).send_signal(signal.SIGKILL)
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, out + err
    check(job, undisturbed)


@pytest.mark.slow
def test_a_run_whose_ray_dies_says_so(tiny, corpus, undisturbed, tmp_path):
    job = Job(tiny, corpus, str(tmp_path / "out"))
    process = job.start("workers.count=1")
    assert wait_for(lambda: job.commits() >= 3, process, 250)
    (raylet,) = (each for each in psutil.Process(process.pid).children() if each.name() == "raylet")
    raylet.kill()
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1, err
    # Ray either tells, or ends the driver before it can
    word = err.splitlines()[-1]
    assert re.match(r"raybert: (the private Ray on this machine|Ray) is gone", word)
    assert "run the same command again" in word
    job.run("workers.count=1")
    check(job, undisturbed)


@pytest.mark.slow
def test_sigterm_leaves_a_clean_folder_and_the_next_run_goes_on(tiny, corpus, undisturbed, tmp_path):
    job = Job(tiny, corpus, str(tmp_path / "out"))
    process = job.start()
    assert wait_for(lambda: job.commits() >= 3, process)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "run the same command again" in err
    ledger = Ledger(job.output)
    assert ledger.store.sizes("_raybert/tmp") == {}
    assert 3 <= len(ledger.done()) < SHARDS
    job.run()
    check(job, undisturbed)


@pytest.mark.slow
def test_two_drivers_on_one_output_converge(tiny, corpus, undisturbed, tmp_path):
    job = Job(tiny, corpus, str(tmp_path / "out"))
    first, second = job.start(), job.start()
    for process in (first, second):
        out, err = process.communicate(timeout=250)
        assert process.returncode == 0, out + err
    check(job, undisturbed)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_node_of_a_three_node_cluster_killed(tiny, corpus, undisturbed, tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
        job = Job(tiny, corpus, str(tmp_path / "out"), RAY_ADDRESS=cluster.address)
        process = job.start("workers.count=2")
        assert wait_for(lambda: job.commits() >= 5, process)
        busy = [n for n in nodes if list(encoders(n.all_processes["raylet"][0].process.pid))]
        assert busy, "no encoder on a worker node"
        cluster.remove_node(busy[0], allow_graceful=False)
        assert job.commits() < SHARDS, "the node must die while there is work"
        out, err = process.communicate(timeout=280)
        assert process.returncode == 0, out + err
        check(job, undisturbed)
    finally:
        cluster.shutdown()
        os.environ.pop("RAY_ADDRESS", None)
