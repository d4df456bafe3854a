"""The whole way on a real Ray: a table in, a model of the task out; stopped, killed and gone on with; bad tables."""

import json
import statistics

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file
from torch.testing import assert_close

from raybert.finetune import FinetuneReport, _means, finetune
from raybert.train.checkpoint import Checkpoints
from tests.train.kills import a_worker_killed
from tests.train.task_tables import right_share, rows, task_settings, write


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("finetune")


def settings(folder, output, **changes):
    return task_settings(folder, output, **{"workers.count": 2, **changes})


@pytest.fixture(scope="module")
def finished(folder, ray_local):
    """An undisturbed run on two workers; two of its rows cannot be used."""
    task_settings(folder, folder / "whole")
    bad = [{"text": None, "label": "place"}, {"text": "the river", "label": " "}]
    write(folder / "train.parquet", [*rows(400, 0), *bad])
    output = folder / "whole"
    return output, finetune(settings(folder, output))


def test_a_plain_model_comes_out(finished, folder):
    output, report = finished
    assert report.figures["held_out_accuracy"] > 0.9
    assert right_share(folder, output / "model") == pytest.approx(report.figures["held_out_accuracy"])
    config = json.loads((output / "model" / "config.json").read_text())
    assert config["label2id"] == {"being": 0, "place": 1}
    assert config["problem_type"] == "single_label_classification"
    assert (config["raybert"]["task"], config["raybert"]["max_length"]) == ("classification", 64)
    card = (output / "model" / "README.md").read_text()
    assert "fine-tuned for classification" in card
    assert "held out: accuracy" in card
    assert not (output / "model" / "_raybert").exists()


def test_every_row_is_accounted_for(finished):
    output, report = finished
    assert report.plan["rows"]["train"]["rejected"] == {"label is empty": 1, "null": 1}
    rejects = pq.read_table(output / "_rejects" / "train.parquet").to_pylist()
    assert [(row["row"], row["reason"]) for row in rejects] == [(400, "null"), (401, "label is empty")]
    assert "402 rows = 400 used + 2 rejected" in str(report)
    assert "1 x label is empty" in str(report)


def test_a_finished_run_is_not_done_again(finished, folder):
    output, report = finished
    files = {file: file.stat().st_mtime_ns for file in output.rglob("*")}
    assert finetune(settings(folder, output)).figures == report.figures
    assert {file: file.stat().st_mtime_ns for file in output.rglob("*")} == files


def test_other_settings_or_rows_are_refused(finished, folder, tmp_path):
    output, _ = finished
    with pytest.raises(ValueError, match=r"other settings: train\.lr=0\.5 \(was 0\.006\)"):
        finetune(settings(folder, output, **{"train.lr": 0.5}))
    other = write(tmp_path / "other.parquet", rows(60, 7))
    with pytest.raises(ValueError, match=r"other rows than are in data\.validation now"):
        finetune(settings(folder, output, **{"data.validation": other}))


