"""Bulk prediction with real (tiny) models: on a real Ray where the runner is asked, else in this process."""

import json
from dataclasses import fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from raybert.config import load
from raybert.config.predicting import PredictConfig
from raybert.corpus.inspect_labels import label_problems
from raybert.corpus.ledger import Commit, Source
from raybert.corpus.plan import type_text
from raybert.corpus.readers import REASON, Shard
from raybert.corpus.vectors import read_metadata, to_parquet
from raybert.encoder.tokenizing import TextTokenizer
from raybert.predict import output_schema, predict
from raybert.predict_shard import LoadPredictor, PredictShard, PrepareRows
from raybert.resolve_head import head_of, load_as_resolved, resolve_head
from raybert.tasks.predictor_model import Predictor
from raybert.verify import verify
from tests.conftest import sentences
from tests.heads import LABELS, change_config, sequences, tiny_head

TEXTS = [*sentences(90), None, " ", "one text that is longer than the model takes " * 12, ""]
USED = [text for text in TEXTS if text and text.strip()]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_head(tmp_path_factory.mktemp("head") / "model")


@pytest.fixture
def job(tmp_path, model):
    """Predict tmp_path/in -> tmp_path/out with small shards; keywords are settings with __ for dots."""

    def go(**settings):
        keys = {key.replace("__", "."): value for key, value in settings.items()}
        defaults = {
            "model.name": model,
            "data.path": str(tmp_path / "in"),
            "output.path": str(tmp_path / "out"),
            "output.rows_per_shard": 40,
            "model.dtype": "float32",
            "batch_tokens": 100,
            "workers": {"count": 1, "cpus": 1},
        }
        return predict({**defaults, **keys})

    return go


