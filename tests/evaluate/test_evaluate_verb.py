"""raybert evaluate on a real Ray, with tiny random models: figures against scikit-learn on transformers' predictions."""

import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.metrics import accuracy_score, f1_score

from raybert.corpus.store import Store
from raybert.evaluate.evaluate import evaluate
from raybert.evaluate.report import read_metrics
from tests.conftest import sentences
from tests.evaluate.pages import check_page
from tests.heads import LABELS, reordered, tiny_head

TEXTS = sentences(60)
TRUTH = [LABELS[i] for i in np.random.default_rng(0).integers(0, 3, 60)]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The model, another, and that one again with its labels in another order."""
    folder = tmp_path_factory.mktemp("heads")
    one, other = tiny_head(folder / "one"), tiny_head(folder / "other", seed=1)
    return one, other, reordered(other, folder / "reordered", LABELS[::-1])


def write(path, texts, labels, **more):
    pq.write_table(pa.table({"text": pa.array(texts, pa.string()), "label": labels, **more}), path)
    return str(path)


def settings(tmp_path, model, **more):
    table = tmp_path / "test.parquet"
    if not table.exists():
        write(table, [*TEXTS, None, "no label"], [*TRUTH, "place", None])
    return {
        "model.name": model,
        "data.path": str(table),
        "output.path": str(tmp_path / "report"),
        "model.dtype": "float32",
        "workers": {"count": 1, "cpus": 1},
        **more,
    }


def of_transformers(model):
    from transformers import pipeline

    return [row["label"] for row in pipeline("text-classification", model=model)(TEXTS, truncation=True)]


def test_two_models_are_compared_and_reported(tmp_path, models, ray_local, monkeypatch):
    monkeypatch.setattr(
        sys.modules[evaluate.__module__], "_PER_WORKER", 20
    )  # parts, whose counts are added up
    one, other, backwards = models
    found = evaluate(settings(tmp_path, one, **{"model.before": backwards}))
    before, after = read_metrics(Store(str(tmp_path / "report")))
    assert after.metrics == found.after.metrics
    for evaluation, model in ((before, other), (after, one)):
        predicted = of_transformers(model)
        assert evaluation.labels == list(LABELS)
        assert evaluation.rows == 60
        assert evaluation.metrics["accuracy"] == accuracy_score(TRUTH, predicted)
        assert evaluation.metrics["f1_macro"] == pytest.approx(f1_score(TRUTH, predicted, average="macro"))
    assert before.metrics["accuracy"] != after.metrics["accuracy"]
    text = str(found)
    assert "62 rows = 60 evaluated + 2 rejected" in text
    assert "1 x label is null" in text
    assert "difference" in text
    page = check_page((tmp_path / "report" / "report.html").read_text())
    assert any(shown in TEXTS for shown in page.text("th"))


@pytest.mark.parametrize("kind", ["multi", "regression"])
def test_other_kinds_of_heads(tmp_path, ray_local, kind):
    if kind == "multi":
        model = tiny_head(tmp_path / "model", problem="multi_label_classification")
        labels = [["being", "place"], [], ["thing"]] * 4
    else:
        model = tiny_head(tmp_path / "model", ["LABEL_0"], problem="regression")
        labels = [0.5, 1.0, -2.0] * 4
    table = write(tmp_path / "table.parquet", TEXTS[:12], labels)
    found = evaluate(settings(tmp_path, model, **{"data.path": table}))
    assert found.after.rows == 12
    assert found.before is None
    assert {"multi": "hamming_loss", "regression": "spearman"}[kind] in found.after.metrics
    check_page((tmp_path / "report" / "report.html").read_text())


def refused(words, tmp_path, model, **more):
    """Before any process starts."""
    with pytest.raises(ValueError, match=words) as error:
        evaluate(settings(tmp_path, model, **more))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "report").exists()


def test_labels_that_the_model_does_not_know_are_listed(tmp_path, models):
    table = write(tmp_path / "table.parquet", TEXTS[:3], ["place", "stone", "air"])
    words = "does not know: air, stone; it knows: being, place, thing"
    refused(words, tmp_path, models[0], **{"data.path": table})


def test_models_that_cannot_be_compared(tmp_path, models):
    fewer = tiny_head(tmp_path / "fewer", ["being", "place"])
    refused("they differ in: thing", tmp_path, models[0], **{"model.before": fewer})
    number = tiny_head(tmp_path / "number", ["LABEL_0"], problem="regression")
    refused("is for task.kind=regression", tmp_path, models[0], **{"model.before": number})


def test_tables_and_models_that_cannot_be_used(tmp_path, models, tiny):
    refused("is a BertModel; a model with a head", tmp_path, tiny)
    refused("data.label=kind: there is no such column", tmp_path, models[0], **{"data.label": "kind"})
    refused("is the column of the text", tmp_path, models[0], **{"data.label": "text"})
    refused("no folder on this machine", tmp_path, "/nowhere/at/all")
