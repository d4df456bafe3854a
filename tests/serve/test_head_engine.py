"""Models with a head behind TEI's routes: what they answer is what `raybert predict` says of the same rows."""

import asyncio
import json
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pytest
import torch
from sentence_transformers import CrossEncoder
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from raybert.config import ConfigError, load
from raybert.config.pair_tasks import SelectionSettings, SimilaritySettings
from raybert.config.serving import ServedModelSettings
from raybert.config.tasks import AnswersSettings, EntitiesSettings
from raybert.serve.app import application
from raybert.serve.encoding import EncoderEngine
from raybert.serve.loading import load_engine
from raybert.serve.metrics import ModelMetrics
from raybert.serve.model import Limits, ServedModel
from raybert.tasks.heads import record_head
from tests.conftest import sentences
from tests.encoder.tiny import tiny_model
from tests.heads import LABELS, change_config, tiny_head, tiny_task
from tests.serve.services import ask, load_model, post, serve_settings
from tests.test_predict_tasks import SPANS, TAGS, one_shard

TEXTS = [" ".join(text.split()[:12]) for text in sentences(12)]
OTHERS = [" ".join(text.split()[:7]) for text in sentences(12, seed=1)]


def app_of(model):
    return application({"tiny": model}, serve_settings())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of models by what they are for."""
    at = tmp_path_factory.mktemp("heads")
    made = {
        "single": tiny_head(at / "single"),
        "multi": tiny_head(at / "multi", problem="multi_label_classification"),
        "regression": tiny_head(at / "regression", ["LABEL_0"], problem="regression"),
        "entities": tiny_task(at / "entities", EntitiesSettings(), TAGS, seed=3),
        "selection": tiny_task(at / "selection", SelectionSettings(), ["LABEL_0"], seed=4),
    }
    settings = SelectionSettings(context="said", response="reply")
    record_head(Path(made["selection"]), settings, max_length=60, labels=["LABEL_0"])
    return made


@pytest.fixture(scope="module")
def apps(folders):
    models = {kind: load_model(folder, batch_tokens=200) for kind, folder in folders.items()}
    yield {kind: app_of(model) for kind, model in models.items()}
    for model in models.values():
        model.close()


def answer(app, path, **body):
    reply = post(app, path, **body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def refused(app, path, **body):
    reply = post(app, path, **body)
    return reply.status_code, reply.json()["error"]


def predicted(folder, pairs=False, **settings):
    """What `raybert predict` says of TEXTS, or of them with OTHERS."""
    table = pa.table({"text": TEXTS, **({"text_pair": OTHERS} if pairs else {})})
    more = {"data.text_pair": "text_pair"} if pairs else {}
    return one_shard(folder, table, **more, **settings).data.to_pylist()


# --- labels


@pytest.mark.parametrize("pairs", [False, True])
def test_labels_are_those_of_predict(apps, folders, pairs):
    inputs = [[a, b] for a, b in zip(TEXTS, OTHERS, strict=True)] if pairs else [[a] for a in TEXTS]
    found = answer(apps["single"], "/predict", inputs=inputs)
    rows = predicted(folders["single"], pairs)
    assert [one[0]["label"] for one in found] == [row["label"] for row in rows]
    assert [one[0]["score"] for one in found] == pytest.approx([row["score"] for row in rows], abs=1e-5)
    assert len({row["label"] for row in rows}) > 1
    for one in found:
        assert sorted(each["label"] for each in one) == sorted(LABELS)
        assert sum(each["score"] for each in one) == pytest.approx(1)
        assert [each["score"] for each in one] == sorted((each["score"] for each in one), reverse=True)
    alone = answer(apps["single"], "/predict", inputs=inputs[0] if pairs else TEXTS[0])
    assert [each["label"] for each in alone] == [each["label"] for each in found[0]]


def test_several_labels_and_numbers_are_those_of_predict(apps, folders):
    found = answer(apps["multi"], "/predict", inputs=[[text] for text in TEXTS])
    for one, row in zip(found, predicted(folders["multi"]), strict=True):
        above = {each["label"]: each["score"] for each in one if each["score"] > 0.5}
        assert above == pytest.approx(dict(zip(row["labels"], row["scores"], strict=True)), abs=1e-5)
    found = answer(apps["regression"], "/predict", inputs=[[text] for text in TEXTS])
    values = [row["value"] for row in predicted(folders["regression"])]
    assert [one[0]["score"] for one in found] == pytest.approx(values, abs=1e-5)
    assert max(map(abs, values)) > 1  # no probabilities
    assert found[0][0]["label"] == "LABEL_0"


def test_raw_scores_and_the_functions_of_hugging_face(apps, folders):
    own = AutoTokenizer.from_pretrained(folders["single"])(TEXTS[0], return_tensors="pt")
    with torch.no_grad():
        logits = (
            AutoModelForSequenceClassification.from_pretrained(folders["single"])(**own).logits[0].double()
        )
    expected = {"none": logits, "sigmoid": logits.sigmoid(), "softmax": logits.softmax(-1)}
    for function, scores in expected.items():
        found = answer(
            apps["single"], "/predict", inputs=TEXTS[0], parameters={"function_to_apply": function}
        )
        named = {each["label"]: each["score"] for each in found[0]}
        assert [named[label] for label in LABELS] == pytest.approx(scores.tolist(), abs=1e-5)
    raw = answer(apps["single"], "/predict", inputs=TEXTS[0], raw_scores=True)
    assert max(each["score"] for each in raw) == pytest.approx(float(logits.max()), abs=1e-5)
    (top,) = answer(apps["single"], "/predict", inputs=TEXTS[0], parameters={"top_k": 1})
    assert [each["label"] for each in top] == [LABELS[logits.argmax()]]
    several = answer(apps["single"], "/", inputs=TEXTS[:3], parameters={})
    assert several == answer(apps["single"], "/predict", inputs=[[text] for text in TEXTS[:3]])


def test_requests_are_computed_together_and_not_mixed_up(folders):
    rows = []

    class Counting(ModelMetrics):
        def step(self, lengths, computed, seconds):
            rows.append(len(lengths))

    model = load_model(folders["single"], batch_tokens=200)
    model.metrics = Counting("tiny")

    async def all_at_once():
        transport = httpx.ASGITransport(app_of(model))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await asyncio.gather(*(client.post("/predict", json={"inputs": text}) for text in TEXTS))

    found = [reply.json() for reply in asyncio.run(all_at_once())]
    model.close()
    assert sum(rows) == len(TEXTS)
    assert max(rows) > 2
    for one, row in zip(found, predicted(folders["single"]), strict=True):
        assert (one[0]["label"], one[0]["score"]) == (row["label"], pytest.approx(row["score"], abs=1e-5))


# --- entities


def test_entities_are_those_of_predict_long_texts_included(apps, folders):
    texts = [*TEXTS[:4], " ".join(sentences(5, seed=8))]  # the last in windows
    table = pa.table({"words": texts})
    rows = one_shard(folders["entities"], table, **{"task.text": "words"}).data["entities"].to_pylist()
    found = answer(apps["entities"], "/predict", inputs=texts)
    assert len(texts[-1].split()) > 80
    assert max(one["end"] for one in found[-1]) > 300
    for text, one, row in zip(texts, found, rows, strict=True):
        plain = [{**each, "score": 0} for each in one]
        assert plain == [
            {"entity_group": e["label"], "word": e["text"], "start": e["start"], "end": e["end"], "score": 0}
            for e in row
        ]
        assert [each["score"] for each in one] == pytest.approx([e["score"] for e in row], abs=1e-5)
        assert all(text[each["start"] : each["end"]] == each["word"] for each in one)
    assert answer(apps["entities"], "/predict", inputs=texts[0]) == answer(
        apps["entities"], "/", inputs=texts[0]
    )
    kinds = {each["entity_group"] for each in found[-1]}
    less = answer(apps["entities"], "/", inputs=texts[-1], parameters={"ignore_labels": ["LOC"]})
    assert {"LOC"} < kinds
    assert {each["entity_group"] for each in less} == kinds - {"LOC"}


# --- rerankers


def test_a_foreign_cross_encoder_reranks_as_it_does_itself(apps, folders):
    query = "the lazy dog"
    own = AutoTokenizer.from_pretrained(folders["regression"])
    model = AutoModelForSequenceClassification.from_pretrained(folders["regression"])
    with torch.no_grad():
        logits = [
            float(model(**own(query, text, truncation=True, return_tensors="pt")).logits) for text in TEXTS
        ]
    best = np.argsort(-np.array(logits)).tolist()
    raw = answer(apps["regression"], "/rerank", query=query, texts=TEXTS, raw_scores=True)
    assert [one["index"] for one in raw] == best
    assert [one["score"] for one in raw] == pytest.approx([logits[i] for i in best], abs=1e-5)
    found = answer(apps["regression"], "/", query=query, texts=TEXTS, return_text=True)
    assert [one["text"] for one in found] == [TEXTS[i] for i in best]
    sigmoid = 1 / (1 + np.exp(-np.array(logits)))
    assert [one["score"] for one in found] == pytest.approx([sigmoid[i] for i in best], abs=1e-5)


def test_a_model_of_selection_reranks_as_predict_scores(apps, folders):
    table = pa.table({"said": [TEXTS[0]] * len(OTHERS), "reply": OTHERS})
    outcome = one_shard(folders["selection"], table)
    assert outcome.rejects is None, outcome.rejects.to_pylist()
    scores = [row["score"] for row in outcome.data.to_pylist()]
    found = answer(apps["selection"], "/rerank", query=TEXTS[0], texts=OTHERS, raw_scores=True)
    by_index = {one["index"]: one["score"] for one in found}
    assert [by_index[i] for i in range(len(OTHERS))] == pytest.approx(scores, abs=1e-5)
    assert [one["score"] for one in found] == sorted(by_index.values(), reverse=True)
    assert len(set(scores)) > 5
    pair = answer(apps["selection"], "/predict", inputs=[TEXTS[0], OTHERS[0]])
    assert pair[0]["score"] == pytest.approx(1 / (1 + np.exp(-scores[0])), abs=1e-5)
    assert refused(apps["selection"], "/predict", inputs=TEXTS[0]) == (
        422,
        "inputs must be a pair of texts: the model reads two together",
    )


# --- what cannot be answered


@pytest.mark.parametrize(
    ("kind", "body", "expected"),
    [
        ("single", {"inputs": []}, (400, "`inputs` cannot be empty")),
        ("single", {"inputs": [["fox"], [""]]}, (400, "`inputs[1][0]` cannot be empty")),
        (
            "single",
            {"inputs": [["fox"], ["a", "b"]]},
            (422, "inputs[1]: texts and pairs of texts in one request"),
        ),
        (
            "single",
            {"inputs": [["a", "b", "c"]]},
            (422, "inputs[0] must be a list of one text, or of the two of a pair"),
        ),
        (
            "single",
            {"inputs": ["a", "b", "c"]},
            (422, "inputs: [text, text] is a pair; write several texts as [[text], [text], ...]"),
        ),
        (
            "single",
            {"inputs": "fox " * 80},
            (422, "inputs has more than 64 tokens; shorten it, or set truncate to true"),
        ),
        (
            "single",
            {"inputs": "fox", "truncation_direction": "left"},
            (422, "truncation_direction: a model with a head cuts the end of a text"),
        ),
        ("entities", {"inputs": [["a", "b"]]}, (422, "inputs[0]: the model reads one text, not two")),
        (
            "entities",
            {"inputs": ["fox", "\u200b\x00"]},
            (422, "inputs[1] cannot be read: no word has tokens"),
        ),
    ],
)
def test_errors_name_the_input(apps, kind, body, expected):
    assert refused(apps[kind], "/predict", **body) == expected


def test_a_text_that_is_cut_is_cut_as_predict_cuts(apps, folders):
    long = "fox " * 80
    found = answer(apps["single"], "/predict", inputs=long, truncate=True)
    row = one_shard(folders["single"], pa.table({"text": [long]})).data.to_pylist()[0]
    assert (found[0]["label"], found[0]["score"]) == (row["label"], pytest.approx(row["score"], abs=1e-5))


def test_other_routes(apps):
    assert refused(apps["single"], "/embed", inputs="fox")[0] == 404
    assert refused(apps["single"], "/rerank", query="fox", texts=["a"])[0] == 404
    assert refused(apps["single"], "/", query="fox", texts=["a"]) == (
        422,
        "the body is one of /rerank, which model tiny does not answer",
    )
    assert refused(apps["single"], "/models/tiny:query/predict", inputs="a")[1].startswith("prompt_name: ")
    (found,) = answer(apps["entities"], "/tokenize", inputs="quick fox")
    assert [one["text"] for one in found] == ["[CLS]", "quick", "fox", "[SEP]"]
    assert ask(apps["entities"], "GET", "/health").status_code == 200


def test_info(apps):
    info = {kind: ask(app, "GET", "/info").json() for kind, app in apps.items()}
    names = {"id2label": {"0": "being", "1": "place", "2": "thing"}}
    assert info["single"]["model_type"]["classifier"]["id2label"] == names["id2label"]
    assert info["single"]["model_type"]["classifier"]["label2id"]["thing"] == 2
    assert list(info["regression"]["model_type"]) == list(info["selection"]["model_type"]) == ["reranker"]
    assert {kind: one["task"] for kind, one in info.items()} == {
        **dict.fromkeys(("single", "multi", "regression"), "classification"),
        "entities": "entities",
        "selection": "selection",
    }
    assert info["selection"]["max_input_length"] == 60


# --- which engine a folder gets


def engine(folder, **settings):
    return load_engine(
        load(ServedModelSettings, settings={"model.name": str(folder), "workers.cpus": 1, **settings})
    )


def test_settings_of_vectors_mean_nothing_for_a_head(folders):
    for key, value in {"pooling": "cls", "prompt": "a", "normalize": True, "layers": "-2"}.items():
        with pytest.raises(ConfigError, match=rf"^model\.{key}={value} means nothing for .* leave it out$"):
            engine(folders["single"], **{f"model.{key}": value})
    assert engine(folders["single"], **{"model.max_length": 20}).max_length == 20


def test_models_of_other_tasks_are_refused_or_encoders(tmp_path):
    answers = tiny_task(tmp_path / "answers", AnswersSettings(), SPANS)
    with pytest.raises(ConfigError, match=r"is a model for answers, which is not served: .*raybert predict"):
        engine(answers)
    similar = tiny_model(tmp_path / "similar")
    record_head(similar, SimilaritySettings())
    assert json.loads((similar / "config.json").read_text())["raybert"]["task"] == "similarity"
    assert isinstance(engine(similar, **{"model.pooling": "cls"}), EncoderEngine)
    pooled = tiny_model(tmp_path / "pooled")  # an encoder that was saved with a head beside it
    change_config(pooled, architectures=["BertForSequenceClassification"])
    assert isinstance(engine(pooled), EncoderEngine)


def test_a_cross_encoder_of_sentence_transformers(tmp_path, folders):
    """Its folder has a modules.json, as those of encoders do."""
    CrossEncoder(folders["regression"]).save_pretrained(str(tmp_path / "made"))
    assert (tmp_path / "made/modules.json").is_file()
    model = ServedModel(
        "tiny", engine(tmp_path / "made", **{"model.dtype": "float32"}), Limits(), ModelMetrics("tiny")
    )
    found = answer(app_of(model), "/rerank", query="fox", texts=TEXTS, raw_scores=True)
    expected = CrossEncoder(folders["regression"], activation_fn=torch.nn.Identity()).predict(
        [("fox", text) for text in TEXTS]
    )
    assert [one["index"] for one in found] == np.argsort(-expected).tolist()
    assert [one["score"] for one in found] == pytest.approx(np.sort(expected)[::-1].tolist(), abs=1e-5)
    model.close()
