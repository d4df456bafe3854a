"""Contexts and responses: drawn and given candidates, cuts, the softmax over the candidates of a row, the figures."""

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch.testing import assert_close

from raybert.config.finetune import RegularizeSettings
from raybert.config.pair_tasks import SelectionSettings
from raybert.tasks import selection, selection_model
from raybert.tasks.selection import Scores, prepare
from raybert.tasks.selection_model import Model, log_shares
from raybert.train.example_stream import ExampleMicro, nothing
from raybert.train.packed import pack
from tests.tasks import model_fakes as fakes
from tests.tasks.toys import KINDS, tokenizer

WORDS = ["fox", "dog", "Paris", "New York", "child", "jumps"]
ROWS = [{"context": f"the {word}", "response": word} for word in WORDS]
SETTINGS = SelectionSettings(negatives=3)


def made(rows, settings=SETTINGS, kind="wordpiece", labels=("LABEL_0",), max_length=32):
    return prepare(pa.Table.from_pylist(rows), tokenizer(kind), labels, settings, max_length=max_length)


def responses_of(examples, kind="wordpiece"):
    """(row, text of the response) of every sequence."""
    tok, ids = tokenizer(kind), examples.ids
    parts = [
        ids.values[a + b : c]
        for a, b, c in zip(ids.offsets, examples.boundary, ids.offsets[1:], strict=False)
    ]
    return list(zip(examples.row.tolist(), (tok.decode(part.tolist()) for part in parts), strict=True))


def test_wrong_responses_are_drawn_from_other_rows():
    rows = [*ROWS, {"context": "the fox", "response": "a fox"}, {"context": None, "response": "lazy"}]
    found, reasons = made(rows)
    assert reasons[-1] == "context is null"
    assert found.targets["labels"].tolist() == [1, 0, 0, 0] * 7
    assert found.targets["example"].tolist() == np.repeat(np.arange(7), 4).tolist()
    by_row: dict[int, list[str]] = {}
    for row, text in responses_of(found):
        by_row.setdefault(row, []).append(text)
    for row, texts in by_row.items():
        assert texts[0] == rows[row]["response"].lower()
        assert len(set(texts)) == 4
        assert "lazy" not in texts
    for row in (0, 6):  # both answer the same context
        assert not {"fox", "a fox"} & set(by_row[row][1:])
    again, _ = made(rows)
    assert np.array_equal(again.ids.values, found.ids.values)
    other, _ = made(rows, SETTINGS.model_copy(update={"seed": 1}))
    assert not np.array_equal(other.ids.values, found.ids.values)
    # every response is drawn about equally often
    many, _ = made([{"context": f"the {i}", "response": f"fox {i}"} for i in range(300)])
    counts = np.unique(
        [
            text
            for (_, text), label in zip(responses_of(many), many.targets["labels"], strict=True)
            if not label
        ],
        return_counts=True,
    )[1]
    assert len(counts) > 270
    assert counts.max() < 13
    with pytest.raises(ValueError, match=r"task\.negatives=3 wrong responses are drawn .* there are 2"):
        made(ROWS[:3])


def test_candidates_may_be_given():
    rows = [
        {"context": "the fox", "response": "fox", "wrong": ["dog", "fox", None, "child", "dog"]},
        {"context": "the dog", "response": "dog", "wrong": ["dog"]},
    ]
    found, reasons = made(rows, SelectionSettings(candidates="wrong"))
    assert reasons.tolist() == [None, "wrong has no wrong response"]
    assert responses_of(found) == [(0, "fox"), (0, "dog"), (0, "child")]
    bare, reasons = made(rows, SelectionSettings(candidates="wrong"), labels=None)
    assert responses_of(bare) == [(0, "fox"), (1, "dog")]
    assert reasons.tolist() == [None, None]


@pytest.mark.parametrize("kind", KINDS)
def test_sequences_are_the_tokenizers_pairs(kind):
    found, _ = made(ROWS, kind=kind)
    tok = tokenizer(kind)
    for i in range(0, len(found), 4):
        row = ROWS[found.row[i]]
        encoding = tok.encode(row["context"], row["response"])
        assert found.ids.take(np.array([i])).values.tolist() == encoding.ids
        types = sum(encoding.type_ids)
        assert found.boundary[i] == len(encoding.ids) - types


