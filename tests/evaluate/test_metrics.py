"""Metrics against scikit-learn on random data: in one batch, in several, over workers, through JSON."""

import itertools

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics as sk
from sklearn.calibration import calibration_curve

from raybert.evaluate.metrics import Confusion, MultiLabel, Regression, Spans
from raybert.tasks.examples import IGNORED

close = pytest.approx


def sklearn_averages(truth, predicted, labels, kinds=("micro", "macro", "weighted")):
    out = {}
    for kind in kinds:
        values = sk.precision_recall_fscore_support(
            truth, predicted, labels=labels, average=kind, zero_division=0
        )
        out |= {
            f"{name}_{kind}": value
            for name, value in zip(("precision", "recall", "f1"), values[:3], strict=True)
        }
    return out


def in_parts(metric, arrays, cuts=(0, 7, 7, 100, None)):
    """Each pair of batches is another worker's, merged through JSON."""
    for start, end in itertools.pairwise(cuts):
        other = type(metric).from_json(metric.to_json()) if start == 0 else fresh(metric)
        other.add(*(array[start:end] for array in arrays))
        metric.merge(type(metric).from_json(other.to_json()))
    return metric


def fresh(metric):
    return Regression() if isinstance(metric, Regression) else type(metric)(metric.labels)


def single(seed, rows=500, labels=6):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, labels - 1, rows)  # the last label never occurs
    predicted = np.where(rng.random(rows) < 0.6, truth, rng.integers(0, labels, rows))
    return truth, predicted, rng.random(rows).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_confusion_is_sklearns(seed):
    truth, predicted, probability = single(seed)
    metric = Confusion(list("abcdef"))
    metric.add(truth, predicted, probability)
    labels = np.arange(6)
    expected = {
        "accuracy": sk.accuracy_score(truth, predicted),
        "mcc": sk.matthews_corrcoef(truth, predicted),
        **sklearn_averages(truth, predicted, labels),
    }
    result = metric.result()
    assert {name: result[name] for name in expected} == close(expected, rel=1e-12)
    assert np.array_equal(metric.matrix, sk.confusion_matrix(truth, predicted, labels=labels))
    table = sk.precision_recall_fscore_support(truth, predicted, labels=labels, zero_division=0)
    found = [(score.precision, score.recall, score.f1, score.support) for score in metric.per_label()]
    assert np.array_equal(np.array(found), np.array(table).T)
    assert [score.label for score in metric.per_label()] == list("abcdef")


def test_calibration_is_sklearns_and_the_error_its_definition():
    truth, predicted, probability = single(7)
    probability = probability.astype(np.float64)
    probability[:32] = np.repeat(np.linspace(0, 1, 16), 2)  # on the borders
    metric = Confusion(list("abcdef"))
    metric.add(truth, predicted, probability)
    right = (truth == predicted).astype(int)
    accuracy, confidence = calibration_curve(right, probability.astype(np.float64), n_bins=15)
    bins = metric.calibration()
    full = [b for b in bins if b.count]
    assert len(bins) == 15
    assert sum(b.count for b in bins) == 500
    assert [b.accuracy for b in full] == close(accuracy.tolist(), rel=1e-12)
    assert [b.confidence for b in full] == close(confidence.tolist(), rel=1e-12)
    error = sum(b.count / 500 * abs(b.accuracy - b.confidence) for b in bins)
    assert metric.result()["ece"] == close(error, rel=1e-12)


def test_a_calibrated_model_has_no_calibration_error_and_an_overconfident_one_has():
    probability = np.full(1000, 0.7)
    truth = np.array([0] * 700 + [1] * 300)
    metric = Confusion(["a", "b"])
    metric.add(truth, np.zeros(1000, int), probability)
    assert metric.result()["ece"] == close(0, abs=1e-12)
    metric = Confusion(["a", "b"])
    metric.add(truth, np.zeros(1000, int), np.full(1000, 0.99))
    assert metric.result()["ece"] == close(0.29, rel=1e-9)


def test_confusion_without_probabilities_and_with_ignored_targets():
    metric = Confusion(["a", "b"])
    metric.add(np.array([[0, 1], [IGNORED, 1]]), np.array([[0, 0], [7, 1]]))
    assert metric.matrix.tolist() == [[1, 0], [1, 1]]
    assert metric.calibration() == []
    assert "ece" not in metric.result()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([2], [0]), "true label number 2 is not one of the 2"),
        (([0], [-1]), "predicted label number -1"),
        (([0], [0], [np.nan]), "probabilities"),
        (([0], [0], [1.5]), "probabilities"),
    ],
)
def test_confusion_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        Confusion(["a", "b"]).add(*map(np.array, arguments))


