"""The whole way on a real Ray: tokens in, a plain model out; stopped, killed and gone on with."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertForPreTraining

from raybert.train.checkpoint import Checkpoints
from raybert.train.export import export
from raybert.train.pretrain import pretrain
from tests.encoder.tiny import tiny_model
from tests.train.tokens import settings, token_folder


def test_a_plain_model_comes_out(finished):
    output, report = finished
    assert report.figures["steps"] == 12
    model = BertForPreTraining.from_pretrained(output / "model")
    assert model.config.vocab_size == 60
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert AutoTokenizer.from_pretrained(output / "model")("the fox").input_ids
    assert not (output / "model" / "_raybert").exists()
    card = (output / "model" / "README.md").read_text()
    assert "12 steps" in card
    assert "held out: mlm_loss" in card
    saved = dict(Checkpoints(output / "checkpoints").weights(12))
    assert torch.equal(saved["bert.pooler.dense.weight"], model.bert.pooler.dense.weight)


def test_curves_are_kept(finished):
    output, _ = finished
    history = json.loads((output / "_raybert/history.json").read_text())
    assert [step for step, _ in history["train/loss"]] == [2, 4, 6, 8, 10, 12]
    assert [step for step, _ in history["held_out/mlm_loss"]] == [6, 12]
    assert (output / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert list((output / "tensorboard").iterdir())
    kept = Checkpoints(output / "checkpoints")
    assert kept.steps() == [6, 8, 12]  # the two newest, and the best of those evaluated
    assert kept.best() == min((6, 12), key=lambda step: kept.record(step)["evaluation"]["loss"]) == 6


def test_figures_come_with_what_guessing_would_reach(finished, tokens):
    output, report = finished
    job = json.loads((output / "_raybert/job.json").read_text())
    [phase] = job["phases"]
    table = pa.concat_tables([pq.read_table(f"{tokens}/data/{name}") for name in phase["held"]])
    kinds = np.bincount(table["label"].to_numpy())
    assert report.figures["held_out_pair_majority"] == pytest.approx(kinds.max() / kinds.sum())
    assert 1 / 55 < report.figures["held_out_unigram_accuracy"] < 0.2  # 55 tokens, about equally often
    assert np.log(20) < report.figures["held_out_unigram_loss"] < np.log(55)


def test_a_finished_run_is_not_done_again(finished, tokens):
    output, report = finished
    files = {file: file.stat().st_mtime_ns for file in output.rglob("*")}
    assert pretrain(settings(tokens, output)).figures == report.figures
    assert {file: file.stat().st_mtime_ns for file in output.rglob("*")} == files


@pytest.mark.slow
def test_a_run_that_only_lacks_its_model_is_finished(finished, tokens, tmp_path):
    output, report = finished
    shutil.copytree(output, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "model")
    (tmp_path / "run" / "_raybert" / "report.json").unlink()
    again = pretrain(settings(tokens, tmp_path / "run"))
    assert again.figures == report.figures
    assert (tmp_path / "run/model/model.safetensors").read_bytes() == (
        output / "model/model.safetensors"
    ).read_bytes()


@pytest.mark.slow
def test_auto_is_the_precision_of_the_workers_hardware(ray_local, tokens, tmp_path):
    changes = {"train.precision": "auto", "train.steps": 2, "train.evaluate.every": 0, "workers.count": 1}
    pretrain(settings(tokens, tmp_path / "run", **changes))
    job = json.loads((tmp_path / "run/_raybert/job.json").read_text())
    flags = Path("/proc/cpuinfo").read_text().split()
    has = "avx512_bf16" in flags or "amx_bf16" in flags
    assert job["precision"] == ("bfloat16" if has else "float32")


@pytest.mark.slow
def test_a_prime_number_of_rows_over_three_workers_ends(ray_local, tmp_path):
    tokens = token_folder(tmp_path / "prime", shards=1, rows=211)
    changes = {"train.evaluate.share": 0, "train.steps": None, "train.epochs": 2, "workers.count": 3}
    report = pretrain(settings(tokens, tmp_path / "run", **changes))
    table = pq.read_table(f"{tokens}/data/part-00000.parquet", columns=["ids"])
    length = sum(map(len, table["ids"].to_pylist()))
    assert report.figures["steps"] == 2 * max(1, round(length / 1024))
    digests = Checkpoints(tmp_path / "run/checkpoints").record(report.figures["steps"])["digests"]
    assert len(set(digests)) == report.figures["steps"]


def test_other_settings_are_refused(finished, tokens):
    output, _ = finished
    with pytest.raises(ValueError, match=r"other settings: train\.lr=0\.5 \(was 0\.003\)"):
        pretrain(settings(tokens, output, **{"train.lr": 0.5}))


def test_a_checkpoint_is_exported(finished, tmp_path):
    output, _ = finished
    assert export(str(output), str(tmp_path / "early"), step=8) == 8
    early = AutoModelForMaskedLM.from_pretrained(tmp_path / "early")
    last = AutoModelForMaskedLM.from_pretrained(output / "model")
    name = "bert.embeddings.word_embeddings.weight"
    assert not torch.equal(early.state_dict()[name], last.state_dict()[name])
    with pytest.raises(ValueError, match="no checkpoint of step 5"):
        export(str(output), str(tmp_path / "none"), step=5)


def test_settings_are_checked_before_anything_starts(tokens, tmp_path):
    for change, words in [
        ({"train.steps": None}, "train.steps is missing"),
        ({"train.optimizer": "lamb"}, "train.zero=0"),
        ({"train.epochs": 1}, "exclude each other"),
        ({"train.zero": 1, "train.precision": "float16", "dry_run": True}, "needs GPUs"),
        ({"model.heads": 5}, "must divide"),
        ({"model.family": "roberta"}, "model.family=roberta has no head for the sentence pairs"),
        ({"train.warmup": 13}, "longer than the 12 steps"),
        ({"data.path": str(tmp_path)}, "no token shards"),
    ]:
        with pytest.raises(ValueError, match=words):
            pretrain(settings(tokens, tmp_path / "x", **change))
    assert not (tmp_path / "x").exists()


@pytest.mark.slow
def test_workers_say_what_cannot_be_used(tokens, tmp_path, ray_local):
    """Found out on a worker only, and at once: no restarts."""
    model = {"model.name": str(tiny_model(tmp_path / "m", st=False)), "data.path": tokens}
    wide = token_folder(tmp_path / "wide", vocabulary=50_000)
    with pytest.raises(ValueError, match=r"knows \d+ ids, the tokens in data.path have 50,000"):
        pretrain(settings(wide, tmp_path / "x", **{**model, "data.path": wide, "workers.count": 1}))


def test_one_shard_cannot_be_split(tmp_path):
    one = token_folder(tmp_path / "one", shards=1)
    with pytest.raises(ValueError, match=r"train\.evaluate\.share=0\.25: .*; set train\.evaluate\.share=0"):
        pretrain(settings(one, tmp_path / "x"))
    assert "12 steps" in str(
        pretrain(settings(one, tmp_path / "x", dry_run=True, **{"train.evaluate.share": 0}))
    )


def test_dry_run_writes_nothing(tokens, tmp_path, capsys):
    report = pretrain(settings(tokens, tmp_path / "x", dry_run=True))
    assert "12 steps of 1,024 tokens" in str(report)
    assert not (tmp_path / "x").exists()
