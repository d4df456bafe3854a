"""raybert evaluate for every task: figures and changed rows against what prediction gives row by row."""

import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybert.config import load
from raybert.config.predicting import EvaluateConfig
from raybert.config.tasks import AnswersSettings, EntitiesSettings, RelationsSettings
from raybert.corpus.store import Store
from raybert.evaluate.evaluate import evaluate
from raybert.evaluate.report import read_metrics
from raybert.tasks.answer_scores import exact_match, word_f1
from tests.conftest import sentences
from tests.evaluate.pages import check_page
from tests.heads import tiny_task
from tests.test_predict_tasks import RELATIONS, SPANS, TAGS, one_shard

VERB = sys.modules["raybert.evaluate.evaluate"]
TEXTS = sentences(40)


def settings(tmp_path, model, table, **more):
    pq.write_table(table, tmp_path / "table.parquet")
    return {
        "model.name": model,
        "data.path": str(tmp_path / "table.parquet"),
        "output.path": str(tmp_path / "report"),
        "model.dtype": "float32",
        "workers": {"count": 1, "cpus": 1},
        **more,
    }


def without_ray(values, name="after"):
    """The figures and what was predicted, in this process."""
    config = load(EvaluateConfig, settings=values)
    models = VERB._models(config)
    folders = VERB._open(models, config.task)
    head = folders["after"].head
    table = VERB.read_labelled(config.data.paths, config.data, head.task, head.settings)
    made = {key: VERB._examples(table, folder, head, models[key]) for key, folder in folders.items()}
    examples, reasons = VERB._usable_by_all(made)
    folder = folders[name]
    order = [folder.head.labels.index(label) for label in head.labels]
    part = VERB._predict_part(examples[name], None, folder.head, head, order, models[name], 64, 1)
    rows = int(examples[name].first.sum())
    found = VERB._evaluation(name, models[name], head, [part], rows)
    return (
        found,
        part.rows,
        VERB.changed_rows(table.table, examples["after"], head, {"after": part.rows}),
        reasons,
    )


def tagged(rows=40):
    """Words with random tags."""
    rng = np.random.default_rng(0)
    words = [text.split() for text in TEXTS[:rows]]
    tags = [[TAGS[i] if TAGS[i][0] != "I" else "O" for i in rng.integers(0, 5, len(row))] for row in words]
    return pa.table({"tokens": words, "tags": tags})


def naive_f1(table, decoded):
    """Micro F1: every B- begins and ends an entity of one word."""
    hits = true = found = 0
    for tags, entities in zip(table["tags"].to_pylist(), decoded, strict=True):
        wanted = {(i, i + 1, tag[2:]) for i, tag in enumerate(tags) if tag != "O"}
        given = {(e["start"], e["end"], e["label"]) for e in entities}
        hits, true, found = hits + len(wanted & given), true + len(wanted), found + len(given)
    return 2 * hits / (true + found)


def test_entities_of_two_models_with_their_tags_in_other_orders(tmp_path, monkeypatch):
    monkeypatch.setattr(VERB, "_BLOCK", 7)  # no row is cut
    one = tiny_task(tmp_path / "one", EntitiesSettings(), TAGS, seed=3)
    other = tiny_task(tmp_path / "other", EntitiesSettings(), TAGS[::-1], seed=4)
    table, more = tagged(12), {"model.max_length": 16, "task.overlap": 4}
    values = settings(tmp_path, one, table, **{"model.before": other, **more})
    figures = []
    for name, model in (("after", one), ("before", other)):
        found, rows, changed, _ = without_ray(values, name)
        predicted = one_shard(model, table, **more).data["entities"].to_pylist()
        places = [[(e["start"], e["end"], e["label"]) for e in row["entities"]] for row in rows]
        assert places == [[(e["start"], e["end"], e["label"]) for e in row] for row in predicted]
        assert found.metrics["f1"] == pytest.approx(naive_f1(table, predicted))
        assert len(changed) == found.rows == 12
        figures.append(found.metrics["f1"])
    assert figures[0] != figures[1]


@pytest.mark.slow
def test_entities_of_two_models_on_ray(tmp_path, ray_local, monkeypatch):
    monkeypatch.setattr(VERB, "_PER_WORKER", 20)  # parts, whose counts are added up, and no row is cut
    monkeypatch.setattr(VERB, "_BLOCK", 7)
    one = tiny_task(tmp_path / "one", EntitiesSettings(), TAGS, seed=3)
    other = tiny_task(tmp_path / "other", EntitiesSettings(), TAGS[::-1], seed=4)
    table = tagged()
    bad = pa.table({"tokens": [["a", "b"]], "tags": [["O", "I-LOC"]]})
    given = {"model.before": other, "model.max_length": 16, "task.overlap": 4}
    values = settings(tmp_path, one, pa.concat_tables([table, bad]), **given)
    found = evaluate(values)
    before, after = read_metrics(Store(str(tmp_path / "report")))
    assert (found.before, found.after) == (before, after)
    for evaluation, model in ((before, other), (after, one)):
        more = {"model.max_length": 16, "task.overlap": 4}
        predicted = one_shard(model, table, **more).data["entities"].to_pylist()
        assert evaluation.metrics["f1"] == pytest.approx(naive_f1(table, predicted))
        assert evaluation.rows == 40
        assert [score.label for score in evaluation.per_label] == ["LOC", "PER"]
        assert "LOC_f1" not in evaluation.metrics
    assert before.metrics["f1"] != after.metrics["f1"] > 0
    text = str(found)
    assert "41 rows = 40 evaluated + 1 rejected" in text
    assert "micro avg" in text
    assert "macro avg" in text
    page = check_page((tmp_path / "report" / "report.html").read_text())
    assert page.text("dt")[0] == "f1"
    assert any(" (LOC)" in cell for cell in page.text("td"))
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "labels.png",
        "metrics.json",
        "report.html",
    ]