@pytest.mark.parametrize("seed", range(3))
def test_multi_label_is_sklearns(seed):
    rng = np.random.default_rng(seed)
    truth = rng.random((300, 5)) < [0.5, 0.3, 0.1, 0.02, 0]
    predicted = truth ^ (rng.random((300, 5)) < 0.1)
    metric = MultiLabel(list("abcde"))
    metric.add(truth, predicted.astype(int))
    expected = {
        "accuracy": sk.accuracy_score(truth, predicted),
        "hamming_loss": sk.hamming_loss(truth, predicted),
        **sklearn_averages(truth, predicted, None, ("micro", "macro", "weighted", "samples")),
    }
    assert metric.result() == close(expected, rel=1e-12)
    table = sk.precision_recall_fscore_support(truth, predicted, zero_division=0)
    found = [(score.precision, score.recall, score.f1, score.support) for score in metric.per_label()]
    assert np.array_equal(np.array(found), np.array(table).T)


@pytest.mark.parametrize(
    "bad", [(np.ones((2, 3)), np.ones((2, 2))), (np.full((1, 2), 2), np.ones((1, 2))), ([1], [1])]
)
def test_multi_label_refuses(bad):
    with pytest.raises(ValueError, match=r"labels must"):
        MultiLabel(["a", "b"]).add(*bad)


@pytest.mark.parametrize("seed", range(3))
def test_spans_are_sklearns(seed):
    """Each true or found span is a row; what is not there has the type 0, which is not counted."""
    rng = np.random.default_rng(seed)
    truth, predicted = rng.integers(0, 4, (2, 400))
    metric = Spans(["x", "y", "z"])
    for part in (slice(0, 150), slice(150, 400)):
        t, p = truth[part], predicted[part]
        hits, false, missed = (
            np.bincount(values, minlength=4)[1:] for values in (t[t == p], p[t != p], t[t != p])
        )
        metric.add(hits, false, missed)
    assert metric.result() == close(sklearn_averages(truth, predicted, [1, 2, 3]), rel=1e-12)
    table = sk.precision_recall_fscore_support(truth, predicted, labels=[1, 2, 3])
    found = [(score.precision, score.recall, score.f1, score.support) for score in metric.per_label()]
    assert np.array_equal(np.array(found), np.array(table).T)


@pytest.mark.parametrize("seed", range(3))
def test_regression_is_scipys(seed):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 6, 400).astype(np.float32)  # with ties
    predicted = (truth + rng.normal(size=400)).astype(np.float32)
    metric = Regression()
    metric.add(truth, predicted)
    wide = truth.astype(np.float64), predicted.astype(np.float64)
    expected = {
        "pearson": scipy.stats.pearsonr(*wide).statistic,
        "spearman": scipy.stats.spearmanr(*wide).statistic,
        "mse": sk.mean_squared_error(*wide),
    }
    assert metric.result() == close(expected, rel=1e-12)


def test_a_constant_correlates_with_nothing():
    metric = Regression()
    metric.add(np.arange(7) / 10, np.full(7, 0.1))
    assert metric.result()["pearson"] == metric.result()["spearman"] == 0


def test_regression_keeps_two_float32_a_row_and_refuses_what_is_not_finite():
    metric = Regression()
    metric.add(np.zeros(1000), np.ones(1000))
    assert sum(part.nbytes for part in metric._parts) == 8000
    with pytest.raises(ValueError, match="predicted numbers must be finite"):
        metric.add([0.0], [np.inf])


@pytest.mark.parametrize(
    ("empty", "arrays"),
    [
        (Confusion(list("abcdef")), single(3)),
        (MultiLabel(["a", "b"]), tuple(np.random.default_rng(0).integers(0, 2, (2, 300, 2)))),
        (Regression(), tuple(np.random.default_rng(0).normal(size=(2, 300)))),
    ],
    ids=lambda value: type(value).__name__,
)
def test_batches_workers_and_json_do_not_matter(empty, arrays):
    whole = fresh(empty)
    whole.add(*arrays)
    with pytest.raises(ValueError, match="no rows"):
        empty.result()
    parts = in_parts(fresh(empty), arrays)
    assert parts.result() == close(whole.result(), rel=1e-12)
    again = type(parts).from_json(parts.to_json())
    assert again.result() == parts.result()


def test_span_counts_of_workers_add_up():
    one, two = Spans(["x"]), Spans(["x"])
    one.add(np.array([1]), np.array([1]), np.array([0]))
    two.add(np.array([2]), np.array([0]), np.array([3]))
    one.merge(Spans.from_json(two.to_json()))
    assert one.result()["precision_micro"] == 3 / 4
    assert one.result()["recall_micro"] == 3 / 6
