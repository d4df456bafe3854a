"""A cluster of nothing but a head: nodes come for the job, each part of it to nodes of its kind, and go again."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from raybert.corpus.ledger import Ledger
from tests.cluster.processes import ENCODER, Job, free_ports, wait_for, write_corpus

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROWS = 4000
HEAD = "f" * 51 + "00000"  # how Ray's provider of pretended nodes knows the head
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
ENVIRONMENT = {
    "RAY_AUTH_MODE": "disabled",
    "RAY_FAKE_CLUSTER": "1",
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": HEAD,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
}

UNUSED = [
    *("initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands"),
    *("cluster_synced_files", "rsync_exclude", "rsync_filter"),
]


def group(cpus: int, kind: str, most: int) -> dict:
    return {
        "resources": {"CPU": cpus},
        "labels": {"kind": kind},
        "node_config": {},
        "min_workers": 0,
        "max_workers": most,
    }


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, psutil.Process]]:
    """(address, process) of a head without CPUs, whose autoscaler starts raylets on this machine."""
    import ray.util

    folder, (port, client_port) = tmp_path_factory.mktemp("scaling"), free_ports(2)
    address = f"{ray.util.get_node_ip_address()}:{port}"
    config = {
        "cluster_name": "test",
        "max_workers": 4,
        "idle_timeout_minutes": 0.2,
        "provider": {
            "type": "external",
            "module": PROVIDER,
            "gcs_address": address,
            "head_node_id": HEAD,
            "launch_multiple": True,
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "encoders": group(1, "encoders", 2),
            "readers": group(1, "readers", 1),
        },
        "head_node_type": "ray.head.default",
        # nothing is installed on a node that is pretended, but Ray looks these up
        **{name: {} for name in ("auth", "docker", "file_mounts")},
        **{name: [] for name in UNUSED},
    }
    (folder / "config.json").write_text(json.dumps(config))
    ray_command = Path(sys.executable).parent / "ray"
    command = [ray_command, "start", "--head", "--block", "--num-cpus=0", f"--port={port}"]
    command += [f"--autoscaling-config={folder}/config.json", "--include-dashboard=false"]
    command += ["--object-store-memory=200000000", f"--ray-client-server-port={client_port}"]
    log = (folder / "head.log").open("w")
    head = subprocess.Popen(command, env={**os.environ, **ENVIRONMENT}, stdout=log, stderr=log)
    try:
        told = folder / "head.log"
        assert wait_for(lambda: "block forever" in told.read_text(), head), told.read_text()
        yield address, psutil.Process(head.pid)
    finally:
        children = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
        head.terminate()
        for process in psutil.wait_procs(children, timeout=20)[1]:
            process.kill()
        head.wait()


def kinds(head: psutil.Process, role: str = "") -> set[str]:
    """Of the nodes that are there, or of those that run a process of this role."""
    found = set()
    for process in head.children(recursive=True):
        try:
            words = " ".join(process.cmdline())
            if role and role in words:
                words = " ".join(process.parent().cmdline())
            elif role:
                continue
        except psutil.Error:
            continue
        if "/raylet " in words:
            found |= {
                kind for kind in ("encoders", "readers") if f'"kind":"{kind}"' in words.replace(" ", "")
            }
    return found


def test_without_leave_to_wait_a_cluster_of_nothing_is_refused(cluster, tiny, tmp_path):
    write_corpus(tmp_path / "in", 10, files=1)
    job = Job(tiny, str(tmp_path / "in"), str(tmp_path / "out"), RAY_ADDRESS=cluster[0])
    process = job.start("workers.count=1")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "the cluster has 0 CPUs and 0 GPUs on 1 node(s)" in err
    assert "workers.wait=SECONDS" in err


def test_nodes_come_for_the_job_and_go_again(cluster, tiny, tmp_path):
    address, head = cluster
    write_corpus(tmp_path / "in", ROWS)
    job = Job(tiny, str(tmp_path / "in"), str(tmp_path / "out"), RAY_ADDRESS=address)
    process = job.start(
        *("workers.count=[1,2]", "workers.wait=120"),
        *('workers.labels={"kind":"encoders"}', 'workers.reader_labels={"kind":"readers"}'),
    )
    encoding, reading = set(), set()

    def watch() -> bool:
        encoding.update(kinds(head, ENCODER))
        reading.update(kinds(head, "ReadAndTokenize"))
        return False

    wait_for(watch, process, seconds=300)
    out, err = process.communicate()
    assert process.returncode == 0, out + err
    assert "waiting up to 120 s for nodes with 1 x 1 CPUs labelled {'kind': 'encoders'}" in err
    assert (encoding, reading) == ({"encoders"}, {"readers"})
    ledger = Ledger(job.output)
    assert sum(commit.embedded for commit in ledger.commits(ledger.done()).values()) == ROWS
    started = time.monotonic()
    while kinds(head):
        assert time.monotonic() - started < 120, "idle nodes must go"
        time.sleep(1)


def test_a_wait_in_vain_says_what_for(cluster, tiny, tmp_path):
    write_corpus(tmp_path / "in", 10, files=1)
    job = Job(tiny, str(tmp_path / "in"), str(tmp_path / "out"), RAY_ADDRESS=cluster[0])
    process = job.start("workers.count=1", "workers.gpus=1", "workers.wait=3")
    _, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "workers.wait=3: no nodes came with 1 x 1 CPUs and 1 GPUs" in err
