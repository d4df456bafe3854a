"""A run on an object store: tokens, checkpoints and the model in a bucket of a real S3-compatible server."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from torch.testing import assert_close

from raybert.corpus.store import Store
from raybert.train.checkpoint import Checkpoints, RunState
from tests.s3 import s3_server
from tests.train.test_checkpoint import tensors
from tests.train.tokens import settings, token_folder

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def bucket():
    with s3_server("bucket"):
        yield "s3://bucket"


def test_checkpoints_in_a_bucket(bucket):
    kept = Checkpoints(f"{bucket}/checkpoints")
    assert kept.steps() == []
    for step in (1, 2, 3):
        kept.write(tensors(step), RunState(step=step, evaluation={"loss": step}))
    assert kept.steps() == [1, 2, 3]
    assert_close(kept.read(2)[0].weights, tensors(2).weights)
    kept.prune(1)
    assert kept.steps() == [1, 3]


@pytest.mark.slow
def test_a_whole_run_in_a_bucket(bucket, tmp_path):
    local = Path(token_folder(tmp_path / "tokens"))
    there = Store(f"{bucket}/tokens")
    for file in local.rglob("*.*"):
        there.write(str(file.relative_to(local)), file.read_bytes())
    values = settings(f"{bucket}/tokens", Path("x"), **{"output.path": f"{bucket}/run", "workers.count": 1})
    code = "import json, sys; from raybert.train.pretrain import pretrain; print(pretrain(json.loads(sys.argv[1])))"
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps({**values, "track": []})],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert not done.returncode, done.stderr[-3000:]
    assert "s3://bucket/run/model" in done.stdout
    store = Store(f"{bucket}/run")
    assert {"config.json", "model.safetensors", "README.md", "tokenizer.json"} <= set(store.sizes("model"))
    assert Checkpoints(f"{bucket}/run/checkpoints").steps()[-1] == 12
    assert store.exists("curves.png")
