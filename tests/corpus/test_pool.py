"""How many processes of what size a cluster is given."""

import pytest
import ray

from raybert.config import WorkersSettings
from raybert.corpus.pool import worker_pool
from raybert.corpus.session import cores


@pytest.fixture
def cpus(ray_local: None) -> int:
    return int(ray.cluster_resources()["CPU"])


def test_processes_that_read_have_a_cpu_each_and_leave_one(cpus: int) -> None:
    pool = worker_pool(WorkersSettings())
    assert (pool.low, pool.high, pool.cpus) == (cpus - 1, cpus - 1, 1)


def test_processes_that_wait_for_each_other_share_a_node(cpus: int) -> None:
    pool = worker_pool(WorkersSettings(), reading=False, whole_nodes=True)
    assert (pool.low, pool.high, pool.cpus) == (1, 1, cpus - 1)
    assert pool.cpus == cores()  # a private Ray has one more, for reading


def test_a_number_of_processes_shares_the_cpus_of_a_node(cpus: int) -> None:
    pool = worker_pool(WorkersSettings(count=2), reading=False, whole_nodes=True)
    assert (pool.low, pool.high, pool.cpus) == (2, 2, max(1, (cpus - 1) // 2))
    asked = worker_pool(WorkersSettings(cpus=1), reading=False, whole_nodes=True)
    assert (asked.high, asked.cpus) == (cpus - 1, 1)


def test_what_does_not_fit_is_refused(cpus: int) -> None:
    with pytest.raises(ValueError, match=rf"workers.count={cpus + 1} x workers.cpus=1"):
        worker_pool(WorkersSettings(count=cpus + 1, cpus=1))
