"""The report: a page that stands alone, in which no text of the data is code; the rows that changed."""

import json
import struct

import numpy as np
import pyarrow as pa
import pytest

from raybert.corpus.store import Store
from raybert.evaluate import plots
from raybert.evaluate.changes import find_changes
from raybert.evaluate.metrics import Confusion, Regression, Spans
from raybert.evaluate.report import PICTURES, draw, read_metrics, write_report
from raybert.evaluate.result import Evaluation
from raybert.evaluate.scores import MOST_POINTS
from raybert.evaluate.sections import html_page
from tests.evaluate.pages import check_page

EVIL = '<script>alert("x")</script>&\'"\x00\ud800 $x_$'


def evaluate(name, labels, right, seed=0, rows=400, **more):
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, len(labels), rows)
    predicted = np.where(rng.random(rows) < right, truth, rng.integers(0, len(labels), rows))
    metric = Confusion(labels)
    metric.add(truth, predicted, rng.random(rows))
    return Evaluation.of(metric, name=name, task="classify", model="a model", rows=rows, seconds=3, **more)


def pair(labels):
    return evaluate("before", labels, 0.5), evaluate("after", labels, 0.9, seed=1)


def predictions():
    """Row by row: got better, stayed right, got worse, stayed wrong, got better but less surely."""
    return pa.table(
        {
            "text": ["one", "two", "three", "four", "x" * 400],
            "label": ["a", "a", "a", "b", "b"],
            "before": ["b", "a", "a", "a", "a"],
            "after": ["a", "a", "b", "a", "b"],
            "before_probability": [0.9, 0.6, 0.7, 0.5, 0.4],
            "after_probability": [0.6, 0.9, 0.6, 0.9, 0.9],
        }
    )


CURVES = [{"step": 10 * i, "train/loss": 1 / (i + 1), "held_out/accuracy": i / 10} for i in range(5)]


def test_a_report_stands_alone(tmp_path):
    write_report(Store(str(tmp_path)), *pair(["no", "yes"]), curves=CURVES, changed_rows=predictions())
    page = check_page((tmp_path / "report.html").read_text())
    assert {path.name for path in tmp_path.glob("*.png")} == set(PICTURES) - {"points.png"}
    assert len(page.all("img")) == 5
    text = " ".join(text for _, text in page.texts)
    for words in (
        "Headline figures",
        "Confusion matrix",
        "Calibration",
        "Learning curves",
        "Rows that changed",
    ):
        assert words in page.text("h2")
    assert "Of 400 rows, 2 got better and 1 worse." in text
    before, after = pair(["no", "yes"])
    gain = after.metrics["accuracy"] - before.metrics["accuracy"]
    assert f"before {before.metrics['accuracy']:.4f}, difference {gain:+.4f}" in text
    assert not (tmp_path / "_raybert").exists()


def test_the_figures_can_be_read_back(tmp_path):
    before, after = pair(["no", "yes"])
    write_report(Store(str(tmp_path)), before, after)
    assert read_metrics(Store(str(tmp_path))) == (before, after)
    assert json.loads((tmp_path / "metrics.json").read_text())["after"]["rows"] == 400


def test_pictures_of_an_earlier_report_are_removed(tmp_path):
    store = Store(str(tmp_path))
    write_report(store, *pair(["no", "yes"]), curves=CURVES)
    metric = Regression()
    metric.add([1, 2, 3], [1, 2, 4])
    after = Evaluation.of(metric, name="after", task="similarity", model="m", rows=3)
    write_report(store, None, after)
    assert [path.name for path in tmp_path.glob("*.png")] == ["points.png"]
    page = check_page((tmp_path / "report.html").read_text())
    assert "spearman" in page.text("dt")
    assert "Predicted and true numbers" in page.text("h2")


def test_numbers_are_drawn_as_points_and_only_so_many():
    metric = Regression()
    metric.add(np.arange(4500), np.arange(4500) + 1)
    points = metric.tables().points
    assert 1000 < len(points) <= MOST_POINTS
    assert (points[0], points[-1][0] + 1) == ((0.0, 1.0), points[-1][1])
    few = Regression()
    few.add([1, 2], [3, 4])
    assert few.tables().points == [(1, 3), (2, 4)]


def test_the_main_figure_comes_first():
    metric = Regression()
    metric.add([1, 2, 3], [1, 2, 4])
    after = Evaluation.of(metric, name="after", task="t", model="m", rows=3, main="mse", more={"bleu": 0.5})
    page = check_page(html_page(None, after, draw(None, after, []), None))
    assert page.text("dt")[:2] == ["mse", "pearson"]
    only = Evaluation("after", "generation", "m", 3, {"bleu": 0.5, "chrf": 0.1}, main="chrf")
    assert check_page(html_page(None, only, {}, None)).text("dt") == ["chrf", "bleu"]


def graded(**more):
    rows = {"text": ["one", "two", "three", "four"], "label": ["a"] * 4, "after": ["b", "a", "a", "b"]}
    return pa.table({**rows, "after_score": [0.5, 1.0, 1.0, 0.0], **more})


def test_rows_with_scores_change_where_the_score_does():
    alone = find_changes(graded())
    assert alone.graded
    assert [row.text for row in alone.worse] == ["four", "one"]
    assert (alone.count_worse, alone.count_better) == (2, 0)
    both = find_changes(graded(before=["a", "a", "b", "b"], before_score=[0.75, 1.0, 0.0, 0.0]))
    assert [(row.text, row.before_probability, row.after_probability) for row in both.better] == [
        ("three", 0, 1)
    ]
    assert [row.text for row in both.worse] == ["one"]


