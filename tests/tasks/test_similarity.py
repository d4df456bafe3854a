"""Two texts and a number: examples, the ends of the scores, the losses against their formulas, the figures."""

import math

import numpy as np
import pyarrow as pa
import pytest
import torch
from scipy.stats import pearsonr, spearmanr

from raybert.config.pair_tasks import SimilaritySettings
from raybert.tasks import similarity
from raybert.tasks.examples import Examples, Lists
from raybert.tasks.similarity import Scores, cosent, prepare, settle
from raybert.tasks.similarity_model import cosent_sums, cosine_sums
from tests.tasks.toys import KINDS, tokenizer

ROWS = [
    {"sentence1": "the quick fox", "sentence2": "the lazy dog", "score": 1.0},
    {"sentence1": "a child", "sentence2": None, "score": 2.0},
    {"sentence1": "New York", "sentence2": "Paris and New York", "score": 4.0},
    {"sentence1": "the dog", "sentence2": "the fox", "score": float("nan")},
]
SETTINGS = SimilaritySettings()


def table(rows=ROWS):
    return pa.Table.from_pylist(rows)


def vectors_of(n: int, width: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, width)).astype(np.float32)


def examples_of(labels) -> Examples:
    """Pairs of one token each."""
    n = len(labels)
    row = np.repeat(np.arange(n), 2)
    targets = {"role": np.tile([0, 1], n), "example": row, "labels": np.repeat(labels, 2).astype(np.float32)}
    ids = Lists(np.zeros(2 * n, np.int32), np.arange(2 * n + 1))
    return Examples(ids, np.ones(2 * n, np.int32), row, targets)