def test_long_rows_are_cut():
    rows = [
        {"context": ["a b c d", "e f g h"], "response": "1 2 3 4"},
        {"context": ["a"], "response": "1 2 3 4 5 6 7 8"},
        {"context": ["a b c d e f"], "response": "1"},
    ]
    found, _ = made(rows, labels=None, max_length=9)  # 6 for text
    tok = tokenizer("wordpiece")
    texts = [[tok.id_to_token(i) for i in found.ids.take(np.array([k])).values] for k in range(3)]
    assert texts[0] == ["[CLS]", "f", "g", "h", "[SEP]", "1", "2", "3", "[SEP]"]
    assert texts[1] == ["[CLS]", "a", "[SEP]", "1", "2", "3", "4", "5", "[SEP]"]
    assert texts[2] == ["[CLS]", "b", "c", "d", "e", "f", "[SEP]", "1", "[SEP]"]
    assert found.cut.tolist() == [True, True, True]
    text, _ = made([{"context": "a b c d e f", "response": "1 2 3"}], labels=None, max_length=9)
    assert tok.decode(text.ids.values.tolist()) == "a b c 1 2 3"
    with pytest.raises(ValueError, match="leaves no room for text"):
        made(rows, labels=None, max_length=4)


def examples_of(seed=0):
    """Three rows of 3, 2 and 1 candidates."""
    found = fakes.sequences(seed, pairs=True)
    example = np.array([4, 7, 4, 9, 7, 4])
    labels = np.array([0, 1, 1, 1, 0, 0])
    return replace(found, row=example, targets={"labels": labels, "example": example})


def model_of(regularize=None, dropout=0.0, **options):
    plain = fakes.plain(selection_model, ["LABEL_0"], SETTINGS, dropout=dropout)
    return Model(plain, SETTINGS, regularize, **options)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
@pytest.mark.parametrize("padded", [False, True])
def test_the_loss_is_a_softmax_over_the_candidates_of_a_row(padded, smoothing):
    examples = examples_of()
    model = model_of(RegularizeSettings(label_smoothing=smoothing), padded=padded)
    with torch.no_grad():
        sums, outputs = model(pack(ExampleMicro(examples)), outputs=True)
    logits = outputs["logits"][:, 0].tolist()
    expected, right = 0.0, 0
    for row in (4, 7, 9):
        mine = [i for i in range(6) if examples.row[i] == row]
        total = math.log(sum(math.exp(logits[i]) for i in mine))
        true = next(i for i in mine if examples.targets["labels"][i])
        expected -= (1 - smoothing) * (logits[true] - total)
        expected -= smoothing * sum(logits[i] - total for i in mine) / len(mine)
        right += all(logits[true] > logits[i] for i in mine if i != true)
    assert float(sums.loss) == pytest.approx(expected, rel=1e-5)
    assert int(sums.accuracy) == right
    assert Model.targets(ExampleMicro(examples)) == 3


def test_r_drop_compares_the_shares_of_candidates():
    model = model_of()
    batch = pack(ExampleMicro(examples_of()))
    rng = torch.Generator().manual_seed(0)
    one, other = torch.randn(6, 1, generator=rng), torch.randn(6, 1, generator=rng)
    found = model.divergence(one, other, batch)
    example = batch.targets["example"]
    p, q = (log_shares(x[:, 0], example)[0] for x in (one, other))
    for row in (4, 7, 9):
        mine = example == row
        a, b = p[mine], q[mine]
        assert_close(a.exp().sum(), torch.tensor(1.0))
        expected = ((a.exp() * (a - b)).sum() + (b.exp() * (b - a)).sum()) / 2
        assert_close(found[mine], expected.expand(int(mine.sum())))


def test_an_empty_batch_has_no_loss_but_a_gradient():
    model, examples = model_of(), examples_of()
    empty = nothing(examples)
    assert Model.targets(empty) == 0
    sums = model(pack(empty))
    sums.loss.backward()
    assert sums.loss.item() == sums.accuracy.item() == 0
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())


def test_it_learns_rows_by_heart():
    found = fakes.learnt(model_of(), selection, ["LABEL_0"], SETTINGS, examples_of(), steps=40)
    assert found == {"recall_at_1": 1.0, "mrr": 1.0, "candidates": 2.0}


def test_figures():
    examples = examples_of()
    logits = np.array([[0.5], [2.0], [0.1], [1.0], [2.0], [0.2]], np.float32)
    scores, other = Scores([], SETTINGS), Scores([], SETTINGS)
    scores.add({"logits": logits}, examples)  # ranks 3, 2 (a tie stands before it), 1
    expected = {"recall_at_1": 1 / 3, "mrr": (1 / 3 + 1 / 2 + 1) / 3, "candidates": 2.0}
    assert scores.result() == pytest.approx(expected)
    other.merge(scores.to_json())
    assert other.result() == scores.result()
    order = np.argsort(examples.row, kind="stable")
    rows = examples.take(order)
    decoded = selection.decode({"logits": logits[order]}, rows, [], SETTINGS)
    assert [row["score"] for row in decoded] == pytest.approx([0.5, 2.0, 1.0])
    with pytest.raises(ValueError, match="no rows"):
        Scores([], SETTINGS).result()
