"""Markers of relations are new words: with LoRA their embeddings are trained, kept in a checkpoint and in the finished model."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from raybert.config import load
from raybert.config.finetune import FinetuneConfig
from raybert.corpus.store import Store
from raybert.train.checkpoint import RunState
from raybert.train.finetuning import Finetuning
from raybert.train.optimizers import make_optimizer
from raybert.train.step import train_step
from raybert.train.task_job import complete_job, prepare_job
from tests.encoder.tiny import tiny_model
from tests.tasks.test_jobs import RELATIONS


def run(folder, adapter: str) -> tuple[Finetuning, list[int]]:
    pq.write_table(pa.Table.from_pylist(RELATIONS[:2] * 8), folder / "rows.parquet")
    settings = {
        "task.name": "relations",
        "adapter.name": adapter,
        "model.name": str(tiny_model(folder / "model", st=False)),
        "data.path": str(folder / "rows.parquet"),
        "output.path": str(folder / "out"),
        "train.steps": 6,
        "train.batch_size": 8,
    }
    config = load(FinetuneConfig, settings=settings)
    prepared = prepare_job(config)
    complete_job(prepared, config, gpu=False, workers=1)
    for name, content in prepared.files.items():
        Store(config.output.path).write(name, content)
    return Finetuning(config, prepared.job), prepared.job["new_tokens"]


@pytest.mark.parametrize("adapter", ["lora", "adalora"])
def test_markers_are_trained_and_kept(tmp_path, adapter):
    made, markers = run(tmp_path, adapter)
    old = load_file(tmp_path / "model" / "model.safetensors")["embeddings.word_embeddings.weight"]
    assert markers == list(range(len(old), len(old) + 4))
    start = made.plain(None)[0].get_input_embeddings().weight.detach().clone()
    model = made.model(None)
    optimizer, cursor = make_optimizer("adamw", model), made.streams[0].cursor()
    model.train()
    for step in range(4):
        batch = made.streams[0].read(cursor)
        cursor = batch.cursor
        train_step(model, optimizer, batch.micro, lr=0.02, seed=0, step=step, objective=made.objective)
    weights = {name: p.detach().clone() for name, p in model.plain.named_parameters()}
    made.write(weights, RunState(step=4, job={"requested": {}}), str(tmp_path / "finished"))
    found = load_file(tmp_path / "finished" / "model.safetensors")
    rows = next(value for name, value in found.items() if name.endswith("word_embeddings.weight"))
    moved = (rows - start).abs().amax(1)
    assert moved.nonzero()[:, 0].tolist() == markers
    again = made.model(weights).eval()  # as a run that goes on
    finished = made._models.AUTO.from_pretrained(
        tmp_path / "finished", config=again.plain.config, dtype=torch.float32
    )
    reader = made.wrapped(finished).eval()
    from raybert.train.packed import pack

    with torch.no_grad():
        for _, micro in batch.micro:
            logits = again.logits(pack(micro))
            torch.testing.assert_close(reader.logits(pack(micro)), logits, atol=1e-5, rtol=1e-4)
    assert float(moved.max()) > 0.01
