"""What a config.json says of a model's head."""

import pytest

from raybert.config.predicting import HeadTaskSettings as asked
from raybert.tasks.heads import labels_of, longest_input, read_head

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
