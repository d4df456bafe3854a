"""What a config.json says of a model's head."""

import json

import pytest
from transformers import AutoConfig, AutoTokenizer

from raybert.config import PredictConfig, load
from raybert.config.finetune import ClassificationSettings
from raybert.config.predicting import HeadTaskSettings as asked
from raybert.config.tasks import AnswersSettings, EntitiesSettings, RelationsSettings
from raybert.tasks.heads import Head, labels_of, longest_input, read_head, record_head
from tests.heads import tiny_task

BERT = {"architectures": ["BertForSequenceClassification"], "model_type": "bert"}


def shape(*labels, **more):
    named = {"label2id": {label: i for i, label in enumerate(labels)}}
    named["id2label"] = {str(i): label for i, label in enumerate(labels)}
    return {**BERT, **(named if labels else {}), **more}


@pytest.mark.parametrize(
    ("config", "kind", "labels"),
    [
        (shape("b", "a"), "single", ["b", "a"]),
        (shape("a", "b", problem_type="multi_label_classification"), "multi", ["a", "b"]),
        (shape("score", problem_type="regression"), "regression", ["score"]),
        (shape("score"), "regression", ["score"]),
        (shape(), "single", ["LABEL_0", "LABEL_1"]),
        ({**BERT, "id2label": {"1": "b", "0": "a"}}, "single", ["a", "b"]),
        ({**BERT, "label2id": {"b": 1, "a": 0}}, "single", ["a", "b"]),
    ],
)
def test_the_kind_and_the_labels_are_those_of_transformers(config, kind, labels):
    head = read_head(config, "m")
    assert (head.task, head.settings.kind, head.labels) == ("classification", kind, labels)


def test_the_user_may_say_what_the_head_is_for():
    assert read_head(shape("a", "b"), "m", asked(kind="multi")).settings.kind == "multi"
    with pytest.raises(ValueError, match="a regression has one output, this model 2"):
        read_head(shape("a", "b"), "m", asked(kind="regression"))
    with pytest.raises(ValueError, match="one output: nothing to choose from"):
        read_head(shape("a"), "m", asked(kind="single"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"label2id": {"a": 0, "b": 2}}, "label2id .* labels 0 to 1, each once"),
        ({"label2id": {"a": 0, "b": 0}}, "label2id .* labels 0 to 1, each once"),
        ({"label2id": {"a": "x"}}, "label2id"),
        ({"id2label": {"0": "a", "1": "a"}}, "id2label .* each once"),
        ({"id2label": {"0": "a", "1": "c"}}, "label 1 is 'b' in label2id, 'c' in id2label"),
        ({"architectures": ["BertForMaskedLM"]}, "is a BertForMaskedLM; a model with a head"),
        ({"architectures": None}, "names no architecture"),
    ],
)
def test_other_heads_and_labels_that_are_no_numbering_are_one_line(change, words):
    with pytest.raises(ValueError, match=words) as error:
        read_head({**shape("a", "b"), **change}, "m")
    assert "\n" not in str(error.value)


TOKENS = {"architectures": ["BertForTokenClassification"], "model_type": "bert"}
SPANS = {"architectures": ["RobertaForQuestionAnswering"], "model_type": "roberta"}
MARKED = {"architectures": ["BertForRelations"], "relation_markers": ["[A]", "[/A]", "[B]", "[/B]"]}


def test_a_foreign_folder_is_known_by_its_architecture():
    tags = read_head({**shape("O", "B-x", "I-x"), **TOKENS}, "m")
    assert (tags.task, tags.labels, tags.max_length) == ("entities", ["O", "B-x", "I-x"], None)
    answers = read_head(SPANS, "m")
    assert (answers.task, answers.labels) == ("answers", ["LABEL_0", "LABEL_1"])
    relations = read_head({**shape("a", "b"), **MARKED}, "m")
    assert (relations.task, relations.settings.markers) == ("relations", ("[A]", "[/A]", "[B]", "[/B]"))


def test_what_the_user_says_comes_before_what_the_folder_says():
    recorded = {"task": "answers", "settings": {"question": "q", "max_answer": 7}, "max_length": 99}
    head = read_head({**SPANS, "raybert": recorded}, "m", asked(question="frage"))
    assert (head.settings.question, head.settings.max_answer, head.max_length) == ("frage", 7, 99)
    assert read_head({**SPANS, "raybert": recorded}, "m", asked(name="answers")).settings.question == "q"
    # null is a value, too: the default of `other` is "Other"
    named = {**shape("a", "b"), **MARKED}
    assert read_head(named, "m", asked(other=None)).settings.other is None
    assert read_head(named, "m").settings.other == "Other"


