"""A run loses a worker, or its driver, and ends with the model that it would have had."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from torch.testing import assert_close

from raybert.train.checkpoint import Checkpoints
from raybert.train.pretrain import pretrain
from tests.train.kills import a_worker_killed, wait_for_step
from tests.train.tokens import settings

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.slow


def same_end(output: Path, whole: Path) -> None:
    """Weights, held-out figures and the content of the batches are those of the undisturbed run."""
    one, other = Checkpoints(output / "checkpoints"), Checkpoints(whole / "checkpoints")
    assert_close(one.weights(12), other.weights(12), atol=1e-4, rtol=0)
    assert one.record(12)["digests"] == other.record(12)["digests"]
    assert len(set(one.record(12)["digests"])) == 12
    assert_close(one.record(12)["evaluation"], other.record(12)["evaluation"], atol=1e-4, rtol=0)


def test_a_killed_worker_costs_nothing_but_time(finished, tokens, tmp_path, capfd):
    # a checkpoint a step: the run is slow enough to be killed
    with a_worker_killed(tmp_path / "run", 3):
        report = pretrain(settings(tokens, tmp_path / "run", **{"train.checkpoint.steps": 1}))
    said = capfd.readouterr().err
    assert "going on from step" in said
    assert "step 12/12  loss " in said
    assert report.figures["steps"] == 12
    same_end(tmp_path / "run", finished[0])


@pytest.fixture(scope="module")
def killed(tokens, tmp_path_factory) -> Path:
    """A run on two workers that was killed with its driver after some steps."""
    output = tmp_path_factory.mktemp("killed") / "run"
    values = settings(tokens, output, **{"train.checkpoint.steps": 1})
    code = "import json, sys; from raybert.train.pretrain import pretrain; pretrain(json.loads(sys.argv[1]))"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    driver = subprocess.Popen(
        [sys.executable, "-c", code, json.dumps(values)],
        cwd=ROOT,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for_step(output, 3)
    for process in [
        *psutil.Process(driver.pid).children(recursive=True),
        driver,
    ]:  # as if the machine went down
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    driver.communicate()
    assert 3 <= Checkpoints(output / "checkpoints").steps()[-1] < 12
    assert not (output / "model").exists()
    return output


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_killed_run_is_gone_on_with_by_any_number_of_workers(finished, tokens, killed, tmp_path, workers):
    output = tmp_path / "run"
    shutil.copytree(killed, output)
    begun = Checkpoints(output / "checkpoints").steps()[-1]
    report = pretrain(settings(tokens, output, **{"workers.count": workers}))
    assert report.figures["steps"] == 12
    assert (output / "model" / "model.safetensors").exists()
    same_end(output, finished[0])
    losses = [
        dict(json.loads((folder / "_raybert/history.json").read_text())["train/loss"])
        for folder in (output, finished[0])
    ]
    worst = max(abs(losses[0][step] - losses[1][step]) for step in losses[1])
    print(
        f"killed at step {begun}, gone on with on {workers}: losses of all steps differ by {worst:.1e} at most"
    )
    assert worst < 1e-4
