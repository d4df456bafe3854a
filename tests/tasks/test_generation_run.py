"""Runs of sequence to sequence: gone on with, cut up, with levers, in gloo processes; and on a real Ray to written texts."""

import json

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from raybert.evaluate.evaluate import evaluate
from raybert.finetune import finetune
from raybert.predict import predict
from tests.encoder.tiny import tiny_model
from tests.train.ranks import run
from tests.train.task_tables import task_settings, word_pairs, write

pytest.importorskip("sacrebleu")
pytest.importorskip("torchmetrics")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    at = tmp_path_factory.mktemp("generation")
    write(at / "pairs.parquet", word_pairs(200, 0))
    write(at / "pairs_validation.parquet", word_pairs(24, 1))
    return at


@pytest.fixture(scope="module")
def found_of(folder):
    """What a run found; groups of runs are made when one of them is asked for."""
    groups: dict = {}

    def find(name):
        job = "generation" if name == "plain" else "more_generation"
        if job not in groups:
            groups[job] = run(2, folder, job)
        return groups[job][name]

    return find


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("zero2", "zero3", "levers")]


@pytest.mark.parametrize("name", ["plain", *SLOW])
def test_a_run_that_goes_on_ends_as_the_whole_one(found_of, folder, name):
    found = found_of(name)
    assert_close(found["again"], found["figures"], atol=1e-3, rtol=1e-3)
    assert found["again_digests"] == found["digests"]
    assert len(set(found["digests"])) == 16
    models = [load_file(folder / f"{name}{end}" / "model" / "model.safetensors") for end in ("", "-again")]
    assert_close(models[1], models[0], atol=1e-4, rtol=0)
    losses = [loss for _, loss in found["history"]["train/loss"]]
    assert losses[-1] < losses[0]
    figures = found["figures"]
    assert {
        f"held_out_{key}" for key in ("loss", "perplexity", "token_accuracy", "bleu", "rougeL")
    } <= figures.keys()
    evaluated = [key for key in found["history"] if key == "validation/bleu"]
    assert len(evaluated) == (name == "zero2")
    card = (folder / name / "model" / "README.md").read_text()
    assert "held out: chrf" in card


@pytest.mark.slow
def test_cutting_up_computes_the_same(found_of):
    plain = found_of("plain")["history"]["train/loss"]
    for name in ("zero2", "zero3"):
        assert_close(found_of(name)["history"]["train/loss"], plain, atol=1e-3, rtol=0)


@pytest.mark.slow
def test_a_table_becomes_a_model_that_writes(folder, tmp_path, ray_local):
    """Vocabulary of its own; trained, evaluated and used for bulk prediction; read by transformers alone."""
    from transformers import AutoTokenizer, EncoderDecoderModel

    words = tiny_model(tmp_path / "words", "xlm-roberta", st=False)
    settings = task_settings(
        folder,
        tmp_path / "run",
        **{
            "task.name": "generation",
            "task.target_tokenizer": str(words),
            "task.max_target_length": 12,
            "data.path": write(
                tmp_path / "train.parquet", [*word_pairs(1500, 2), {"source": "fox", "target": None}]
            ),
            "data.validation": str(folder / "pairs_validation.parquet"),
            "train.steps": 300,
            "train.evaluate.every": 300,
            "batch_tokens": 1024,
            "workers.count": 2,
        },
    )
    report = finetune(settings)
    assert report.plan["rows"]["train"]["rejected"] == {"target is null": 1}
    assert report.figures["held_out_token_accuracy"] > 0.8
    model = tmp_path / "run" / "model"
    entry = json.loads((model / "config.json").read_text())["raybert"]
    assert (entry["task"], entry["settings"]["target_tokenizer"]) == ("generation", None)

    table = pq.read_table(folder / "pairs_validation.parquet").to_pylist()
    plain = EncoderDecoderModel.from_pretrained(model)
    source, target = (AutoTokenizer.from_pretrained(at) for at in (model, model / "target_tokenizer"))
    given = source([row["source"] for row in table], padding=True, return_tensors="pt")
    alone = target.batch_decode(
        plain.generate(input_ids=given.input_ids, attention_mask=given.attention_mask),
        skip_special_tokens=True,
    )
    common = {
        "model.name": str(model),
        "data.path": str(folder / "pairs_validation.parquet"),
        "workers.count": 1,
    }
    common["model.dtype"] = "float32"
    predict({**common, "output.path": str(tmp_path / "written")})
    written = pq.read_table(tmp_path / "written" / "data")["text"].to_pylist()
    assert written == alone
    found = evaluate({**common, "output.path": str(tmp_path / "report")})
    # BLEU needs four words in a row, which these texts have not
    assert found.after.metrics["chrf"] == pytest.approx(report.figures["held_out_chrf"], rel=1e-6)
    assert found.after.metrics["chrf"] > 80
    assert (tmp_path / "report" / "report.html").exists()