def write(path, texts, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = [f"id{i}" for i in range(len(texts))]
    pq.write_table(pa.table({"id": ids, "text": pa.array(texts, pa.string()), **columns}), path)


def of_transformers(model, texts, **options):
    from transformers import pipeline

    return pipeline("text-classification", model=model)(texts, truncation=True, **options)


def test_every_row_once_with_transformers_own_predictions(tmp_path, model, job, ray_local):
    write(tmp_path / "in/a.parquet", TEXTS, n=list(range(len(TEXTS))))
    report = job(data__id="id", data__columns=["n"])
    table = pq.read_table(tmp_path / "out/data")
    assert table.column_names == ["id", "n", "label", "score"]
    good = [i for i, text in enumerate(TEXTS) if text and text.strip()]
    assert table["n"].to_pylist() == good
    assert table["id"].to_pylist() == [f"id{i}" for i in good]
    expected = of_transformers(model, USED)
    assert len({row["label"] for row in expected}) > 1  # a test of one label would show little
    assert table["label"].to_pylist() == [row["label"] for row in expected]
    assert np.abs(table["score"].to_numpy() - [row["score"] for row in expected]).max() < 1e-5
    rejects = pq.read_table(tmp_path / "out/_rejects").to_pylist()
    assert {row["row"]: row["reason"] for row in rejects} == {90: "null", 91: "whitespace only", 93: "empty"}
    assert (report.rows, report.embedded, report.rejected, report.shards) == (94, 91, 3, 3)
    whole = Tokenizer.from_file(f"{model}/tokenizer.json")
    assert report.truncated == sum(len(whole.encode(text).ids) > 64 for text in USED) > 1
    assert "94 = 91 predicted + 3 rejected" in str(report)
    check_the_folder(tmp_path / "out", model)
    check_it_goes_on(tmp_path / "out", job, table)


def check_the_folder(out, model):
    metadata = json.loads(pq.read_schema(next((out / "data").iterdir())).metadata[b"raybert"])
    assert metadata["labels"] == list(LABELS)
    assert (metadata["kind"], metadata["settings"]["kind"], metadata["model"]) == ("labels", "single", model)
    assert "Predictions for 91 rows" in (out / "README.md").read_text()
    verdict = verify(str(out))
    assert verdict.good, verdict.problems
    assert "predicted" in str(verdict)


def check_it_goes_on(out, job, before):
    """What is finished stays, what is lost is done again, and other settings are refused."""
    lost = sorted((out / "data").iterdir())[1]
    lost.unlink()
    (out / "_raybert/commits" / f"{lost.stem}.json").unlink()
    assert not verify(str(out)).good
    kept = {file: file.stat().st_mtime_ns for file in (out / "data").iterdir()}
    job(data__id="id", data__columns=["n"])
    assert pq.read_table(out / "data").equals(before)
    assert all(file.stat().st_mtime_ns == when for file, when in kept.items())
    with pytest.raises(ValueError, match=r"model\.max_length=32"):
        job(data__id="id", data__columns=["n"], model__max_length=32)


def test_settings_that_cannot_be_used_are_one_line(tmp_path, model, job, ray_local):
    write(tmp_path / "in/a.parquet", sentences(3), label=["x"] * 3)
    with pytest.raises(ValueError, match=r"data\.columns: 'label' is a column of the predictions"):
        job(data__columns=["label"])
    with pytest.raises(ValueError, match="text2"):
        job(data__text_pair="text2")
    broken = tiny_head(tmp_path / "broken")
    change_config(broken, label2id={"a": 0, "b": 2, "c": 3})
    with pytest.raises(ValueError, match="each once") as error:
        job(model__name=broken)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def examples_of(model, texts):
    tokenizer = TextTokenizer((Path(model) / "tokenizer.json").read_text(), max_length=64)
    tokens = tokenizer(texts)
    return sequences(tokens.values, tokens.lengths, tokens.lengths.astype(np.int32))


def resolved(model, **settings):
    values = {"model.name": model, "model.dtype": "float32", "batch_tokens": 90, **settings}
    return load(PredictConfig, settings=values), resolve_head(load(PredictConfig, settings=values), 1)[0]


@pytest.mark.parametrize("family", ["roberta", "distilbert", "mpnet"])
def test_other_families_in_the_order_of_the_rows(tmp_path, family):
    model = tiny_head(tmp_path / "model", family=family)
    config, found = resolved(model)
    texts = sentences(20)
    predictor = load_as_resolved(config.model, found)
    logits = predictor(examples_of(model, texts))["logits"]
    expected = of_transformers(model, texts, top_k=None, function_to_apply="none")
    for row, scores in zip(logits, expected, strict=True):
        given = {score["label"]: score["score"] for score in scores}
        assert row == pytest.approx([given[label] for label in LABELS], abs=1e-4)
    assert predictor.padded == (family == "mpnet")
    assert predictor(examples_of(model, []))["logits"].shape == (0, 3)


def test_many_labels_and_numbers(tmp_path):
    from raybert.tasks.known import data_side

    multi = tiny_head(tmp_path / "multi", problem="multi_label_classification")
    number = tiny_head(tmp_path / "number", ["LABEL_0"], problem="regression")
    texts = sentences(12)
    for model, kind in ((multi, "multi"), (number, "regression")):
        config, found = resolved(model)
        head = head_of(found)
        assert head.settings.kind == kind
        outputs = load_as_resolved(config.model, found)(examples_of(model, texts))
        rows = data_side(head.task).decode(outputs, examples_of(model, texts), head.labels, head.settings)
        expected = of_transformers(model, texts, top_k=None)
        for row, scores in zip(rows, expected, strict=True):
            if kind == "regression":
                assert row["value"] == pytest.approx(scores[0]["score"], abs=1e-4)
                continue
            above = {score["label"]: score["score"] for score in scores if score["score"] > 0.5}
            assert dict(zip(row["labels"], row["scores"], strict=True)) == pytest.approx(above, abs=1e-4)


def one_shard(model, table, predictor=None, **settings):
    """What prepare and a worker make of one shard, without Ray."""
    config, found = resolved(model, **{"data.columns": ["n"], **settings})
    text = (Path(model) / "tokenizer.json").read_text()
    prepare = PrepareRows(config.data, head_of(found), ("n",), Tokenizer.from_str(text), found["max_length"])
    source = Source("0" * 12, "file.parquet", 1, "", "parquet", ())
    prepared = prepare(table, source, Shard(100, 100 + len(table), 0, 0))
    types = {"text": type_text(pa.large_string()), "n": type_text(pa.int64())}
    job = {"resolved": found, "types": types, "kept": ["n"], "carried": {}, "model": {"name": model}}
    schema = output_schema(config, job)
    worker = LoadPredictor(config.model, found, schema)()
    return (PredictShard(predictor, head_of(found), schema) if predictor else worker)(prepared)


def rows_of(texts, **columns):
    more = {name: pa.array(values, pa.large_string()) for name, values in columns.items()}
    reasons = pa.nulls(len(texts), pa.string())
    columns = {"text": pa.array(texts, pa.large_string()), **more, REASON: reasons}
    return pa.table({**columns, "n": list(range(len(texts)))})


def test_pairs_of_texts(model):
    first, second = sentences(6), [*sentences(4, seed=9), None, " "]
    outcome = one_shard(model, rows_of(first, other=second), **{"data.text_pair": "other"})
    pairs = [{"text": a, "text_pair": b} for a, b in zip(first[:4], second, strict=False)]
    expected = [of_transformers(model, pair) for pair in pairs]
    expected = [row[0] if isinstance(row, list) else row for row in expected]
    assert outcome.data["label"].to_pylist() == [row["label"] for row in expected]
    assert outcome.data["score"].to_pylist() == pytest.approx([row["score"] for row in expected], abs=1e-5)
    reasons = {row["row"]: row["reason"] for row in outcome.rejects.to_pylist()}
    assert reasons == {104: "text_pair is null", 105: "text_pair is empty"}
    assert outcome.counts["rows"] == outcome.counts["embedded"] + outcome.counts["rejected"] == 6


def test_outputs_that_are_not_finite_are_rejected(model):
    config, found = resolved(model)

    class Broken:
        """The model, with one output spoilt."""

        real = load_as_resolved(config.model, found)
        computed_tokens = real.computed_tokens

        def __call__(self, examples):
            logits = self.real(examples)["logits"]
            logits[1, 2] = np.nan
            return {"logits": logits}

    outcome = one_shard(model, rows_of([None, *sentences(3)]), Broken())
    assert outcome.data["n"].to_pylist() == [1, 3]
    (null, broken) = outcome.rejects.to_pylist()
    assert (null["reason"], broken["row"]) == ("null", 102)
    assert broken["reason"] == "the model's output is not finite"


@pytest.mark.parametrize(
    ("problem", "labels", "damage", "words"),
    [
        ("single_label_classification", LABELS, None, None),
        ("single_label_classification", LABELS, ("label", "rock"), "not among those of the model"),
        ("single_label_classification", LABELS, ("score", 1.5), "no probability"),
        ("multi_label_classification", LABELS, None, None),
        ("multi_label_classification", LABELS, ("scores", [0.9] * 4), "not as many scores"),
        ("regression", ["LABEL_0"], None, None),
        ("regression", ["LABEL_0"], ("value", float("inf")), "not finite"),
    ],
)
def test_the_content_of_a_file_is_checked(tmp_path, problem, labels, damage, words):
    model = tiny_head(tmp_path / "model", labels, problem=problem)
    table = one_shard(model, rows_of(sentences(5))).data
    if damage:
        name, value = damage
        field, values = table.schema.field(name), table[name].to_pylist()
        at = table.schema.get_field_index(name)
        table = table.set_column(at, field, pa.array([value, *values[1:]], field.type))
    file = pq.ParquetFile(pa.BufferReader(to_parquet(table)))
    commit = Commit(**{**dict.fromkeys((f.name for f in fields(Commit)), 0), "embedded": 5, "vectors": 5})
    problems = label_problems(file, commit, read_metadata(table.schema))
    assert len(problems) == (1 if words else 0)
    assert not words or words in problems[0]


def test_a_worker_refuses_other_weights(tmp_path):
    model = tiny_head(tmp_path / "model")
    config, found = resolved(model)
    tiny_head(tmp_path / "model", seed=1)
    with pytest.raises(ValueError, match="are not those of the plan"):
        load_as_resolved(config.model, found)


def test_a_head_without_weights_is_refused(tmp_path, model):
    from tests.encoder.tiny import tiny_model

    plain = tiny_model(tmp_path / "plain", st=False)
    _, found = resolved(model)
    change_config(
        str(plain),
        architectures=["BertForSequenceClassification"],
        id2label={i: label for i, label in enumerate(LABELS)},
        label2id={label: i for i, label in enumerate(LABELS)},
    )
    with pytest.raises(ValueError, match="lack 2 of the model's, such as classifier"):
        Predictor(plain, head_of(found), dtype="float32", device="cpu", batch_tokens=64)
