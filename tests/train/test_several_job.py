"""What the driver makes of several tasks, and what it refuses, with the setting's name in the whole tree."""

import os

import pytest
import yaml

from raybert.__main__ import parse
from raybert.config import ConfigError, dump_yaml, load
from raybert.config.finetune import FinetuneConfig
from raybert.corpus.paths import absolute, public
from raybert.finetune import FinetuneReport, finetune
from raybert.tasks.storage import from_bytes
from raybert.train.task_job import complete_job, prepare_job, refuse_other_job
from tests.train.several_tables import KINDS, several_settings, tables
from tests.train.task_tables import write

TWO = ["task.name=several", "task.tasks.a.data.path=x", "task.tasks.b.data.path=y"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("several")
    tables(path)
    return path


def test_a_task_is_set_as_if_it_were_alone(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "task: {name: several, tasks: {a: {task: {name: entities}, data: {path: x}}, b: {data: {path: [p, q]}}}}"
    )
    words = ["task.temperature=3", "task.tasks.a.weight=2", "task.tasks.b.task.kind=multi"]
    words += ["task.tasks.b.data.id=7", "task.tasks.a.task.scheme=bioes"]
    config = parse("finetune", [str(tmp_path / "c.yaml"), *words])
    a, b = config.task.tasks["a"], config.task.tasks["b"]
    assert (a.task.name, a.task.scheme, a.weight, a.data.path) == ("entities", "bioes", 2.0, "x")
    assert (b.task.name, b.task.kind, b.data.paths, b.data.id) == ("classification", "multi", ["p", "q"], "7")
    assert config.task.temperature == 3.0
    assert load(FinetuneConfig, settings=yaml.safe_load(dump_yaml(config))) == config


def test_paths_of_tasks_are_absolute_and_shown_without_credentials():
    config = parse("finetune", [*TWO, "task.tasks.b.data.validation=s3://key:secret@bucket/v"])
    tasks = absolute(config).task.tasks
    assert tasks["a"].data.path == os.path.abspath("x")
    assert public(config).task.tasks["b"].data.validation == "s3://bucket/v"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["task.tasks.a.data.pth=z"], "'task.tasks.a.data.pth'; did you mean 'task.tasks.a.data.path'?"),
        (["task.tasks.a.wieght=2"], "'task.tasks.a.wieght'; did you mean 'task.tasks.a.weight'?"),
        (["task.tasks.a.weight=0"], "task.tasks.a.weight=0 does not fit"),
        (["task.tasks.c=1"], "task.tasks.c=1 does not fit: it is a group of settings, as in task.tasks.c."),
        (["task.temperature=0.5"], "task.temperature=0.5 does not fit: input should be greater"),
        (
            ["task.tasks.a.task.name=several"],
            "task.tasks.a.task.name='several' must be one of 'classification', ",
        ),
        (
            ["task.tasks.a.task.kind=multi", "task.tasks.a.task.class_weights=balanced"],
            "task.tasks.a.task.class_weights needs task.tasks.a.task.kind=single",
        ),
        (
            ["task.tasks.b.data.validation=v", "task.tasks.b.data.validation_share=0.1"],
            "task.tasks.b.data.validation and task.tasks.b.data.validation_share exclude each other",
        ),
        (["task.kind=multi"], "task.kind means nothing with the task.name that is given"),
    ],
)
def test_settings_that_do_not_fit_are_named_in_the_whole_tree(words, message):
    with pytest.raises(ConfigError) as error:
        parse("finetune", [*TWO, *words])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({"a": {}}, r"task\.tasks needs two tasks"),
        ({"a": {}, "b c": {}}, "'b c' becomes the name of a folder"),
    ],
)
def test_tasks_must_be_some_with_names(tasks, message):
    with pytest.raises(ConfigError, match=message):
        load(FinetuneConfig, settings={"task": {"name": "several", "tasks": tasks}})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"data.path": "x"},
            r"data\.path means nothing with task\.name=several; .* task\.tasks\.NAME\.data\.path",
        ),
        (
            {"task.tasks.intents.data.path": ""},
            r"^task\.tasks\.intents\.data\.path is missing: .* task\.tasks\.intents",
        ),
        (
            {"task.tasks.entities.data.text": "x"},
            r"task\.tasks\.entities\.data\.text means nothing with task\.tasks\.en",
        ),
        ({"adapter.name": "adalora"}, r"adapter\.name=adalora does not work with task\.name=several"),
        ({"adapter.name": "prefix"}, r"adapter\.name=prefix does not work"),
        (
            {"adversarial.name": "smart"},
            r"adversarial\.name=smart compares the logits of classes, which task\.name=several",
        ),
        (
            {"regularize.ewc": 1.0, "regularize.ewc_data": "x"},
            r"regularize\.ewc draws a label .* it is for task",
        ),
        ({"train.offload": True, "train.zero": 2}, r"train\.offload=true does not work"),
        ({"train.on_spike": "rewind"}, r"train\.on_spike=rewind would compare losses of different tasks"),
        (
            {"train.evaluate.metric": "accuracy"},
            r"metric=accuracy must be mean, loss, or a figure of a task .* entities\.F",
        ),
        ({"train.evaluate.metric": "nobody.f1"}, r"metric=nobody\.f1 must be mean"),
        ({"train.optimizer": "lamb", "train.zero": 1}, r"train\.optimizer=lamb needs the norm"),
        ({"model.name": ""}, r"model\.name is missing"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_read(folder, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as error:
        finetune(several_settings(folder, tmp_path / "x", **changes))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "x").exists()


def test_patience_needs_rows_of_one_task_at_least(folder, tmp_path):
    none = {f"task.tasks.{name}.data.validation": [] for name in KINDS[:3]}
    settings = several_settings(folder, tmp_path / "x", **none, **{"train.evaluate.patience": 1})
    with pytest.raises(ValueError, match=r"set task\.tasks\.NAME\.data\.validation"):
        finetune(settings)


@pytest.mark.parametrize(
    ("task", "table", "message"),
    [
        (
            "intents",
            [{"text": "a", "label": "x"}] * 2,
            r"^task\.tasks\.intents\.data\.label has one label only",
        ),
        (
            "intents",
            [{"body": "a", "label": "x"}],
            r"^task\.tasks\.intents\.data\.text=text: there is no such column",
        ),
        (
            "entities",
            [{"tokens": ["a"], "label": ["x"]}],
            r"^task\.tasks\.entities\.task\.tags=tags: there is no such",
        ),
        (
            "numbers",
            [{"text": "a", "label": "much"}],
            r"^task\.tasks\.numbers\.data\.path: no row can be used: 1 x",
        ),
        (
            "numbers",
            [{"text": "", "label": 1.0}] * 2,
            r"^task\.tasks\.numbers\.data\.path: no row can be used: 2 x empty",
        ),
    ],
)
def test_a_bad_table_is_one_line_that_names_the_task(folder, tmp_path, task, table, message):
    path = write(tmp_path / "bad.parquet", table)
    with pytest.raises(ValueError, match=message) as error:
        finetune(several_settings(folder, tmp_path / "x", **{f"task.tasks.{task}.data.path": path}))
    assert "\n" not in str(error.value)


def test_a_job_has_the_rows_and_labels_of_every_task(folder, tmp_path):
    config = load(FinetuneConfig, settings=several_settings(folder, tmp_path / "run", KINDS))
    prepared = prepare_job(config)
    complete_job(prepared, config, gpu=False, workers=2)
    job = prepared.job
    assert job["metric"] == "mean"
    assert job["labels"].keys() == set(KINDS)
    assert job["labels"]["intents"] == ["being", "place"]
    assert job["rows"]["answers/train"]["used"] == 20
    assert job["rows"].keys() == {f"{name}/{part}" for name in KINDS for part in ("train", "validation")}
    assert from_bytes(prepared.files["_raybert/examples/entities/validation.parquet"]).truth.keys() == {
        "tags"
    }
    assert b"[E1]" in prepared.files["_raybert/tokenizer/tokenizer.json"]
    text = str(FinetuneReport("x", plan=job))
    assert "intents/train            120 rows = 120 used + 0 rejected" in text
    assert "entities labels          3" in text
    reordered = {**config.task.tasks}
    reordered["intents"] = reordered.pop("intents")
    task = config.task.model_copy(update={"tasks": dict(reversed(reordered.items()))})
    again = prepare_job(config.model_copy(update={"task": task})).job
    refuse_other_job(job, again, "run")  # the order in which tasks are written is nothing
    assert "data" not in job["requested"]["task"]["tasks"]["intents"]
    other = {**again, "digests": {**again["digests"], "numbers/train": "x"}}
    with pytest.raises(ValueError, match=r"other rows than are in task\.tasks\.numbers\.data\.path now"):
        refuse_other_job(job, other, "run")
    task = config.task.model_copy(update={"temperature": 2.0})
    with pytest.raises(ValueError, match=r"other settings: task\.temperature=2\.0 \(was 1\.0\)"):
        refuse_other_job(job, prepare_job(config.model_copy(update={"task": task})).job, "run")


def test_dry_run_counts_passes_over_all_rows(folder, tmp_path):
    settings = several_settings(
        folder, tmp_path / "x", dry_run=True, **{"train.steps": None, "train.epochs": 3}
    )
    report = finetune(settings)
    assert report.plan["phases"][0]["steps"] == 3 * (8 + 4 + 3)  # of 120, 60 and 40 rows, 16 a batch
    assert not (tmp_path / "x").exists()