@pytest.mark.slow
def test_a_killed_worker_costs_nothing_but_time(finished, folder, capfd):
    output = folder / "killed"
    with a_worker_killed(output, 8):
        report = finetune(settings(folder, output, **{"train.checkpoint.steps": 1}))
    assert "going on from step" in capfd.readouterr().err
    one, other = Checkpoints(output / "checkpoints"), Checkpoints(finished[0] / "checkpoints")
    assert one.record(24)["digests"] == other.record(24)["digests"]
    assert_close(one.weights(24), other.weights(24), atol=1e-4, rtol=0)
    assert_close(dict(report.figures), dict(finished[1].figures), atol=1e-4, rtol=0)
    models = [load_file(path / "model" / "model.safetensors") for path in (output, finished[0])]
    assert_close(*models, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_seeds_give_mean_and_deviation(finished, folder):
    output = folder / "seeds"
    report = finetune(
        settings(
            folder, output, **{"train.seeds": [1, 2], "train.steps": 4, "train.warmup": 0, "workers.count": 1}
        )
    )
    single = [report.seeds[seed]["held_out_accuracy"] for seed in ("1", "2")]
    assert report.figures["held_out_accuracy"] == statistics.fmean(single)
    assert report.figures["held_out_accuracy_deviation"] == pytest.approx(statistics.stdev(single))
    assert json.loads((output / "_raybert" / "report.json").read_text())["seeds"] == report.seeds
    weights = [load_file(output / f"seed-{seed}" / "model" / "model.safetensors") for seed in (1, 2)]
    assert not weights[0]["classifier.weight"].equal(weights[1]["classifier.weight"])


def test_means_and_deviations():
    found = _means([{"a": 1.0, "b": None}, {"a": 2.0, "b": 5.0}, {"a": 6.0, "b": None}])
    assert found["a"] == 3.0
    assert found["a_deviation"] == pytest.approx(statistics.stdev([1, 2, 6]))
    assert "a                        3 ± 2.6" in str(FinetuneReport("x", found))


@pytest.mark.parametrize(
    ("table", "changes", "words"),
    [
        (
            [{"text": "a fox", "kind": "x"}],
            {},
            r"data\.label=label: there is no such column in .*; it has: text, kind",
        ),
        ([{"body": "a fox", "label": "x"}], {}, r"data\.text=text: there is no such column"),
        ([{"text": "a fox", "label": "x"}] * 3, {}, r"one label only, 'x'"),
        ([{"text": "a fox", "label": ""}, {"text": "b", "label": None}], {}, r"data\.label has no labels"),
        (
            [{"text": "", "label": "x"}, {"text": " ", "label": "y"}],
            {},
            r"data\.path: no row can be used: 1 x",
        ),
        (
            [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}],
            {},
            r"data\.validation: data\.label has labels that are not in the rows to train on: being, place",
        ),
        (
            [
                {"text": "a", "label": "being"},
                {"text": "b", "label": "place"},
                {"text": "", "label": "place"},
            ],
            {"output.max_rejects": 0},
            r"data\.path: 1 of 3 rows are rejected, the first because empty; output\.max_rejects=0",
        ),
        (
            [{"text": "a", "label": "being"}, {"text": "b", "label": "place"}],
            {"data.text_pair": "text2"},
            r"data\.text_pair=text2: there is no such column",
        ),
        ([{"text": "a", "label": "being"}] * 2, {"data.label": "text"}, "is the column of the text"),
        ([{"text": "a", "label": "much"}], {"task.kind": "regression"}, "label is no number: much"),
    ],
)
def test_a_bad_table_is_one_line(folder, tmp_path, table, changes, words):
    path = write(tmp_path / "bad.parquet", table)
    with pytest.raises(ValueError, match=words) as error:
        finetune(settings(folder, tmp_path / "x", **{"data.path": path, **changes}))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model.max_length": 100}, r"model\.max_length=100, but .* takes 64 tokens"),
        ({"model.name": "/nowhere/at/all"}, "no folder on this machine"),
        ({"batch_tokens": 5, "dry_run": True}, r"batch_tokens=5 is smaller than the longest row"),
        ({"train.epochs": 2}, "exclude each other"),
        ({"data.validation_share": 0.1}, "exclude each other"),
        ({"data.validation": [], "train.evaluate.patience": 2}, "needs rows to evaluate on"),
        ({"adapter.name": "lora", "freeze.layers": 1}, "leave the group freeze out"),
        ({"task.class_weights": {"none": 2}}, "names 'none', which is no label"),
        ({"train.warmup": 25, "dry_run": True}, "longer than the 24 steps"),
    ],
)
def test_settings_are_checked_before_anything_starts(folder, tmp_path, changes, words):
    with pytest.raises(ValueError, match=words):
        finetune(settings(folder, tmp_path / "x", **changes))
    assert not (tmp_path / "x").exists()


def test_dry_run_writes_nothing(folder, tmp_path):
    held = {"data.validation": [], "data.validation_share": 0.2, "train.steps": None, "train.epochs": 2}
    report = finetune(settings(folder, tmp_path / "x", dry_run=True, **held))
    train, validation = (report.plan["rows"][part]["rows"] for part in ("train", "validation"))
    assert validation == round(0.2 * (train + validation))
    assert report.plan["phases"][0]["steps"] == 2 * -(-report.plan["rows"]["train"]["used"] // 32)
    assert "dry run: nothing was written" in str(report)
    assert not (tmp_path / "x").exists()
