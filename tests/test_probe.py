"""raybert probe on folders of vectors made on the spot: what it learns, what it writes, what it refuses."""

import datetime
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.preprocessing import StandardScaler

from raybert.config import ConfigError, load
from raybert.config.probing import ProbeConfig
from raybert.corpus.store import Store
from raybert.corpus.vectors import embedding_array, schema, to_parquet
from raybert.evaluate.linear import Linear, fit
from raybert.evaluate.report import read_metrics
from raybert.probe import main, probe, split
from tests.evaluate.pages import check_page
from tests.vector_folders import make_metadata

DIMENSION = 8


def clusters(rows, labels=3, seed=0, spread=1.0):
    """(vectors, numbers of labels): one centre a label, the same for every seed."""
    centres = 2 * np.random.default_rng(99).normal(size=(labels, DIMENSION))
    rng = np.random.default_rng(seed)
    numbers = rng.integers(0, labels, rows)
    return (centres[numbers] + spread * rng.normal(size=(rows, DIMENSION))).astype(np.float32), numbers


def write_folder(path, vectors, files=2, windows=False, metadata=None, **columns):
    """A folder as raybert embed writes it: data/*.parquet."""
    (path / "data").mkdir(parents=True)
    entry = make_metadata(vectors.shape[1], **{"normalized": False, **(metadata or {})})
    arrays = {
        name: values if isinstance(values, pa.Array) else pa.array(values) for name, values in columns.items()
    }
    form = schema({name: a.type for name, a in arrays.items()}, pa.string(), entry, chunked=windows)
    values = {
        "id": pa.array([f"row {i}" for i in range(len(vectors))]),
        **arrays,
        **(
            {"chunk": [0] * len(vectors), "chunk_start": [0] * len(vectors), "chunk_end": [9] * len(vectors)}
            if windows
            else {}
        ),
        "embedding": embedding_array(vectors, form.field("embedding").type),
        "num_tokens": [5] * len(vectors),
        "truncated": [False] * len(vectors),
    }
    table = pa.table({name: values[name] for name in form.names}, schema=form)
    step = -(-len(table) // files) or 1
    for number in range(files):
        data = to_parquet(table.slice(number * step, step))
        (path / "data" / f"part-{number}.parquet").write_bytes(data)
    return str(path)


def settings(path, tmp_path, **more):
    return {"data.path": path, "data.label": "label", "output.path": str(tmp_path / "report"), **more}


def test_labels_are_learnt_reported_and_kept(tmp_path, capsys):
    vectors, numbers = clusters(600, spread=2.5)
    names = np.array(["apple", "<b>pear</b>", "fig"])
    labels = [None if i % 50 == 0 else str(names[n]) for i, n in enumerate(numbers)]
    path = write_folder(tmp_path / "vectors", vectors, label=labels, text=[f"text {i}" for i in range(600)])
    assert main(load(ProbeConfig, settings=settings(path, tmp_path))) == 0
    out = capsys.readouterr().out
    assert "12 rows left out: their label is null" in out
    assert "trained on 470 rows, evaluated on 118" in out
    assert "weighted avg" in out
    report = tmp_path / "report"
    page = check_page((report / "report.html").read_text())
    assert any(text.startswith("text ") for text in page.text("th"))
    _, evaluation = read_metrics(Store(str(report)))
    assert 0.7 < evaluation.metrics["accuracy"] < 1
    assert evaluation.labels == ["<b>pear</b>", "apple", "fig"]
    assert evaluation.rows == 118
    assert not list(report.rglob("*.pkl"))


def test_the_kept_classifier_predicts_as_the_fitted_one(tmp_path):
    vectors, numbers = clusters(300)
    train = write_folder(tmp_path / "train", vectors, label=numbers)
    held, truth = clusters(100, seed=1)
    test = write_folder(tmp_path / "test", held, files=1, label=truth)
    found = probe(settings(train, tmp_path, **{"data.validation": test, "probe.c": 0.1}))
    model = Linear.load(Store(str(tmp_path / "report")))
    assert found.evaluation.metrics["accuracy"] == np.mean(model.predict(held) == truth)
    assert model.labels == ["0", "1", "2"]
    assert model.facts["c"] == 0.1
    assert model.facts["vectors"]["digest"] == "d" * 64
    scaler = StandardScaler().fit(vectors)
    reference = LogisticRegression(C=0.1, max_iter=1000).fit(scaler.transform(vectors), numbers)
    expected = reference.predict_proba(scaler.transform(held))
    assert model.probabilities(held) == pytest.approx(expected, abs=2e-3)


@pytest.mark.parametrize("labels", [2, 4])
@pytest.mark.parametrize("standardize", [True, False])
def test_the_fit_is_scikit_learns(labels, standardize):
    vectors, numbers = clusters(300, labels, spread=2.0)
    vectors = vectors * np.linspace(0.5, 1.5, DIMENSION, dtype=np.float32) + 1
    inputs = StandardScaler().fit_transform(vectors) if standardize else vectors
    reference = LogisticRegression(C=1.0, max_iter=5000, tol=1e-6).fit(inputs, numbers)
    names = [str(i) for i in range(labels)]
    found = fit(vectors.copy(), numbers, names, [1.0], standardize=standardize, seed=0)
    assert found.scores == {}
    assert found.model.probabilities(vectors) == pytest.approx(reference.predict_proba(inputs), abs=0.01)
    assert (found.model.predict(vectors) == reference.predict(inputs)).mean() > 0.99


def test_numbers_with_a_point_are_a_regression(tmp_path):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(400, DIMENSION)).astype(np.float32)
    values = vectors @ rng.normal(size=DIMENSION) + 0.1 * rng.normal(size=400)
    values[3] = np.nan
    path = write_folder(tmp_path / "vectors", vectors, label=values)
    found = probe(settings(path, tmp_path))
    assert found.left_out == 1
    assert found.evaluation.metrics["pearson"] > 0.98
    assert set(found.evaluation.metrics) == {"pearson", "spearman", "mse"}
    page = check_page((tmp_path / "report" / "report.html").read_text())
    assert "Largest errors" in page.text("h2")
    model = Linear.load(Store(str(tmp_path / "report")))
    assert model.labels is None
    keep = np.isfinite(values)
    keep[np.flatnonzero(keep)[split(None, 399, 0.2, 0)]] = False
    scaler = StandardScaler().fit(vectors[keep])
    ridge = Ridge(alpha=1 / found.fit.c).fit(scaler.transform(vectors[keep]), values[keep])
    assert model.predict(vectors) == pytest.approx(ridge.predict(scaler.transform(vectors)), abs=1e-3)


