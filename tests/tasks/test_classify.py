"""Rows to examples and logits to scores, without torch."""

import json
import sys
from subprocess import run

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from raybert.config.finetune import ClassificationSettings, TableSettings
from raybert.tasks.classify import Scores, decode, find_labels, prepare, weigh
from raybert.tasks.examples import Examples, Lists
from raybert.tasks.storage import from_bytes, to_bytes
from raybert.tasks.table import read_table
from tests.encoder.tiny import tiny_model

SINGLE = ClassificationSettings()
MULTI = ClassificationSettings(kind="multi")
REGRESSION = ClassificationSettings(kind="regression")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return Tokenizer.from_file(str(tiny_model(tmp_path_factory.mktemp("m"), st=False) / "tokenizer.json"))


def table(texts, labels, pairs=None):
    columns = {"text": pa.array(texts, pa.string()), "label": pa.array(labels)}
    return pa.table(columns if pairs is None else {**columns, "text_pair": pa.array(pairs, pa.string())})


def test_rows_are_tokenized_as_transformers_does(tokenizer, tmp_path):
    from transformers import AutoTokenizer

    texts, pairs = ["the quick fox", "a dog " * 30], ["over the lazy dog", "the river and the city"]
    theirs = AutoTokenizer.from_pretrained(tiny_model(tmp_path, st=False))
    for given in ((texts,), (texts, pairs)):
        made, reasons = prepare(
            table(texts, ["a", "b"], *given[1:]), tokenizer, ["a", "b"], SINGLE, max_length=20
        )
        assert [*reasons] == [None, None]
        expected = theirs(*given, truncation=True, max_length=20)
        for i in range(2):
            ids = made.ids.values[made.ids.offsets[i] : made.ids.offsets[i + 1]]
            assert ids.tolist() == expected["input_ids"][i]
            assert made.boundary[i] == len(ids) - sum(expected["token_type_ids"][i])


def test_labels_are_sorted_and_numbered(tokenizer):
    rows = table(["x", "y", "z", "w"], ["pear", "apple", "pear", "fig"])
    labels = find_labels(rows, SINGLE)
    assert labels == ["apple", "fig", "pear"]
    made, _ = prepare(rows, tokenizer, labels, SINGLE, max_length=20)
    assert made.targets["labels"].tolist() == [2, 0, 2, 1]
    assert find_labels(table(["x", "y"], [10, 2]), SINGLE) == ["10", "2"]
    assert find_labels(table(["x", "y"], [True, False]), SINGLE) == ["False", "True"]


def test_bad_rows_have_a_reason_and_others_stay(tokenizer):
    rows = table(["a fox", None, "", " ", "dog", "cat", "city"], ["a", "a", "b", "b", None, " ", "b"])
    made, reasons = prepare(rows, tokenizer, ["a", "b"], SINGLE, max_length=20)
    assert [*reasons] == [
        None, "text is null", "text is empty", "text is empty", "label is null", "label is empty", None,
    ]  # fmt: skip
    assert made.row.tolist() == [0, 6]
    assert made.targets["labels"].tolist() == [0, 1]


def test_many_labels_a_row(tokenizer):
    lists = [["b", "a"], [], None, ["c", None]]
    split = ["b, a", "", None, "c,,"]
    as_json = ['["b", "a"]', "[]", None, '["c", ""]']
    for labels in (pa.array(lists), pa.array(split), pa.array(as_json)):
        rows = table(["x", "y", "z", "w"], labels)
        assert find_labels(rows, MULTI)[:2] == ["a", "b"]
        made, reasons = prepare(rows, tokenizer, ["a", "b", "c"], MULTI, max_length=20)
        assert [*reasons][:3] == [None, None, "label is null"]
        assert made.targets["labels"][:2].tolist() == [[1, 1, 0], [0, 0, 0]]
    assert reasons[3] == "one of its labels is empty"


def test_numbers(tokenizer):
    rows = table(["x", "y", "z", "w"], ["1.5", "nan", "much", None])
    assert find_labels(rows, REGRESSION) == ["LABEL_0"]
    made, reasons = prepare(rows, tokenizer, ["LABEL_0"], REGRESSION, max_length=20)
    assert [*reasons] == [None, "label is no number: nan", "label is no number: much", "label is null"]
    assert made.targets["labels"].tolist() == [1.5]


@pytest.mark.parametrize(
    ("labels", "settings", "words"),
    [
        (["a", "a"], SINGLE, "one label only, 'a'"),
        (pa.array([None, None], pa.string()), SINGLE, "no labels"),
        ([["a"], ["b"]], SINGLE, "set task.kind=multi"),
        ([[], []], MULTI, "names no label in any row"),
        ([b"a", b"b"], SINGLE, "must hold labels, not binary"),
    ],
)
def test_what_cannot_be_learnt_is_one_line(labels, settings, words):
    with pytest.raises(ValueError, match=words) as error:
        find_labels(table(["x", "y"], labels), settings)
    assert "\n" not in str(error.value)


def test_unknown_labels_are_listed(tokenizer):
    rows = table(["x"] * 14, [f"l{i:02}" for i in range(14)])
    with pytest.raises(ValueError, match=r"not in the rows to train on: l01, l02, .* and 3 more"):
        prepare(rows, tokenizer, ["l00"], SINGLE, max_length=20)


