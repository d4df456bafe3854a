"""Pretraining over two nodes of which one is lost: it goes on with the batches and losses of an undisturbed run."""

import json
import subprocess
import time
from pathlib import Path

import pytest
from torch.testing import assert_close

from raybert.train.checkpoint import Checkpoints
from raybert.train.pretrain import pretrain
from tests.cluster.hosts import Host, Hosts
from tests.cluster.processes import wait_for
from tests.train.tokens import settings, token_folder

pytestmark = [pytest.mark.slow, pytest.mark.nodes, pytest.mark.timeout(900)]
STEPS = 16  # as many as a checkpoint keeps digests of


@pytest.fixture(scope="module")
def tokens(tmp_path_factory) -> str:
    return token_folder(tmp_path_factory.mktemp("tokens") / "nsp")


def run_settings(tokens: str, output: Path, **changes) -> dict:
    """A checkpoint a step, so that the run is slow enough to be disturbed; an encoder fills a node."""
    often = {
        "train.steps": STEPS,
        "train.checkpoint.steps": 1,
        "train.log_every": 1,
        "train.evaluate.every": 0,
    }
    return settings(tokens, output, **often, **{"workers.cpus": 2, "workers.gpus": 0}, **changes)


@pytest.fixture(scope="module")
def whole(tokens, tmp_path_factory, ray_local) -> Path:
    """An undisturbed run on one worker of this machine."""
    output = tmp_path_factory.mktemp("whole") / "run"
    pretrain(run_settings(tokens, output, **{"workers.count": 1}))
    return output


class Run:
    """`raybert pretrain` on the head's host."""

    def __init__(self, hosts: Hosts, tokens: str, output: Path, count: object) -> None:
        self.output, self.lines = output, output.parent / "lines"
        values = run_settings(tokens, output, **{"workers.count": count})
        words = [
            f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()
        ]
        with self.lines.open("w") as out:
            self.process: subprocess.Popen[str] = hosts[0].python(
                "-m", "raybert", "pretrain", *words, out=out, RAY_ADDRESS=hosts.address
            )

    def step(self) -> int:
        """Of the newest checkpoint."""
        return max(Checkpoints(self.output / "checkpoints").steps(), default=0)

    def end(self) -> str:
        """What it said to its good end."""
        self.process.wait(500)
        said = self.lines.read_text()
        assert self.process.returncode == 0, said
        return said


def kill_a_worker(hosts: Hosts, run: Run) -> Host:
    """Kill one of the two nodes that train, after some steps."""
    assert wait_for(lambda: run.step() >= 3, run.process, 300), run.lines.read_text()
    nodes = [host for host in hosts.hosts if host.processes("RayTrainWorker")]
    assert len(nodes) == 2, "workers must be on two nodes"
    hosts.kill(nodes[1])
    assert run.step() < STEPS
    return nodes[1]


def same_end(run: Path, whole: Path) -> float:
    """The content of all batches is that of the undisturbed run, and losses are close; by how much they differ at most."""
    one, other = (Checkpoints(folder / "checkpoints") for folder in (run, whole))
    assert one.record(STEPS)["digests"] == other.record(STEPS)["digests"]
    assert len(set(one.record(STEPS)["digests"])) == STEPS
    assert_close(one.weights(STEPS), other.weights(STEPS), atol=1e-4, rtol=0)
    losses = [dict(json.loads((f / "_raybert/history.json").read_text())["train/loss"]) for f in (run, whole)]
    assert losses[0].keys() == losses[1].keys() == set(range(1, STEPS + 1))
    worst = max(abs(losses[0][step] - losses[1][step]) for step in losses[1])
    assert worst < 1e-4
    return worst


def test_an_elastic_run_goes_on_with_the_node_that_is_left(cluster, tokens, whole, tmp_path):
    cluster.kill(cluster[3])
    run = Run(cluster, tokens, tmp_path / "run", [1, 2])
    kill_a_worker(cluster, run)
    killed, at = time.monotonic(), run.step()
    assert wait_for(lambda: run.step() > at + 1, run.process, 300), run.lines.read_text()
    seconds = time.monotonic() - killed
    said = run.end()
    assert "lost worker" in said
    assert Checkpoints(run.output / "checkpoints").record(STEPS)["world"] == 1
    worst = same_end(run.output, whole)
    print(
        f"killed at step {at} of {STEPS}, going on {seconds:.0f} s later on one node; losses differ by {worst:.1e}"
    )


def test_a_run_on_two_nodes_waits_for_another(cluster, tokens, whole, tmp_path):
    cluster.kill(cluster[3])
    run = Run(cluster, tokens, tmp_path / "run", 2)
    kill_a_worker(cluster, run)
    time.sleep(20)
    at = run.step()
    assert run.process.poll() is None, run.lines.read_text()
    assert at < STEPS
    added = time.monotonic()
    cluster.start_node(cluster[3], cpus=2)
    cluster.ready()
    assert wait_for(lambda: run.step() > at, run.process, 300), run.lines.read_text()
    seconds = time.monotonic() - added
    said = run.end()
    assert "lost worker" in said
    assert "room for 2 with 2 CPUs each" in said
    assert Checkpoints(run.output / "checkpoints").record(STEPS)["world"] == 2
    worst = same_end(run.output, whole)
    print(
        f"killed at step {at} of {STEPS}, going on {seconds:.0f} s after a new node; losses differ by {worst:.1e}"
    )