def test_the_strength_is_chosen_by_cross_validation():
    """Labels of noise: the strongest penalty is at least as good as any, and taken if equal."""
    vectors, _ = clusters(200)
    noise = np.random.default_rng(1).integers(0, 2, 200)
    weak = fit(vectors.copy(), noise, ["a", "b"], [1e-6, 1.0], standardize=True, seed=0)
    assert set(weak.scores) == {1e-6, 1.0}
    assert weak.scores[weak.c] == max(weak.scores.values())
    vectors, numbers = clusters(200, 2, spread=0.1)
    equal = fit(vectors, numbers, ["a", "b"], [0.1, 1.0, 10.0], standardize=True, seed=0)
    assert set(equal.scores.values()) == {1.0}
    assert equal.c == 0.1


def test_the_same_seed_writes_the_same_bytes(tmp_path):
    vectors, numbers = clusters(200, 2)
    path = write_folder(tmp_path / "vectors", vectors, label=numbers)
    files = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        probe(
            {
                **settings(path, tmp_path),
                "output.path": str(tmp_path / name),
                "probe.seed": seed,
                "probe.c": 1,
            }
        )
        files.append((tmp_path / name / "probe.npz").read_bytes())
    assert files[0] == files[1] != files[2]


def test_the_split_is_stratified_and_keeps_a_row_of_each_label():
    groups = np.repeat([0, 1, 2, 3], [1, 2, 97, 900])
    held = split(groups, 1000, 0.2, seed=3)
    assert np.array_equal(held, split(groups, 1000, 0.2, seed=3))
    assert not np.array_equal(held, split(groups, 1000, 0.2, seed=4))
    counts = np.bincount(groups[held], minlength=4)
    assert counts[0] == 0
    assert abs(counts - 0.2 * np.bincount(groups)).max() <= 1
    many = split(np.repeat(np.arange(50), 2), 100, 0.9, seed=0)
    assert np.array_equal(np.bincount(np.repeat(np.arange(50), 2)[~many]), np.ones(50))
    assert split(None, 10, 0.3, seed=0).sum() == 3


def test_labels_of_other_types(tmp_path):
    vectors, numbers = clusters(90, 2)
    days = pa.array([datetime.date(2026, 1, 1 + n) for n in numbers])
    path = write_folder(tmp_path / "vectors", vectors, flag=pa.array(numbers == 1), day=days)
    for label, names in (("flag", ["False", "True"]), ("day", ["2026-01-01", "2026-01-02"])):
        found = probe({**settings(path, tmp_path), "data.label": label, "probe.c": 1.0})
        assert found.evaluation.labels == names


def test_neither_torch_nor_ray_is_imported():
    names = [
        f"raybert.evaluate.{path.stem}"
        for path in (Path(__file__).parents[1] / "raybert" / "evaluate").glob("[a-z]*.py")
    ]
    assert len(names) > 5
    check = "import sys; sys.exit(bool({'torch', 'ray', 'transformers'} & set(sys.modules)))"
    code = f"import raybert.probe, {', '.join(names)}\n{check}"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def refused(match, path, tmp_path, **more):
    with pytest.raises(ValueError, match=match) as caught:
        probe(settings(path, tmp_path, **more))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "report").exists()