def test_weights_of_labels(tokenizer):
    rows = table(["x", "y", "z", "w"], ["a", "b", "a", "a"])
    made, _ = prepare(rows, tokenizer, ["a", "b"], SINGLE, max_length=20)
    balanced = weigh(made, ["a", "b"], ClassificationSettings(class_weights="balanced")).targets["weight"]
    np.testing.assert_allclose(balanced, [4 / 6, 2, 4 / 6, 4 / 6])
    assert balanced.mean() == 1
    given = weigh(made, ["a", "b"], ClassificationSettings(class_weights={"b": 3})).targets["weight"]
    assert given.tolist() == [1, 3, 1, 1]
    assert weigh(made, ["a", "b"], SINGLE) is made
    with pytest.raises(ValueError, match="names 'c', which is no label"):
        weigh(made, ["a", "b"], ClassificationSettings(class_weights={"c": 3}))


def test_scores_are_those_of_scikit_learn_in_any_parts():
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    rng = np.random.default_rng(0)
    logits, truth = rng.normal(size=(50, 3)).astype(np.float32), rng.integers(0, 3, 50)

    def examples(rows):
        n = len(rows)
        lists = Lists(np.zeros(n, np.int32), np.arange(n + 1))
        return Examples(lists, np.ones(n), rows, {"labels": truth[rows]})

    one, other = (Scores(["a", "b", "c"], SINGLE) for _ in range(2))
    for part, rows in ((one, np.arange(20)), (other, np.arange(20, 45)), (other, np.arange(45, 50))):
        part.add({"logits": logits[rows]}, examples(rows))
    one.merge(other.to_json())
    found, predicted = one.result(), logits.argmax(1)
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    assert found["f1_macro"] == pytest.approx(f1_score(truth, predicted, average="macro"))
    assert found["mcc"] == pytest.approx(matthews_corrcoef(truth, predicted))


def test_logits_to_predictions():
    logits = np.log(np.array([[0.2, 0.8], [0.9, 0.1]]))
    two = Examples(Lists(np.zeros(2, np.int32), np.arange(3)), np.ones(2, np.int32), np.arange(2), {})
    assert decode({"logits": logits}, two, ["a", "b"], SINGLE) == [
        {"label": "b", "score": pytest.approx(0.8)},
        {"label": "a", "score": pytest.approx(0.9)},
    ]
    found = decode({"logits": np.array([[0.1, -0.1], [2.0, 1.0]])}, two, ["a", "b"], MULTI)
    assert [row["labels"] for row in found] == [["a"], ["a", "b"]]
    assert decode({"logits": np.array([[0.25]])}, two.take(np.array([0])), ["LABEL_0"], REGRESSION) == [
        {"value": 0.25}
    ]


def test_examples_are_stored_and_read_back():
    made = Examples(
        ids=Lists(np.array([5, 6, 7], np.int32), np.array([0, 1, 3])),
        boundary=np.array([1, 2], np.int32),
        row=np.array([0, 4]),
        targets={
            "one": np.array([1.5, 2.5], np.float32),
            "many": np.array([[1, 2], [3, 4]]),
            "tokens": Lists(np.array([1, -100, 3]), np.array([0, 1, 3])),
        },
    )
    again = from_bytes(bytes(to_bytes(made)))
    assert to_bytes(made) == to_bytes(again)
    assert again.targets["many"].tolist() == [[1, 2], [3, 4]]
    assert again.targets["one"].dtype == np.float32
    assert again.targets["tokens"].values.tolist() == [1, -100, 3]
    assert again.ids.offsets.tolist() == [0, 1, 3]


@pytest.mark.parametrize("format", ["parquet", "jsonl", "csv"])
def test_tables_are_read_in_any_format(tmp_path, format):
    rows = [{"body": f"text {i}", "kind": "ab"[i % 2], "n": i} for i in range(5)]
    for part in range(2):
        file = tmp_path / f"part-{part}.{format}"
        if format == "parquet":
            pq.write_table(pa.Table.from_pylist(rows), file)
        elif format == "jsonl":
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            file.write_text("body,kind,n\n" + "".join(f"{r['body']},{r['kind']},{r['n']}\n" for r in rows))
    data = TableSettings(path=str(tmp_path), text="body", label="kind", limit=8)
    columns = {"body": "data.text", "kind": "data.label"}
    found = read_table(data.paths, data, texts=["body"], columns=columns)
    assert found.table["kind"].to_pylist() == list("ababaaba")
    assert found.file.tolist() == [0] * 5 + [1] * 3
    assert found.row.tolist() == [0, 1, 2, 3, 4, 0, 1, 2]
    rejects = found.rejects(np.array([None] * 6 + ["why"] + [None], object))
    assert rejects.to_pylist()[0] | {"id": ""} == {
        "id": "", "source": found.sources[1], "row": 1, "reason": "why",
    }  # fmt: skip
    with pytest.raises(
        ValueError, match=r"data.label=none: there is no such column in .*; it has: body, kind, n"
    ):
        read_table(data.paths, data, texts=["body"], columns={"body": "data.text", "none": "data.label"})


def test_needs_no_torch():
    code = "import raybert.tasks.classify, raybert.tasks.table, raybert.tasks.storage, raybert.finetune, sys"
    assert run([sys.executable, "-c", f"{code}; sys.exit('torch' in sys.modules)"]).returncode == 0