def cosines(vectors: np.ndarray) -> list[float]:
    return [
        float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
        for a, b in zip(vectors[::2], vectors[1::2], strict=True)
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_two_sequences_as_the_tokenizer_makes_them(kind):
    tok = tokenizer(kind)
    settings = SETTINGS.model_copy(update={"low": 0.0, "high": 5.0, "prompt": "over "})
    found, reasons = prepare(table(), tok, [], settings, max_length=6)
    assert reasons.tolist() == [None, "sentence2 is null", None, "score is no number: nan"]
    assert found.row.tolist() == [0, 0, 2, 2]
    assert found.targets["role"].tolist() == [0, 1, 0, 1]
    assert found.targets["labels"].tolist() == pytest.approx([0.2, 0.2, 0.8, 0.8])
    tok.enable_truncation(6)
    texts = ["the quick fox", "the lazy dog", "New York", "Paris and New York"]
    for i, text in enumerate(texts):
        assert found.ids.take(np.array([i])).values.tolist() == tok.encode(f"over {text}").ids
    assert found.boundary.tolist() == found.ids.lengths.tolist()
    assert max(found.ids.lengths) == 6
    whole, _ = prepare(table(), tok, [], settings, max_length=60)
    assert found.cut.tolist() == (whole.ids.lengths > 6).tolist()
    assert found.cut.any()
    unlabelled, reasons = prepare(table(), tok, None, settings, max_length=6)
    assert "labels" not in unlabelled.targets
    assert reasons[3] is None


def test_the_ends_of_the_scores_are_those_of_all_rows():
    tables = {
        "data.path": table(),
        "data.validation": table([{"sentence1": "a", "sentence2": "b", "score": 4.5}]),
    }
    found = settle(SETTINGS, None, tables)
    assert (found.low, found.high) == (1.0, 4.5)
    assert settle(SETTINGS.model_copy(update={"low": 0.0}), None, tables).low == 0.0
    assert settle(SETTINGS, None, {}).low is None
    with pytest.raises(
        ValueError,
        match=r"data\.validation: score of row 0 is 4.5, which is not in task\.low=-inf to task\.high=4",
    ):
        settle(SETTINGS.model_copy(update={"high": 4.0}), None, tables)
    with pytest.raises(ValueError, match="all scores are 1; there is nothing to tell apart"):
        settle(SETTINGS, None, {"data.path": table(ROWS[:1])})
    with pytest.raises(ValueError, match=r"task\.low=3 must be less than task\.high=2"):
        SimilaritySettings(low=3, high=2)


def test_the_losses_are_their_formulas():
    vectors, labels = vectors_of(10), [0.1, 0.9, 0.4, 0.4, 0.7]
    cos = cosines(vectors)
    order = np.random.default_rng(1).permutation(10)
    examples = examples_of(labels).take(order)
    targets = {name: torch.tensor(value) for name, value in examples.targets.items()}
    given = torch.tensor(vectors[order])
    expected = sum((c - y) ** 2 for c, y in zip(cos, labels, strict=True))
    assert float(cosine_sums(given, targets)) == pytest.approx(expected, rel=1e-5)
    terms = [math.exp(20 * (cos[j] - cos[i])) for i in range(5) for j in range(5) if labels[i] > labels[j]]
    assert len(terms) == 9
    expected = math.log(1 + sum(terms))
    assert float(cosent_sums(given, targets, 20.0, 5)) == pytest.approx(5 * expected, rel=1e-5)
    assert cosent(np.array(labels), np.array(cos), 20.0) == pytest.approx(expected, rel=1e-6)


def test_the_losses_of_an_empty_batch_have_a_gradient():
    vectors = torch.ones(1, 4, requires_grad=True)
    targets = {name: torch.tensor([-100]) for name in ("role", "example")} | {
        "labels": torch.tensor([-100.0])
    }
    for loss in (cosine_sums(vectors, targets), cosent_sums(vectors, targets, 20.0, 3)):
        assert loss.item() == 0
        (gradient,) = torch.autograd.grad(loss, vectors)
        assert not gradient.any()


@pytest.mark.parametrize("loss", ["cosent", "cosine"])
def test_figures_are_those_of_all_parts(loss):
    rng = np.random.default_rng(3)
    labels, vectors = rng.integers(0, 6, 40) / 5, vectors_of(80, seed=4)
    settings, examples = SETTINGS.model_copy(update={"loss": loss}), examples_of(labels)
    parts = []
    for some in (np.arange(24), np.arange(24, 80)):
        scores = Scores([], settings)
        scores.add({"vectors": vectors[some]}, examples.take(some))
        parts.append(scores)
    parts[0].merge(parts[1].to_json())
    found, cos = parts[0].result(), cosines(vectors)
    assert found["spearman"] == pytest.approx(spearmanr(labels, cos).statistic, abs=1e-6)
    assert found["pearson"] == pytest.approx(pearsonr(labels, cos).statistic, abs=1e-6)
    pairs = [(i, j) for i in range(40) for j in range(40) if labels[i] > labels[j]]
    expected = {
        "cosine": np.mean((np.array(cos) - labels) ** 2),
        "cosent": math.log(1 + sum(math.exp(20 * (cos[j] - cos[i])) for i, j in pairs)),
    }[loss]
    assert found["loss"] == pytest.approx(expected, rel=1e-4)


def test_a_row_is_decoded_to_its_cosine():
    vectors = vectors_of(6)
    found = similarity.decode({"vectors": vectors}, examples_of([0, 0, 0]), [], SETTINGS)
    assert [row["score"] for row in found] == pytest.approx(cosines(vectors), abs=1e-6)
    assert found[0].keys() == similarity.output_fields(SETTINGS).keys()


def test_a_report_is_told_how_near_a_row_is():
    settings = SETTINGS.model_copy(update={"low": 0.0, "high": 5.0})
    found = similarity.shown_rows([{"score": 0.5}, {"score": 0.9}], table(ROWS[::2]), None, [], settings)
    assert found["text"] == ["the quick fox | the lazy dog", "New York | Paris and New York"]
    assert found["label"] == [1.0, 4.0]
    assert found["score"] == pytest.approx([0.7, 0.9])
    open_ends = similarity.shown_rows([{"score": 0.5}, {"score": 0.9}], table(ROWS[::2]), None, [], SETTINGS)
    assert open_ends["score"] == pytest.approx([0.5, 0.9])
