"""How many processes of what size a cluster is given."""

import pytest
import ray

from raybert.config import WorkersSettings
from raybert.corpus.pool import matches, worker_pool
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


@pytest.mark.parametrize(
    ("wanted", "fits"),
    [
        ({}, True),
        ({"kind": "gpu"}, True),
        ({"kind": "cpu"}, False),
        ({"kind": "!cpu"}, True),
        ({"kind": "!gpu"}, False),
        ({"kind": "in(cpu, gpu)"}, True),
        ({"kind": "!in(cpu, gpu)"}, False),
        ({"zone": "a"}, False),
        ({"zone": "!a"}, True),
        ({"kind": "gpu", "zone": "a"}, False),
    ],
)
def test_nodes_are_chosen_by_label(wanted: dict[str, str], fits: bool) -> None:
    assert matches({"kind": "gpu"}, wanted) is fits


def test_nodes_that_no_label_fits_are_named(cpus: int) -> None:
    with pytest.raises(ValueError, match=r"0 CPUs and 0 GPUs on 0 node\(s\) labelled {'kind': 'gpu'}"):
        worker_pool(WorkersSettings(count=1, labels={"kind": "gpu"}))
    pool = worker_pool(WorkersSettings(count=1, labels={"kind": "!gpu"}, reader_labels={"kind": "!gpu"}))
    assert pool.needs["label_selector"] == {"kind": "!gpu"}


def test_a_private_ray_is_not_waited_for(cpus: int) -> None:
    with pytest.raises(ValueError, match="do not fit") as refused:
        worker_pool(WorkersSettings(count=cpus + 1, cpus=1, wait=600))
    assert "workers.wait" not in str(refused.value)


@pytest.mark.parametrize("wrong", ["", "in()", "a b", "!!x"])
def test_a_label_that_ray_would_refuse_is_refused_at_once(wrong: str) -> None:
    with pytest.raises(ValueError, match="is not a label"):
        WorkersSettings(labels={"kind": wrong})


def test_readers_that_find_no_node_are_refused(cpus: int) -> None:
    with pytest.raises(ValueError, match=r"and 1 CPU for reading labelled {'kind': 'reader'} do not fit"):
        worker_pool(WorkersSettings(count=1, reader_labels={"kind": "reader"}))
