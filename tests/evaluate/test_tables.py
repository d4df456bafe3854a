"""Tables: equal to scikit-learn's text; before and after; runs."""

import math

import numpy as np
import pytest
import sklearn.metrics as sk

from raybert.evaluate.metrics import Confusion, MultiLabel, Regression, Spans
from raybert.evaluate.result import Evaluation
from raybert.evaluate.tables import Run, comparison_table, label_table, runs_table, verdict
from tests.evaluate.test_metrics import single


def evaluation(metric, rows=500, **more):
    return Evaluation.of(metric, **{"name": "after", "task": "classify", "model": "m", "rows": rows, **more})


def confusion(seed=0, names=("a", "bb", "ccc", "d", "e", "a label with a long name")):
    truth, predicted, probability = single(seed)
    metric = Confusion(names)
    metric.add(truth, predicted, probability)
    return metric


@pytest.mark.parametrize("digits", [2, 4])
def test_the_table_of_labels_is_sklearns_text(digits):
    truth, predicted, _ = single(0)
    metric = confusion()
    expected = sk.classification_report(
        truth,
        predicted,
        labels=np.arange(6),
        target_names=metric.labels,
        digits=digits,
        zero_division=0,
    )
    assert label_table(evaluation(metric), digits) == expected


def test_the_table_of_two_labels_is_sklearns_text():
    metric = Confusion(["no", "yes"])
    truth, predicted = np.random.default_rng(0).integers(0, 2, (2, 50))
    metric.add(truth, predicted)
    expected = sk.classification_report(truth, predicted, target_names=["no", "yes"])
    assert label_table(evaluation(metric)) == expected


def test_the_table_of_several_labels_a_row_is_sklearns_text():
    truth, predicted = np.random.default_rng(0).integers(0, 2, (2, 60, 3))
    metric = MultiLabel(["x", "y", "z"])
    metric.add(truth, predicted)
    expected = sk.classification_report(truth, predicted, target_names=["x", "y", "z"], zero_division=0)
    assert label_table(evaluation(metric)) == expected


def test_the_table_of_spans_is_sklearns_text():
    truth, predicted = np.random.default_rng(0).integers(0, 4, (2, 200))
    metric = Spans(["x", "y", "z"])
    counts = [
        np.bincount(values, minlength=4)[1:] for values in (truth[truth == predicted], predicted, truth)
    ]
    metric.add(counts[0], counts[1] - counts[0], counts[2] - counts[0])
    expected = sk.classification_report(truth, predicted, labels=[1, 2, 3], target_names=["x", "y", "z"])
    assert label_table(evaluation(metric)) == expected


def test_a_terminal_obeys_no_label():
    metric = Confusion(["\x1b[31mred", "b\nc"])
    metric.add(np.array([0, 1]), np.array([0, 1]))
    text = label_table(evaluation(metric))
    assert "\x1b" not in text
    assert len(text.splitlines()) == 8


@pytest.mark.parametrize("metric", [confusion(), Spans(["x"])], ids=["confusion", "spans"])
def test_an_evaluation_survives_json(metric):
    before = evaluation(metric, seconds=1.5, more={"loss": math.inf})
    again = Evaluation.from_json(before.to_json())
    assert math.isnan(again.metrics.pop("loss"))
    before.metrics.pop("loss")
    assert again == before


def test_other_json_is_no_evaluation():
    with pytest.raises(ValueError, match="no evaluation"):
        Evaluation.from_json('{"metrics": {}}')


def test_before_and_after():
    old = Evaluation("base", "t", "m", 10, {"accuracy": 0.5, "loss": 2.0})
    new = Evaluation("tuned", "t", "m", 10, {"accuracy": 0.75, "loss": 1.0, "mcc": 0.5})
    assert comparison_table(old, new).splitlines() == [
        "            base   tuned  difference",
        "accuracy  0.5000  0.7500     +0.2500  better",
        "loss      2.0000  1.0000     -1.0000  better",
        "mcc            -  0.5000",
    ]
    assert comparison_table(None, old).splitlines() == [
        "            base",
        "accuracy  0.5000",
        "loss      2.0000",
    ]
    assert [verdict("f1_macro", 1, 0), verdict("mse", 1, 2), verdict("mcc", 1, 1)] == [
        "worse",
        "worse",
        "same",
    ]
    assert verdict("mcc", math.nan, 1) == ""


def test_runs():
    runs = [Run("full", 22_713_216, [10.0, 12.0], [0.9, 0.92]), Run("frozen", 29_645, [3.0], [0.8])]
    assert runs_table(runs, "accuracy").splitlines() == [
        "run     trainable parameters     seconds         accuracy  seeds",
        "full              22,713,216  11.0 ± 1.4  0.9100 ± 0.0141      2",
        "frozen                29,645         3.0           0.8000      1",
    ]


def test_regression_has_figures_alone():
    metric = Regression()
    metric.add([1, 2, 3], [1, 2, 4])
    found = evaluation(metric)
    assert (found.labels, found.confusion, found.per_label, found.calibration) == ([], None, [], [])
