"""Bulk prediction for every task: each row once, with what a naive loop over plain transformers gives."""

import json
from dataclasses import fields
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from tokenizers import Tokenizer
from transformers import (
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from raybert.config import load
from raybert.config.pair_tasks import SelectionSettings
from raybert.config.predicting import HeadTaskSettings, PredictConfig
from raybert.config.tasks import AnswersSettings, EntitiesSettings, RelationsSettings
from raybert.corpus.inspect_labels import label_problems
from raybert.corpus.ledger import Commit, Source
from raybert.corpus.plan import type_text
from raybert.corpus.readers import REASON, Shard
from raybert.corpus.vectors import read_metadata, to_parquet
from raybert.predict import output_schema, predict
from raybert.predict_shard import LoadPredictor, PrepareRows
from raybert.resolve_head import head_of, open_folder, resolve_head
from raybert.tasks import relations_model
from raybert.tasks.heads import record_head
from raybert.tasks.tags import all_tags
from raybert.tasks.words import find_words
from raybert.verify import verify
from tests.conftest import SHARED, sentences
from tests.heads import tiny_task
from tests.tasks.test_entities import chunks

TAGS = all_tags(["LOC", "PER"], "bio")
RELATIONS = ["Cause-Effect(e1,e2)", "Cause-Effect(e2,e1)", "Other"]
SPANS = ["LABEL_0", "LABEL_1"]


def one_shard(model, table, **settings):
    """What prepare and a worker make of one shard, without Ray; `n` is kept."""
    values = {
        "model.name": model,
        "model.dtype": "float32",
        "batch_tokens": 90,
        "data.columns": ["n"],
        **settings,
    }
    config = load(PredictConfig, settings=values)
    found, text = resolve_head(config, 1)
    table = table.append_column("n", pa.array(range(len(table))))
    prepare = PrepareRows(config.data, head_of(found), ("n",), Tokenizer.from_str(text), found["max_length"])
    source = Source("0" * 12, "file.parquet", 1, "", "parquet", ())
    reasons = pa.nulls(len(table), pa.string())
    prepared = prepare(table.append_column(REASON, reasons), source, Shard(0, len(table)))
    types = {"n": type_text(pa.int64())}
    job = {"resolved": found, "types": types, "kept": ["n"], "carried": {}, "model": {"name": model}}
    outcome = LoadPredictor(config.model, found, output_schema(config, job))()(prepared)
    assert outcome.counts["rows"] == len(table) == outcome.counts["embedded"] + outcome.counts["rejected"]
    return outcome


def rejected(outcome):
    return {} if outcome.rejects is None else {r["row"]: r["reason"] for r in outcome.rejects.to_pylist()}


# --- entities


@pytest.fixture(scope="module")
def tagger(tmp_path_factory):
    return tiny_task(tmp_path_factory.mktemp("entities") / "model", EntitiesSettings(), TAGS, seed=3)


def naive_entities(model, text):
    """Every word by its first token, in one pass over the whole text."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    given = tokenizer(text, return_offsets_mapping=True, return_tensors="pt")
    places = given.pop("offset_mapping")[0].tolist()
    with torch.no_grad():
        logits = AutoModelForTokenClassification.from_pretrained(model)(**given).logits[0]
    sure, best = logits.double().softmax(-1).max(-1)
    words = find_words([text])
    words = list(zip(words.starts.tolist(), words.ends.tolist(), strict=True))
    first = [next(i for i, (a, b) in enumerate(places) if a < end and b > start) for start, end in words]
    found = []
    for start, stop, kind in sorted(chunks([TAGS[best[i]] for i in first])):
        begin, end = words[start][0], words[stop - 1][1]
        score = float(np.mean([float(sure[i]) for i in first[start:stop]]))
        found.append({"start": begin, "end": end, "label": kind, "score": score, "text": text[begin:end]})
    return found


def test_entities_of_texts_are_those_of_a_naive_loop(tagger):
    texts = [*[" ".join(text.split()[:15]) for text in sentences(12)], None, " "]
    outcome = one_shard(tagger, pa.table({"words": texts}), **{"task.text": "words"})
    assert outcome.data.column_names == ["id", "n", "entities"]
    assert outcome.data["n"].to_pylist() == list(range(12))
    found = outcome.data["entities"].to_pylist()
    assert sum(map(len, found)) > 20
    for text, row in zip(texts, found, strict=False):
        expected = naive_entities(tagger, text)
        assert [{**x, "score": 0} for x in row] == [{**x, "score": 0} for x in expected]
        assert [x["score"] for x in row] == pytest.approx([x["score"] for x in expected], abs=1e-5)
    assert rejected(outcome) == {12: "words is null", 13: "words is empty"}


def test_a_shard_without_a_row_that_can_be_used(tagger):
    outcome = one_shard(tagger, pa.table({"tokens": pa.array([None, []], pa.list_(pa.string()))}))
    assert (len(outcome.data), rejected(outcome)) == (0, {0: "tokens is null", 1: "tokens is an empty list"})


def test_entities_of_words_with_windows_and_what_the_folder_says(tagger, tmp_path):
    """Long rows in windows of 16 tokens give what the same windows give one by one."""
    model = tiny_task(tmp_path / "model", EntitiesSettings(), TAGS, seed=3)
    record_head(Path(model), EntitiesSettings(tokens="words", overlap=4), max_length=16)
    rows = [text.split() for text in sentences(9, seed=2)]
    table = pa.table({"words": [*rows, None, []]})
    outcome = one_shard(model, table)
    assert outcome.data["n"].to_pylist() == list(range(9))
    assert outcome.counts["truncated"] == 0
    folder = open_folder(load(PredictConfig, settings={"model.name": model}).model, HeadTaskSettings())
    assert (folder.max_length, folder.head.settings.overlap) == (16, 4)
    expected = by_windows(model, folder, table.slice(0, 9), AutoModelForTokenClassification, "logits")
    found = outcome.data.to_pylist()
    assert max(len(row) for row in rows) > 16
    for row, want in zip(found, expected, strict=True):
        for one, other in zip(row["entities"], want["entities"], strict=True):
            assert {**one, "score": 0} == {**other, "score": 0}
            assert one["score"] == pytest.approx(other["score"], abs=1e-5)


def by_windows(model, folder, table, auto, *names):
    """`decode` of the outputs of plain transformers for each window by itself."""
    from raybert.tasks.known import data_side

    side = data_side(folder.head.task)
    made, _ = side.prepare(
        table, Tokenizer.from_str(folder.tokenizer), None, folder.head.settings, max_length=folder.max_length
    )
    assert len(made) > len(table)
    plain, parts = auto.from_pretrained(model).eval(), []
    for number, (a, b) in enumerate(pairwise(made.ids.offsets)):
        ids = torch.tensor(made.ids.values[a:b], dtype=torch.int64)[None]
        types = (torch.arange(b - a) >= int(made.boundary[number])).long()[None]
        with torch.no_grad():
            found = plain(input_ids=ids, token_type_ids=types)
        parts.append(np.stack([found[name][0].numpy() for name in names], -1).reshape(b - a, -1))
    made = side.with_texts(made, table, folder.head.settings)
    return side.decode({"logits": np.concatenate(parts)}, made, folder.head.labels, folder.head.settings)


# --- answers


@pytest.fixture(scope="module")
def answerer(tmp_path_factory):
    return tiny_task(tmp_path_factory.mktemp("answers") / "model", AnswersSettings(), SPANS, seed=5)


def naive_answer(model, question, context, longest):
    """The best of all spans of at most `longest` tokens, in one pass over the whole context."""
    tokenizer = AutoTokenizer.from_pretrained(model)
    given = tokenizer(question, context, return_offsets_mapping=True, return_tensors="pt")
    places, which = given.pop("offset_mapping")[0].tolist(), given.sequence_ids(0)
    with torch.no_grad():
        found = AutoModelForQuestionAnswering.from_pretrained(model)(**given)
    start, end = found.start_logits[0].tolist(), found.end_logits[0].tolist()
    inside = [i for i, part in enumerate(which) if part == 1]
    score, i, j = max((start[i] + end[j], i, j) for i in inside for j in inside if i <= j < i + longest)
    return context[places[i][0] : places[j][1]], places[i][0], score, start[0] + end[0]


def test_answers_are_those_of_a_naive_search(answerer):
    contexts = [" ".join(text.split()[:15]) for text in sentences(8, seed=4)]
    questions = [" ".join(text.split()[:5]) for text in sentences(8, seed=5)]
    table = pa.table({"frage": [*questions, "who", None], "context": [*contexts, None, "fox"]})
    settings = {"task.question": "frage", "task.max_answer": 4}
    outcome = one_shard(answerer, table, **settings)
    expected = [naive_answer(answerer, *pair, 4) for pair in zip(questions, contexts, strict=True)]
    rows = outcome.data.to_pylist()
    assert [(row["answer"], row["start"]) for row in rows] == [
        (text, start) for text, start, _, _ in expected
    ]
    assert len({row["start"] for row in rows}) > 2
    assert [row["score"] for row in rows] == pytest.approx([score for *_, score, _ in expected], abs=1e-4)
    assert rejected(outcome) == {8: "context is null", 9: "frage is null"}
    # the margins of the rows tell which threshold leaves half of them without an answer
    margins = [none - score for *_, score, none in expected]
    assert [row["null_difference"] for row in rows] == pytest.approx(margins, abs=1e-4)
    middle = float(np.median(margins))
    more = {"task.allow_unanswerable": True, "task.null_threshold": middle}
    rows = one_shard(answerer, table, **settings, **more).data.to_pylist()
    assert [row["answer"] is None for row in rows] == [margin > middle for margin in margins]
    assert all((row["start"] is None) == (row["answer"] is None) for row in rows)


def test_answers_in_long_contexts_are_the_best_of_their_windows(answerer):
    contexts = [" ".join(sentences(3, seed=i)) for i in range(5)]
    table = pa.table({"question": ["what is a fox"] * 5, "context": contexts})
    given = {"model.max_length": 24, "task.overlap": 4}
    outcome = one_shard(answerer, table, **given)
    folder = open_folder(
        load(PredictConfig, settings={"model.name": answerer, "model.max_length": 24}).model,
        HeadTaskSettings(overlap=4),
    )
    expected = by_windows(
        answerer, folder, table, AutoModelForQuestionAnswering, "start_logits", "end_logits"
    )
    for row, want in zip(outcome.data.to_pylist(), expected, strict=True):
        assert (row["answer"], row["start"]) == (want["answer"], want["start"])
        assert row["score"] == pytest.approx(want["score"], abs=1e-4)


# --- relations


def test_relations_are_those_of_the_model_itself(tmp_path):
    settings = RelationsSettings(text="satz")
    model = tiny_task(tmp_path / "model", settings, RELATIONS, std=0.1)
    words = [text.split()[1:9] for text in sentences(9, seed=3)]
    texts = [
        f"{' '.join(more)} <e{1 + i % 2}>{a}</e{1 + i % 2}> and <e{2 - i % 2}>{b}</e{2 - i % 2}>"
        for i, (a, b, *more) in enumerate(words)
    ]
    table = pa.table({"satz": [*texts, "no marks", None, "<e1>a</e1> <e2>b</e2> " + "very " * 80]})
    outcome = one_shard(model, table, **{"task.text": "satz"})
    plain = relations_model.AUTO.from_pretrained(model).eval()
    tokenizer = Tokenizer.from_file(f"{model}/tokenizer.json")
    rows = outcome.data.to_pylist()
    assert [row["n"] for row in rows] == [*range(9), 11]
    assert len({round(row["score"], 3) for row in rows}) > 5
    for text, row in zip(texts, rows, strict=False):
        for name, marker in zip(("<e1>", "</e1>", "<e2>", "</e2>"), settings.markers, strict=True):
            text = text.replace(name, marker)
        ids = tokenizer.encode(text).ids
        first, second = (ids.index(tokenizer.token_to_id(settings.markers[k])) for k in (0, 2))
        with torch.no_grad():
            logits = plain(torch.tensor([ids]), first=torch.tensor([first]), second=torch.tensor([second]))
        sure, best = logits[0].double().softmax(-1).max(-1)
        assert row["label"] == RELATIONS[best]
        assert row["score"] == pytest.approx(float(sure), abs=1e-5)
    assert rejected(outcome)[10] == "satz is null"
    assert "<e1> occurs 0 times" in rejected(outcome)[9]
    assert outcome.counts["truncated"] == 1


# --- selection


def test_responses_to_texts_and_to_turns_are_scored_as_by_the_model_itself(tmp_path):
    model = tiny_task(tmp_path / "model", SelectionSettings(), ["LABEL_0"], seed=6)
    record_head(Path(model), SelectionSettings(), labels=["LABEL_0"])
    contexts, responses = ([" ".join(t.split()[1:6]) for t in sentences(6, seed=s)] for s in (6, 7))
    plain = AutoModelForSequenceClassification.from_pretrained(model).eval()
    tokenizer = AutoTokenizer.from_pretrained(model)

    def naive(context, response):
        with torch.no_grad():
            return float(plain(**tokenizer(context, response, return_tensors="pt")).logits)

    expected = [naive(*pair) for pair in zip(contexts, responses, strict=True)]
    table = pa.table({"context": [*contexts, None], "response": [*responses, "fox"]})
    outcome = one_shard(model, table)
    assert outcome.data["score"].to_pylist() == pytest.approx(expected, abs=1e-5)
    assert rejected(outcome) == {6: "context is null"}
    turns = [json.dumps(context.split()) for context in contexts]  # as JSON lines bring lists
    table = pa.table({"context": [*turns, "no list"], "response": [*responses, "fox"]})
    outcome = one_shard(model, table)
    expected = [naive(" [SEP] ".join(c.split()), r) for c, r in zip(contexts, responses, strict=True)]
    assert outcome.data["score"].to_pylist() == pytest.approx(expected, abs=1e-5)
    assert rejected(outcome) == {6: "context holds no strings"}


# --- the content of files


def problems_of(table):
    file = pq.ParquetFile(pa.BufferReader(to_parquet(table)))
    commit = Commit(
        **{
            **dict.fromkeys((f.name for f in fields(Commit)), 0),
            "embedded": len(table),
            "vectors": len(table),
        }
    )
    return label_problems(file, commit, read_metadata(table.schema))


def with_first(table, name, value):
    at = table.schema.get_field_index(name)
    values = [value, *table[name].to_pylist()[1:]]
    return table.set_column(at, table.schema.field(name), pa.array(values, table.schema.field(name).type))


def test_the_content_of_files_is_checked(tagger, answerer):
    table = one_shard(tagger, pa.table({"tokens": [text.split() for text in sentences(4)]})).data
    assert problems_of(table) == []
    entity = {"start": 0, "end": 1, "label": "LOC", "score": 0.5, "text": "a"}
    assert problems_of(with_first(table, "entities", [])) == []
    wrong = {**entity, "label": "B-LOC"}
    assert problems_of(with_first(table, "entities", [wrong])) == ["a label is not among those of the model"]
    wrong = {**entity, "score": 1.5}
    assert problems_of(with_first(table, "entities", [entity, wrong])) == ["a score is no probability"]
    assert problems_of(with_first(table, "entities", None)) == ["a prediction is null"]
    rows = pa.table({"question": ["who", "what"], "context": ["the fox", "the dog"]})
    table = one_shard(answerer, rows).data
    assert problems_of(table) == problems_of(with_first(table, "answer", None)) == []
    assert problems_of(with_first(table, "score", float("nan"))) == ["a number is not finite"]


# --- on Ray


def test_json_lines_through_the_whole_verb(tmp_path, tagger, ray_local, capsys):
    rows = [{"words": text.split()} for text in sentences(50)]
    rows += [{"words": None}, {"words": "no list"}, {"words": [1, 2]}, {"words": []}, {"text": 1}]
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    settings = {
        "model.name": tagger,
        "model.dtype": "float32",
        "model.max_length": 32,
        "data.path": str(tmp_path / "in"),
        "task.tokens": "words",
        "output.path": str(tmp_path / "out"),
        "output.rows_per_shard": 30,
        "workers": {"count": 1, "cpus": 1},
    }
    outlook = predict({**settings, "dry_run": True})
    assert outlook.rows == 55
    assert not (tmp_path / "out").exists()
    shown = yaml.safe_load(capsys.readouterr().err)["task"]
    assert (shown["name"], shown["tokens"], shown["overlap"]) == ("entities", "words", 64)
    report = predict(settings)
    assert (report.rows, report.embedded, report.rejected) == (55, 50, 5)
    out = pq.read_table(tmp_path / "out/data")
    assert out.column_names == ["id", "entities"]
    assert len(out) == 50
    expected = one_shard(
        tagger,
        pa.table({"words": [row["words"] for row in rows[:50]]}),
        **{"task.tokens": "words", "model.max_length": 32},
    )
    same = [[{**x, "score": 0} for x in row] for row in expected.data["entities"].to_pylist()]
    assert [[{**x, "score": 0} for x in row] for row in out["entities"].to_pylist()] == same
    rejects = pq.read_table(tmp_path / "out/_rejects").to_pylist()
    reasons = {row["row"]: row["reason"] for row in rejects}
    assert reasons == {
        50: "words is null",
        51: "words holds no strings",
        52: "words holds no strings",
        53: "words is an empty list",
        54: "words is null",
    }
    verdict = verify(str(tmp_path / "out"))
    assert verdict.good, verdict.problems
    again = predict({**settings, "task.name": "entities"})  # what `auto` was is no change
    assert again.embedded == 50
    with pytest.raises(ValueError, match=r"task\.overlap=3"):
        predict({**settings, "task.overlap": 3})


def refused(words, **settings):
    with pytest.raises(ValueError, match=words) as error:
        predict({"output.path": "/nowhere/out", **settings})
    assert "\n" not in str(error.value)


def test_settings_that_do_not_fit_are_one_line(tmp_path, tagger, answerer):
    pq.write_table(pa.table({"text": ["a"], "tokens": [1]}), tmp_path / "a.parquet")
    here = {"data.path": str(tmp_path / "a.parquet")}
    refused(
        "task.name=answers, but .* is a model for task.name=entities",
        **here,
        **{"model.name": tagger, "task.name": "answers"},
    )
    refused(
        "task.max_answer means nothing with task.name=entities",
        **here,
        **{"model.name": tagger, "task.max_answer": 3},
    )
    refused(
        "data.text means nothing with task.name=entities", **here, **{"model.name": tagger, "data.text": "a"}
    )
    refused("column 'question' is not in", **here, **{"model.name": answerer})
    refused(r"task\.max_answer=0 does not fit", **here, **{"model.name": answerer, "task.max_answer": 0})


# --- real data


@pytest.mark.skipif(not SHARED.exists(), reason="no real data here")
@pytest.mark.parametrize(
    ("name", "settings", "labels"),
    [
        ("wnut17", EntitiesSettings(), TAGS),
        ("semeval2010_task8", RelationsSettings(), RELATIONS),
        ("restaurant8k_qa", AnswersSettings(), SPANS),
    ],
)
def test_no_row_of_real_data_is_lost(tmp_path, name, settings, labels):
    model = tiny_task(tmp_path / "model", settings, labels)
    table = pq.read_table(SHARED / name / "test.parquet").slice(0, 600)
    outcome = one_shard(model, table)
    assert outcome.data["n"].to_pylist() == [n for n in range(len(table)) if n not in rejected(outcome)]
    assert outcome.counts["embedded"] > 0.95 * len(table)
