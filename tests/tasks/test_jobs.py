"""What the driver makes of the tables of every task: examples, labels, truth to evaluate on; and what it refuses."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from raybert.config import ConfigError, load
from raybert.config.finetune import FinetuneConfig
from raybert.finetune import FinetuneReport
from raybert.tasks.known import DATA, MODELS, data_side
from raybert.tasks.storage import from_bytes
from raybert.train.task_job import prepare_job, refuse_settings
from tests.encoder.tiny import tiny_model

JOBS = Path(__file__).parents[2] / "jobs"
ENTITIES = [
    {"tokens": ["the", "city", "of", "music"], "tags": ["O", "B-place", "O", "O"]},
    {"tokens": ["fox"], "tags": ["O"]},
    {"tokens": ["dog"], "tags": []},
]
RELATIONS = [
    {"text": "the <e1>fox</e1> and the <e2>dog</e2>", "label": "Other"},
    {"text": "the <e2>river</e2> in the <e1>city</e1>", "label": "In(e2,e1)"},
    {"text": "the <e1>river</e1>", "label": "Other"},
]
ANSWERS = [
    {"question": "who", "context": "the quick fox", "answers": {"text": ["fox"], "answer_start": [10]}},
    {"question": "what", "context": "the city", "answers": {"text": ["city", "the"], "answer_start": [4, 0]}},
    {"question": "why", "context": "the city", "answers": {"text": [], "answer_start": []}},
]
ROWS = {"entities": ENTITIES, "relations": RELATIONS, "answers": ANSWERS}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"), st=False)


def config_of(task: str, model: Path, path: Path, **changes) -> FinetuneConfig:
    return load(
        FinetuneConfig,
        file=str(JOBS / f"{task}.yaml"),
        settings={
            "model.name": str(model),
            "model.max_length": 32,
            "data.path": str(path),
            "data.validation": str(path),
            "output.path": "out",
            **changes,
        },
    )


@pytest.mark.parametrize("task", ROWS)
def test_a_table_becomes_a_job_in_any_format(task, model, tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS[task]), tmp_path / "rows.parquet")
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS[task]))
    jobs = [
        prepare_job(config_of(task, model, tmp_path / f"rows.{end}", **{"train.epochs": 1}))
        for end in ("parquet", "jsonl")
    ]
    assert jobs[0].job["digests"] == jobs[1].job["digests"]
    job = jobs[0].job
    assert (
        job["labels"]
        == {
            "entities": ["O", "B-place", "I-place"],
            "relations": ["In(e2,e1)", "Other"],
            "answers": ["LABEL_0", "LABEL_1"],
        }[task]
    )
    assert job["metric"] == data_side(task).main_figure(config_of(task, model, tmp_path).task)
    for part in ("train", "validation"):
        assert (job["rows"][part]["rows"], job["rows"][part]["used"]) == (3, 2)
        made = from_bytes(jobs[0].files[f"_raybert/examples/{part}.parquet"])
        assert made.row.tolist() == [0, 1]
        truth = {"entities": {"tags"}, "answers": {"context", "answers"}, "relations": set()}[task]
        assert made.truth.keys() == (truth if part == "validation" else set())
    tok = Tokenizer.from_str(jobs[0].files["_raybert/tokenizer/tokenizer.json"].decode())
    assert (tok.token_to_id("[E1]") is not None) == (task == "relations")
    assert job["vocabulary"] == tok.get_vocab_size()


def test_every_task_has_two_sides():
    assert DATA.keys() == MODELS.keys() == {"classification", *ROWS}


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("entities", {"data.text": "body"}, "data.text means nothing with task.name=entities"),
        ("answers", {"data.label": "x"}, "data.label means nothing with task.name=answers"),
        ("relations", {"adapter.name": "bitfit"}, "adapter.name=bitfit is saved without"),
        ("entities", {"task.tags": "nope"}, "task.tags=nope: there is no such column"),
        ("answers", {"task.answer_start": "nope.at"}, "task.answer_start=nope: there is no such column"),
    ],
)
def test_settings_that_mean_nothing_are_refused(task, changes, message, model, tmp_path):
    pq.write_table(pa.Table.from_pylist(ROWS[task]), tmp_path / "rows.parquet")

    def job():
        config = config_of(task, model, tmp_path / "rows.parquet", **changes)
        refuse_settings(config)
        return prepare_job(config)

    with pytest.raises((ValueError, ConfigError), match=message):
        job()


def test_rows_that_were_cut_or_put_right_are_counted(model, tmp_path):
    texts = [{"text": "the fox " * 40, "label": "a"}, {"text": "the fox", "label": "b"}]
    tags = [*ENTITIES[:2], {"tokens": ["the", "city"], "tags": ["O", "I-place"]}]
    found = {}
    for task, rows, more in (("classify", texts, {}), ("entities", tags, {"task.errors": "repair"})):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"{task}.parquet")
        found[task] = prepare_job(config_of(task, model, tmp_path / f"{task}.parquet", **more)).job
    counts = {
        task: [job["rows"]["train"][key] for key in ("truncated", "repaired")] for task, job in found.items()
    }
    assert counts == {"classify": [1, 0], "entities": [0, 1]}
    assert "of those used, 1 truncated\n" in str(FinetuneReport("out", {"loss": 1.0}, found["classify"]))
    assert "of those used, 1 repaired\n" in str(FinetuneReport("out", {"loss": 1.0}, found["entities"]))
