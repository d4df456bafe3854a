"""A worker of fine-tuning is killed, whatever the task: the run ends with the model that it would have had."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from raybert.finetune import finetune
from raybert.train.checkpoint import Checkpoints
from tests.encoder.tiny import tiny_model
from tests.test_finetune_pairs import questions
from tests.train.kills import a_worker_killed
from tests.train.several_tables import KINDS, several_settings, tables
from tests.train.task_tables import task_settings, word_pairs, write

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STEPS = 12
COMMON = {
    "train.steps": STEPS,
    "train.evaluate.every": STEPS,
    "train.checkpoint.steps": 1,
    "train.checkpoint.keep": 99,
    "model.dropout": 0.1,
    "workers.count": 2,
}


def several(folder: Path, output: Path) -> dict[str, Any]:
    """Classes, numbers, entities, relations and answers in one run."""
    if not (folder / "intents-train.parquet").exists():
        tables(folder)
    return several_settings(folder, output, KINDS, **COMMON)


def retrieval(folder: Path, output: Path) -> dict[str, Any]:
    """Negatives from the other worker, hard ones, and gradients by way of a cache."""
    if not (folder / "train.parquet").exists():
        tiny_model(folder / "model")
        write(folder / "train.parquet", questions(200, 0))
        write(folder / "validation.parquet", questions(40, 1))
    columns = {"task.name": "retrieval", "task.negatives": "wrong", "task.grad_cache": True}
    return task_settings(folder, output, **columns, **COMMON)


def generation(folder: Path, output: Path) -> dict[str, Any]:
    """An encoder and a decoder."""
    pytest.importorskip("sacrebleu")
    if not (folder / "train.parquet").exists():
        tiny_model(folder / "model")
        write(folder / "train.parquet", word_pairs(200, 0))
        write(folder / "validation.parquet", word_pairs(24, 1))
    return task_settings(
        folder, output, **{"task.name": "generation", "task.max_target_length": 16}, **COMMON
    )


@pytest.mark.parametrize("settings", [several, retrieval, generation])
def test_a_killed_worker_costs_nothing_but_time(
    settings: Callable[[Path, Path], dict[str, Any]], tmp_path, ray_local, capfd
):
    whole, output = tmp_path / "whole", tmp_path / "killed"
    expected = finetune(settings(tmp_path, whole))
    capfd.readouterr()
    with a_worker_killed(output, STEPS // 3):
        report = finetune(settings(tmp_path, output))
    assert "going on from step" in capfd.readouterr().err
    one, other = Checkpoints(output / "checkpoints"), Checkpoints(whole / "checkpoints")
    assert one.record(STEPS)["digests"] == other.record(STEPS)["digests"]
    assert len(set(one.record(STEPS)["digests"])) == STEPS
    assert_close(one.weights(STEPS), other.weights(STEPS), atol=1e-4, rtol=0)
    assert_close(dict(report.figures), dict(expected.figures), atol=1e-3, rtol=1e-3)
    files = sorted(file.relative_to(whole) for file in whole.glob("model/**/*.safetensors"))
    assert files
    for file in files:
        assert_close(load_file(output / file), load_file(whole / file), atol=1e-4, rtol=0)