def test_scores_are_called_scores_on_the_page():
    after = Evaluation("after", "answers", "m", 4, {"f1": 0.6}, main="f1")
    page = check_page(html_page(None, after, {}, find_changes(graded())))
    assert "score" in page.text("th")
    assert any("2 of 4 rows are not all right" in text for text in page.text("p"))


def test_no_text_of_the_data_is_code(tmp_path):
    before, after = pair([EVIL, "b"])
    evil = Evaluation(**{**vars(after), "name": EVIL, "model": EVIL, "task": EVIL})
    rows = predictions().set_column(0, "text", pa.array([EVIL.replace("\ud800", "")] * 5))
    rows = rows.set_column(1, "label", pa.array(["</td><img src=x onerror=alert(1)>"] * 5))
    write_report(Store(str(tmp_path)), before, evil, curves=[{"step": 1, EVIL: 1.0}], changed_rows=rows)
    text = (tmp_path / "report.html").read_text()
    page = check_page(text)
    assert "\x00" not in text
    assert any('<script>alert("x")</script>' in cell for cell in page.text("th"))


def test_many_labels(tmp_path):
    labels = [f"label {i} " + "long " * (i % 9) for i in range(120)]
    write_report(Store(str(tmp_path)), None, evaluate("after", labels, 0.9))
    page = check_page((tmp_path / "report.html").read_text())
    scrolled = {attributes.get("aria-label") for attributes in page.all("div")}
    assert "Confusion matrix, after: true labels in rows, predicted in columns" in scrolled
    picture = (tmp_path / "confusion.png").read_bytes()
    width, height = struct.unpack(">II", picture[16:24])
    # a label every 0.16 inches of 110 dots: 100 labels are shown
    assert min(width, height) > 100 * 0.16 * 110


def test_spans_have_no_matrix(tmp_path):
    metric = Spans(["person", "place"])
    metric.add(np.array([3, 1]), np.array([1, 0]), np.array([0, 2]))
    after = Evaluation.of(metric, name="after", task="entities", model="m", rows=10)
    write_report(Store(str(tmp_path)), None, after)
    page = check_page((tmp_path / "report.html").read_text())
    assert "micro avg" in page.text("th")
    assert [path.name for path in tmp_path.glob("*.png")] == ["labels.png"]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (evaluate("before", ["no", "yes"], 0.5, rows=7), "before was evaluated on 7 rows, after on 400"),
        (evaluate("before", ["no", "maybe"], 0.5), "different labels: maybe, yes"),
        (evaluate("before", ["yes", "no"], 0.5), "different labels: their order"),
    ],
)
def test_what_cannot_be_compared_is_refused(tmp_path, other, message):
    with pytest.raises(ValueError, match=message):
        write_report(Store(str(tmp_path)), other, evaluate("after", ["no", "yes"], 0.9))
    assert not list(tmp_path.iterdir())


def test_other_json_is_no_report(tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(ValueError, match="not written by a report"):
        read_metrics(Store(str(tmp_path)))


def test_the_most_confident_changes_come_first():
    found = find_changes(predictions())
    assert (found.count_better, found.count_worse) == (2, 1)
    assert [row.text[:5] for row in found.better] == ["one", "xxxxx"]
    assert [len(row.text) for row in found.better] == [3, 300]
    assert found.worse[0].text == "three"
    assert (found.worse[0].before, found.worse[0].after, found.worse[0].after_probability) == ("a", "b", 0.6)


def test_without_a_model_before_wrong_rows_are_shown():
    found = find_changes(predictions().drop_columns(["before", "before_probability"]))
    assert [row.text for row in found.worse] == ["four", "three"]
    assert found.better == []


def test_changes_of_numbers_and_of_lists():
    numbers = pa.table(
        {
            "text": ["a", "b", "c"],
            "label": [1.0, 2.0, 3.0],
            "before": [1.5, 2.0, 0.0],
            "after": [1.0, 4.0, 3.5],
        }
    )
    found = find_changes(numbers)
    assert [row.text for row in found.better] == ["c", "a"]
    assert [row.text for row in found.worse] == ["b"]
    lists = pa.table(
        {"text": ["a", "b"], "label": [["x", "y"], []], "before": [["x"], []], "after": [["y", "x"], ["y"]]}
    )
    found = find_changes(lists)
    assert [row.text for row in found.better] == ["a"]
    assert [(row.text, row.after) for row in found.worse] == [("b", "y")]


def test_at_most_fifty_rows_of_each():
    rows = 200
    table = pa.table(
        {
            "text": [str(i) for i in range(rows)],
            "label": [1] * rows,
            "after": [0] * rows,
            "after_probability": np.arange(rows) / rows,
        }
    )
    found = find_changes(table)
    assert [row.text for row in found.worse] == [str(i) for i in range(199, 149, -1)]
    assert found.count_worse == 200


def test_predictions_without_a_column():
    with pytest.raises(ValueError, match="no column 'after'"):
        find_changes(pa.table({"text": ["a"], "label": ["a"]}))


def test_a_drawing_does_not_depend_on_what_was_drawn_before():
    before, after = pair(["no", "yes"])
    first = plots.draw_confusion(after)
    plots.draw_labels(before, after)
    assert plots.draw_confusion(after) == first
    assert plots.draw_confusion(before) != first


def test_curves_that_end_alike_share_a_panel():
    rows = [
        {"step": 1, "train/loss": 1.0, "held_out/loss": 2.0},
        {"step": 2, "train/loss": float("nan"), "lr": 0.1},
    ]
    assert plots.curve_panels(rows) == {
        "loss": {"train/loss": [(1, 1.0)], "held_out/loss": [(1, 2.0)]},
        "lr": {"lr": [(2, 0.1)]},
    }
