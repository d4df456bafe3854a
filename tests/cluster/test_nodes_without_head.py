"""The head dies under a run: its driver says so, and the same command on a new cluster does what is left."""

import re

import pytest

from tests.cluster.processes import wait_for
from tests.cluster.test_kill import check
from tests.cluster.test_nodes_embed import SHARDS, corpus, end, job, start, undisturbed  # noqa: F401

pytestmark = [pytest.mark.slow, pytest.mark.nodes, pytest.mark.timeout(900)]


def test_embedding_goes_on_with_a_new_head(cluster, job, undisturbed):  # noqa: F811
    process = start(job, cluster)
    assert wait_for(lambda: job.commits() >= 20, process, 300)
    cluster.kill(
        cluster[0], spare=[pid for pid in cluster[0].pids() if is_drivers(cluster, pid, process.pid)]
    )
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1, out + err
    word = err.splitlines()[-1]
    # Ray either tells, or ends the driver before it can
    assert re.match(rf"raybert: (the Ray cluster at RAY_ADDRESS={cluster.address}|Ray) is gone", word)
    assert "run the same command again" in word
    at = job.commits()
    assert at < SHARDS
    cluster.bring_up()
    process = start(job, cluster)
    end(process, job)
    check(job, undisturbed)
    print(f"head killed at {at} of {SHARDS} shards, the rest on a new one: {word}")


def is_drivers(cluster, pid: int, driver: int) -> bool:
    """The driver and the process that speaks for it when it is dead."""
    return pid == driver or any(process.pid == pid for process in cluster[0].processes("-I -S -c"))
