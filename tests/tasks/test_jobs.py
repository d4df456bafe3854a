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
from raybert.train.task_job import complete_job, prepare_job, refuse_settings
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
SIMILARITY = [
    {"sentence1": "the fox", "sentence2": "the dog", "score": 2.5},
    {"sentence1": "the city", "sentence2": "the river", "score": 1.0},
    {"sentence1": "the city", "sentence2": "the river", "score": None},
]
RETRIEVAL = [
    {"query": "the fox", "positive": "the dog"},
    {"query": "the city", "positive": "the river"},
    {"query": "the city", "positive": ""},
]
SELECTION = [
    {"context": ["the fox", "and"], "response": "the dog"},
    {"context": ["the city"], "response": "the river"},
    {"context": [], "response": "the river"},
]
ROWS = {
    "entities": ENTITIES,
    "relations": RELATIONS,
    "answers": ANSWERS,
    "similarity": SIMILARITY,
    "retrieval": RETRIEVAL,
    "selection": SELECTION,
}


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
    given = {"train.epochs": 1, **({"task.negatives": 1} if task == "selection" else {})}
    jobs = [
        prepare_job(config_of(task, model, tmp_path / f"rows.{end}", **given)) for end in ("parquet", "jsonl")
    ]
    assert jobs[0].job["digests"] == jobs[1].job["digests"]
    job = jobs[0].job
    assert (
        job["labels"]
        == {
            "entities": ["O", "B-place", "I-place"],
            "relations": ["In(e2,e1)", "Other"],
            "answers": ["LABEL_0", "LABEL_1"],
            "similarity": [],
            "retrieval": [],
            "selection": ["LABEL_0"],
        }[task]
    )
    assert job["metric"] == data_side(task).main_figure(config_of(task, model, tmp_path).task)
    for part in ("train", "validation"):
        assert (job["rows"][part]["rows"], job["rows"][part]["used"]) == (3, 2)
        made = from_bytes(jobs[0].files[f"_raybert/examples/{part}.parquet"])
        assert list(dict.fromkeys(made.row.tolist())) == [0, 1]
        truth = {"entities": {"tags"}, "answers": {"context", "answers"}}.get(task, set())
        assert made.truth.keys() == (truth if part == "validation" else set())
    tok = Tokenizer.from_str(jobs[0].files["_raybert/tokenizer/tokenizer.json"].decode())
    assert (tok.token_to_id("[E1]") is not None) == (task == "relations")
    assert job["vocabulary"] == tok.get_vocab_size()


def test_what_the_defaults_of_a_task_stand_for_is_kept(model, tmp_path):
    pq.write_table(pa.Table.from_pylist(SIMILARITY), tmp_path / "rows.parquet")
    folder = tiny_model(tmp_path / "st", pooling="cls", max_seq_length=20)
    config = config_of("similarity", folder, tmp_path / "rows.parquet", **{"model.max_length": None})
    job = prepare_job(config).job
    assert job["max_length"] == 20
    assert {key: job["settings"][key] for key in ("low", "high", "pooling", "prompt")} == {
        "low": 1.0,
        "high": 2.5,
        "pooling": "cls",
        "prompt": "",
    }
    assert job["requested"]["task"] == job["settings"]
    pq.write_table(pa.Table.from_pylist(SIMILARITY[:1]), tmp_path / "one.parquet")
    with pytest.raises(ValueError, match=r"task\.score=score: all scores are 2\.5"):
        prepare_job(config_of("similarity", folder, tmp_path / "one.parquet"))


def test_steps_and_longest_rows_follow_from_the_groups_of_a_task(model, tmp_path):
    rows = [{"context": f"the fox {i}", "response": f"dog {i}"} for i in range(20)]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    config = config_of(
        "selection", model, tmp_path / "rows.parquet", **{"train.epochs": 3, "train.batch_size": 6}
    )
    prepared = prepare_job(config)
    complete_job(prepared, config, gpu=False, workers=2)
    assert prepared.job["phases"][0]["steps"] == 3 * 4
    assert prepared.job["rows"]["train"]["examples"] == 200
    small = config_of("selection", model, tmp_path / "rows.parquet", batch_tokens=40)
    with pytest.raises(ValueError, match=r"batch_tokens=40 is smaller than the longest row \(\d\d tokens\)"):
        complete_job(prepared, small, gpu=False, workers=2)


def test_every_task_has_two_sides():
    assert DATA.keys() == MODELS.keys() == {"classification", "generation", *ROWS}


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        ("entities", {"data.text": "body"}, "data.text means nothing with task.name=entities"),
        ("answers", {"data.label": "x"}, "data.label means nothing with task.name=answers"),
        ("relations", {"adapter.name": "bitfit"}, "adapter.name=bitfit is saved without"),
        ("retrieval", {"regularize.r_drop": 1}, "regularize.r_drop is of probabilities of labels"),
        ("similarity", {"regularize.label_smoothing": 0.1}, "regularize.label_smoothing is of prob"),
        ("similarity", {"freeze.layers": "all"}, "freeze.layers=all leaves nothing to train"),
        ("retrieval", {"freeze.gradual": True}, "freeze.gradual begins with the head"),
        ("retrieval", {"adapter.name": "bitfit"}, "adapter.name=bitfit is saved beside its base"),
        (
            "retrieval",
            {"adversarial.name": "fgm"},
            "adversarial.name=fgm needs the loss of each forward pass",
        ),
        ("similarity", {"adversarial.name": "fgm"}, "set task.loss=cosine, or leave it out"),
        ("similarity", {"task.high": 2}, "data.path: score of row 0 is 2.5, which is not in"),
        ("retrieval", {"task.dimensions": [16, 8]}, "must be sizes up to the width of the vectors, 32"),
        ("retrieval", {"task.negatives": "nope"}, "task.negatives=nope: there is no such column"),
        ("selection", {}, "task.negatives=9 wrong responses are drawn"),
        ("selection", {"task.candidates": "response"}, "name a column twice"),
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
