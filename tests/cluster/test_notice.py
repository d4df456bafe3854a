"""A spot node's notice: training writes a checkpoint before the node goes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from raybert.train.checkpoint import Checkpoints
from tests.cluster.processes import REPO, kill_tree, wait_for
from tests.train.tokens import settings, token_folder


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_training_saves_before_a_node_goes(tmp_path, monkeypatch):
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    tokens, output = token_folder(tmp_path / "tokens"), tmp_path / "run"
    # none is due by itself
    never = {"train.checkpoint.steps": 10**6, "train.checkpoint.minutes": 600, "train.evaluate.every": 0}
    values = settings(
        tokens,
        output,
        **never,
        **{"train.steps": 10**6, "workers.count": 2, "workers.cpus": 2, "workers.gpus": 0},
    )
    words = [
        f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()
    ]
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        nodes = [cluster.add_node(num_cpus=2) for _ in range(2)]
        lines = (tmp_path / "lines").open("w+")
        process = subprocess.Popen(
            [sys.executable, "-m", "raybert", "pretrain", *words],
            cwd=REPO,
            env={**os.environ, "RAY_ADDRESS": cluster.address},
            stdout=lines,
            stderr=lines,
            start_new_session=True,
        )

        def said(what: str) -> bool:
            return what in (tmp_path / "lines").read_text()

        try:
            assert wait_for(lambda: said("loss"), process, 300), (tmp_path / "lines").read_text()
            assert not Checkpoints(str(output / "checkpoints")).steps()
            drain = [Path(sys.executable).parent / "ray", "drain-node", f"--address={cluster.address}"]
            drain += [f"--node-id={nodes[1].node_id}", "--reason=DRAIN_NODE_REASON_PREEMPTION"]
            drain += ["--reason-message=spot", "--deadline-remaining-seconds=500"]
            subprocess.run(drain, check=True, capture_output=True, timeout=60)
            saved = wait_for(lambda: bool(Checkpoints(str(output / "checkpoints")).steps()), process, 120)
            assert saved, (tmp_path / "lines").read_text()
            # a line takes longer to the driver than a checkpoint to the disk
            line = "a node is about to be taken away, a checkpoint before"
            assert wait_for(lambda: said(line), process, 120), (tmp_path / "lines").read_text()
        finally:
            kill_tree(process)
    finally:
        cluster.shutdown()
        os.environ.pop("RAY_ADDRESS", None)