def test_what_is_no_folder_of_vectors(tmp_path):
    refused(r"data.path=.*nowhere holds no data/", str(tmp_path / "nowhere"), tmp_path)
    (tmp_path / "other" / "data").mkdir(parents=True)
    pq.write_table(pa.table({"label": [1]}), tmp_path / "other" / "data" / "a.parquet")
    refused("not written by raybert embed", str(tmp_path / "other"), tmp_path)


def test_labels_that_cannot_be_learnt(tmp_path):
    vectors, numbers = clusters(20, 2)
    lists = [[int(n)] for n in numbers]
    one, half = ["same"] * 20, [0.5] * 20
    columns = {"kind": one, "half": half, "none": pa.nulls(20, pa.string()), "lists": lists}
    columns["rare"] = ["a"] * 19 + ["b"]
    path = write_folder(tmp_path / "vectors", vectors, **columns)
    refused("has no column 'label' .* it has id, kind, half, none, lists, rare; ", path, tmp_path)
    refused("all rows have the label 'same'", path, tmp_path, **{"data.label": "kind"})
    refused("all rows have the value 0.5", path, tmp_path, **{"data.label": "half"})
    refused("no rows whose 'none' is not null", path, tmp_path, **{"data.label": "none"})
    refused("lists .* is list", path, tmp_path, **{"data.label": "lists"})
    refused("has no column 'embedding'", path, tmp_path, **{"data.label": "embedding"})
    refused("20 rows with 20 labels leaves none", path, tmp_path, **{"data.label": "id"})
    refused("two labels with 2 training rows", path, tmp_path, **{"data.label": "rare"})


def test_windows_cannot_be_probed(tmp_path):
    vectors, numbers = clusters(20, 2)
    path = write_folder(tmp_path / "vectors", vectors, windows=True, label=numbers)
    refused("chunk.combine=mean", path, tmp_path)


def test_a_validation_folder_must_fit(tmp_path):
    vectors, numbers = clusters(40, 2)
    path = write_folder(tmp_path / "a", vectors, label=numbers)
    other = write_folder(tmp_path / "b", vectors, metadata={"digest": "e" * 64}, label=numbers)
    refused("data.validation was embedded with digest='eee", path, tmp_path, **{"data.validation": other})
    strange = write_folder(tmp_path / "c", vectors, label=numbers + np.arange(40) // 20)
    refused("labels that data.path lacks: 2", path, tmp_path, **{"data.validation": strange})
    text = write_folder(tmp_path / "d", vectors, label=[str(n) for n in numbers])
    refused("is int64 in data.path, string in", path, tmp_path, **{"data.validation": text})
    refused("data.validation=.* holds no data", path, tmp_path, **{"data.validation": str(tmp_path / "no")})


def test_files_of_other_runs_and_broken_vectors(tmp_path):
    vectors, numbers = clusters(40, 2)
    path = write_folder(tmp_path / "a", vectors, label=numbers)
    write_folder(tmp_path / "b", vectors, metadata={"pooling": "cls"}, label=numbers)
    (tmp_path / "b" / "data" / "part-0.parquet").rename(tmp_path / "a" / "data" / "x.parquet")
    refused(r"x.parquet has pooling=cls, other files of the folder have mean", path, tmp_path)
    vectors[7, 3] = np.nan
    path = write_folder(tmp_path / "c", vectors, label=numbers)
    refused("part-0.parquet holds vectors with numbers that are not finite", path, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probe.c": 0}, "probe.c=0"),
        ({"probe.c": []}, "at least one number"),
        ({"data.share": 1}, "data.share=1"),
        ({"data.lable": "x"}, "did you mean 'data.label'"),
        ({"data.label": ""}, "data.label is missing"),
    ],
)
def test_settings_that_cannot_be_used(tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        probe({**settings("x", tmp_path), **change})


def test_quantised_vectors_are_decoded_each_folder_by_its_own_scale(tmp_path):
    paths, scales = [], []
    for name, seed, factor in (("a", 0, 1.0), ("b", 1, 3.0)):
        vectors, numbers = clusters(200, 2, seed=seed)
        scales.append(factor * float(np.abs(vectors).max()) / 127)
        stored = np.round(vectors / scales[-1]).astype(np.int8)
        entry = {"stored_dtype": "int8", "scale": scales[-1]}
        paths.append(write_folder(tmp_path / name, stored, metadata=entry, label=numbers))
    more = {"data.validation": paths[1], "probe.c": 1.0, "probe.standardize": False}
    found = probe(settings(paths[0], tmp_path, **more))
    assert found.evaluation.metrics["accuracy"] > 0.9
    # wrongly scaled, probabilities would be too low or too high
    assert found.evaluation.metrics["ece"] < 0.05
    assert json.loads((tmp_path / "report" / "probe.json").read_text())["vectors"]["scale"] == scales[0]