def test_relations(tmp_path):
    model = tiny_task(tmp_path / "model", RelationsSettings(), RELATIONS, std=0.1)
    rng = np.random.default_rng(1)
    words = [text.split()[1:9] for text in TEXTS]
    texts = [f"<e1>{a}</e1> {b} <e2>{' '.join(more)}</e2>" for a, b, *more in words]
    truth = [RELATIONS[i] for i in rng.integers(0, 3, len(texts))]
    table = pa.table({"text": [*texts, "x"], "label": [*truth, "Other"]})
    found, rows, changed, reasons = without_ray(settings(tmp_path, model, table))
    predicted = one_shard(model, table).data["label"].to_pylist()
    assert [row["label"] for row in rows] == predicted
    assert found.metrics["accuracy"] == np.mean(np.array(truth) == np.array(predicted))
    # one relation beside Other: its official F1, by hand
    hits = sum(a == b != "Other" for a, b in zip(truth, predicted, strict=True))
    f1 = 2 * hits / sum(side != "Other" for side in [*truth, *predicted])
    assert found.metrics["macro_f1"] == found.metrics["f1"] == pytest.approx(f1)
    assert [(score.label, score.support) for score in found.per_label] == [
        ("Cause-Effect", sum(label != "Other" for label in truth))
    ]
    assert np.array(found.confusion).sum() == len(texts) == found.rows
    assert 0 <= found.metrics["ece"] <= 1
    assert changed["text"].to_pylist() == texts
    assert changed["after_probability"].to_pylist() == [row["score"] for row in rows]
    assert [bool(reason) for reason in reasons] == [False] * 40 + [True]


def test_answers(tmp_path):
    model = tiny_task(tmp_path / "model", AnswersSettings(), SPANS, seed=5)
    contexts = [" ".join([*text.split(), *TEXTS[-i].split()]) for i, text in enumerate(TEXTS)]
    answers = [None if i % 4 == 0 else context.split()[i % 5] for i, context in enumerate(contexts)]
    starts = [None if a is None else contexts[i].index(a) for i, a in enumerate(answers)]
    questions = ["what is a fox"] * len(contexts)
    table = pa.table({"question": questions, "context": contexts, "answer": answers, "answer_start": starts})
    margins = one_shard(model, table, **{"model.max_length": 24}).data["null_difference"].to_numpy()
    task = {"task.allow_unanswerable": True, "task.null_threshold": float(np.median(margins))}
    task |= {"model.max_length": 24}
    found, rows, changed, _ = without_ray(settings(tmp_path, model, table, **task))
    predicted = one_shard(model, table, **task).data["answer"].to_pylist()
    assert [row["answer"] for row in rows] == predicted
    assert 0 < sum(answer is None for answer in predicted) < len(predicted)
    pairs = [(true or "", text or "") for true, text in zip(answers, predicted, strict=True)]
    exact, f1 = (np.mean([score(*pair) for pair in pairs]) for score in (exact_match, word_f1))
    assert found.metrics["exact_match"] == pytest.approx(exact)
    assert found.metrics["f1"] == pytest.approx(f1)
    assert found.metrics["no_answer_support"] == 10
    assert changed["after_score"].to_pylist() == pytest.approx([word_f1(*pair) for pair in pairs])
    assert found.main == "f1"


def refused(words, tmp_path, model, table, **more):
    """Before any process starts."""
    with pytest.raises(ValueError, match=words) as error:
        evaluate(settings(tmp_path, model, table, **more))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "report").exists()


def test_what_cannot_be_evaluated_is_one_line(tmp_path):
    model = tiny_task(tmp_path / "model", EntitiesSettings(), TAGS)
    table = tagged(3)
    strange = table.set_column(
        1, "tags", pa.array([["B-ORG"] * len(row) for row in table["tokens"].to_pylist()])
    )
    refused("'tags' has labels that .*: ORG", tmp_path, model, strange)
    refused("task.tags=marks: there is no such column", tmp_path, model, table, **{"task.tags": "marks"})
    refused(
        "data.label means nothing with task.name=entities", tmp_path, model, table, **{"data.label": "tags"}
    )
    refused("task.name=relations, but", tmp_path, model, table, **{"task.name": "relations"})
    fewer = tiny_task(tmp_path / "fewer", EntitiesSettings(), TAGS[:3])
    refused("they differ in: B-PER|I-", tmp_path, model, table, **{"model.before": fewer})
    answerer = tiny_task(tmp_path / "answers", AnswersSettings(), SPANS)
    refused(
        "model.before=.* is a model for task.name=answers",
        tmp_path,
        model,
        table,
        **{"model.before": answerer},
    )