@pytest.mark.parametrize(
    ("config", "given", "words"),
    [
        (
            SPANS,
            {"name": "entities"},
            "task.name=entities, but model.name=m is a model for task.name=answers",
        ),
        (
            {**BERT, "architectures": ["BertModel"]},
            {"name": "entities"},
            "has no head: its config.json is a BertModel",
        ),
        (
            SPANS,
            {"tokens": "words"},
            "task.tokens means nothing with task.name=answers, .* settings are question, ",
        ),
        (SPANS, {"max_answer": 0}, r"task\.max_answer=0 does not fit"),
        (
            {**shape("a", "b"), **TOKENS},
            {},
            "labels of entities must be O, B-type, I-type ...; 'a' is not one",
        ),
        ({**shape("a", "b", "c"), **SPANS}, {}, "this model has 3 outputs"),
        (
            {**SPANS, "raybert": {"task": "poetry"}},
            {},
            "names a task under 'raybert' that this raybert does not know",
        ),
        (
            {**shape("a", "b"), "raybert": {"task": "classification", "settings": {"kind": "single"}}},
            {"kind": "multi"},
            "task.kind=multi, but model.name=m was trained with single",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(config, given, words):
    with pytest.raises(ValueError, match=words) as error:
        read_head(config, "m", asked(**given))
    assert "\n" not in str(error.value)


def test_only_what_was_given_is_told():
    assert asked().model_dump() == {"name": "auto"}
    assert asked(other=None, max_answer=3).model_dump() == {"name": "auto", "max_answer": 3, "other": None}
    with pytest.raises(ValueError, match=r"unknown setting 'task\.tokns'; did you mean 'task\.tokens'"):
        load(PredictConfig, settings={"task.tokns": "a"})


@pytest.mark.parametrize(
    "settings",
    [
        ClassificationSettings(kind="multi", separator=";"),
        EntitiesSettings(text="satz", overlap=3),
        RelationsSettings(other=None),
        AnswersSettings(null_threshold=0.5),
    ],
    ids=lambda settings: settings.name,
)
def test_a_recorded_head_is_read_back(settings, tmp_path):
    labels = {"entities": ["O", "B-x"], "answers": ["LABEL_0", "LABEL_1"]}.get(settings.name, ["é", "b"])
    folder = tiny_task(tmp_path, settings, labels)
    before = json.loads((tmp_path / "config.json").read_text())
    record_head(tmp_path, settings, max_length=48)
    after = json.loads((tmp_path / "config.json").read_text())
    assert {key: value for key, value in after.items() if key != "raybert"} == before
    head = read_head(after, "m")
    assert head == Head(settings.name, settings, labels, 48)
    assert AutoTokenizer.from_pretrained(folder).model_max_length == 48
    # transformers keeps what it does not know
    assert AutoConfig.from_pretrained(folder).raybert["task"] == settings.name


def test_a_head_without_labels_in_the_config_and_an_adapter(tmp_path):
    record_head_in = tmp_path / "raybert_adapter.json"
    record_head_in.write_text('{"base": "b"}')
    record_head(tmp_path, AnswersSettings(), max_length=8)
    assert json.loads(record_head_in.read_text())["raybert"]["max_length"] == 8
    with pytest.raises(FileNotFoundError, match=r"has no config\.json"):
        record_head(tmp_path / "none", AnswersSettings())


def test_ten_labels_are_in_the_order_of_their_numbers():
    names = [f"l{i}" for i in range(12)]
    assert labels_of(shape(*names), "m") == names


def test_the_longest_row():
    bert = {"model_type": "bert", "max_position_embeddings": 512}
    assert longest_input(bert, None, 1e30, "m") == 512
    assert longest_input(bert, None, 128, "m") == 128
    assert longest_input(bert, 300, 128, "m") == 300
    roberta = {"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1}
    assert longest_input(roberta, None, None, "m") == 512
    with pytest.raises(ValueError, match=r"model\.max_length=513, but m takes 512 tokens"):
        longest_input(roberta, 513, None, "m")
    assert longest_input({"model_type": "any"}, None, None, "m") == 8192
