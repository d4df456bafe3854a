"""The bulk job with a real (tiny) model on a real Ray."""

import gzip
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybert import Encoder, embed
from raybert.corpus.vectors import embedding_matrix
from raybert.encoder.quantizing import dequantize
from tests.conftest import sentences

pytestmark = pytest.mark.usefixtures("ray_local")


def write(path, texts, first=0, **columns):
    path.parent.mkdir(parents=True, exist_ok=True)
    ids = [f"id{i}" for i in range(first, first + len(texts))]
    pq.write_table(pa.table({"id": ids, "text": texts, "n": list(range(len(texts))), **columns}), path)


@pytest.fixture
def job(tmp_path, tiny):
    """Run embed on tmp_path/in -> tmp_path/out with small shards; keywords are settings with __ for dots."""

    def go(**settings):
        keys = {key.replace("__", "."): value for key, value in settings.items()}
        defaults = {
            "model.name": tiny,
            "data.path": str(tmp_path / "in"),
            "output.path": str(tmp_path / "out"),
            "output.rows_per_shard": 50,
            "model.dtype": "float32",
            "workers": {"count": 1, "cpus": 1},
        }
        return embed({**defaults, **keys})

    return go


def output(tmp_path):
    return pq.read_table(tmp_path / "out/data")


def hashes(tmp_path):
    import hashlib

    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in (tmp_path / "out/data").iterdir()}


def test_every_row_once_with_the_encoders_own_vectors(tmp_path, tiny, job):
    texts = sentences(120)
    write(tmp_path / "in/a.parquet", texts)
    report = job(data__id="id", data__columns=["n", "text"])
    table = output(tmp_path)
    assert table.column_names == ["id", "n", "text", "embedding", "num_tokens", "truncated"]
    assert table["id"].to_pylist() == [f"id{i}" for i in range(120)]
    assert table["text"].to_pylist() == texts
    encoder = Encoder.load(tiny, dtype="float32", threads=1)
    assert np.abs(embedding_matrix(table["embedding"]) - encoder.encode(texts)).max() < 1e-5
    tokenized = encoder.tokenizer()(texts)
    assert table["num_tokens"].to_pylist() == tokenized.lengths.tolist()
    assert table["truncated"].to_pylist() == tokenized.truncated.tolist()
    assert (report.rows, report.embedded, report.rejected, report.shards) == (120, 120, 0, 3)
    assert report.tokens == tokenized.lengths.sum()
    assert report.truncated == tokenized.truncated.sum()


def test_the_folder_says_how_it_was_made(tmp_path, tiny, job):
    write(tmp_path / "in/a.parquet", sentences(5))
    job()
    (file,) = (tmp_path / "out/data").iterdir()
    metadata = json.loads(pq.read_schema(file).metadata[b"raybert"])
    assert metadata["digest"] == Encoder.load(tiny).digest
    assert {key: metadata[key] for key in ("dimension", "pooling", "normalized", "dtype", "stored_dtype", "model")} == {
        "dimension": 32, "pooling": "mean", "normalized": True, "dtype": "float32", "stored_dtype": "float32", "model": tiny,
    }  # fmt: skip
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"README.md", "data", "_raybert"}
    assert json.loads((tmp_path / "out/_raybert/report.json").read_text())["embedded"] == 5
    assert list((tmp_path / "out/_raybert/tmp").iterdir()) == []


def test_every_reader_opens_the_folder(tmp_path, job):
    import datasets
    import duckdb
    import pandas
    import polars
    import ray

    write(tmp_path / "in/a.parquet", sentences(60))
    job(data__id="id")
    data = str(tmp_path / "out/data")
    first = embedding_matrix(output(tmp_path)["embedding"])[0].tolist()
    assert pandas.read_parquet(data)["embedding"][0].tolist() == first
    frame = polars.read_parquet(data)
    assert frame.schema["embedding"] == polars.Array(polars.Float32, 32)
    assert frame["embedding"][0].to_list() == first
    (row,) = duckdb.sql(
        f"select embedding, count(*) over () from '{data}/*.parquet' order by id limit 1"
    ).fetchall()
    assert list(row[0]) == first
    assert row[1] == 60
    cache = str(tmp_path / "cache")
    for loaded in (
        datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=cache),
        datasets.load_dataset("parquet", data_files=f"{data}/*.parquet", split="train", cache_dir=cache),
    ):
        assert loaded.num_rows == 60
        assert loaded[0]["embedding"] == first
    assert ray.data.read_parquet(data).count() == 60


@pytest.mark.slow
def test_pandas_and_datasets_notes_of_the_input_are_carried(tmp_path, job):
    import datasets
    import pandas

    (tmp_path / "in").mkdir()
    frame = pandas.DataFrame({"text": sentences(4), "label": ["a", "b", "a", "b"]}, index=[5, 6, 7, 8])
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    table = pa.Table.from_pandas(frame)
    labelled = datasets.Dataset.from_dict({"text": sentences(4), "label": [0, 1, 0, 1]}, features=features)
    metadata = {**table.schema.metadata, **labelled.data.schema.metadata}
    pq.write_table(labelled.data.table.replace_schema_metadata(metadata), tmp_path / "in/a.parquet")
    job(data__columns=["label"])
    kept = pq.read_schema(next((tmp_path / "out/data").iterdir())).metadata
    assert kept[b"pandas"] == metadata[b"pandas"]
    assert kept[b"huggingface"] == metadata[b"huggingface"]
    loaded = datasets.load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert loaded.num_rows == 4
    assert len(pandas.read_parquet(tmp_path / "out/data")) == 4


def test_rerun_does_nothing_and_an_interrupted_job_ends_byte_identical(tmp_path, job):
    write(tmp_path / "in/a.parquet", sentences(300))
    job()
    whole = hashes(tmp_path)
    assert job().run["tokens"] == 0
    assert hashes(tmp_path) == whole
    # what a crash leaves: files without a record, and shards that are not there; another number of workers goes on
    names = sorted(whole)
    (tmp_path / "out/_raybert/commits" / names[0].replace(".parquet", ".json")).unlink()
    (tmp_path / "out/data" / names[1]).unlink()
    (tmp_path / "out/data" / names[2]).write_bytes(b"half")
    (tmp_path / "out/_raybert/commits" / names[2].replace(".parquet", ".json")).unlink()
    report = job(workers={"count": 2, "cpus": 1})
    assert hashes(tmp_path) == whole
    assert report.run["tokens"] > 0


def test_growth_change_and_replacement(tmp_path, job):
    write(tmp_path / "in/a.parquet", sentences(60))
    job()
    before = hashes(tmp_path)
    write(tmp_path / "in/b.parquet", sentences(30, seed=1), first=60)
    write(tmp_path / "in/c.parquet", sentences(20, seed=2), first=90)
    report = job()
    after = hashes(tmp_path)
    assert {name: after[name] for name in before} == before
    assert len(after) == len(before) + 2
    assert report.rows == 110
    write(tmp_path / "in/b.parquet", sentences(40, seed=3), first=60)
    with pytest.raises(ValueError, match=r"changed.*b\.parquet"):
        job()
    assert hashes(tmp_path) == after
    assert job(output__on_change="replace").embedded == 120
    assert {name: hashes(tmp_path)[name] for name in before} == before
    assert output(tmp_path).num_rows == 120
    (tmp_path / "in/c.parquet").unlink()
    with pytest.raises(ValueError, match=r"vanished.*c\.parquet"):
        job()
    job(output__on_change="replace")
    assert output(tmp_path).num_rows == 100
    write(tmp_path / "in/c.parquet", sentences(20, seed=2), first=90)  # and back again
    assert job().embedded == 120
    assert output(tmp_path).num_rows == 120


def test_other_settings_are_refused_and_named(tmp_path, job, tmp_path_factory):
    from tests.encoder.tiny import tiny_model

    write(tmp_path / "in/a.parquet", sentences(10))
    job()
    with pytest.raises(ValueError, match=r"model.pooling='cls' \(was 'auto'\)"):
        job(model__pooling="cls")
    with pytest.raises(ValueError, match=r"output.rows_per_shard=51 \(was 50\)"):
        job(output__rows_per_shard=51)
    job(model__pooling="mean", model__normalize=True)  # what auto became: no change
    other = str(tiny_model(tmp_path_factory.mktemp("other"), seed=7))
    with pytest.raises(ValueError, match="has others"):
        job(model__name=other)


@pytest.mark.slow
def test_weights_swapped_in_place_are_noticed_by_the_worker(tmp_path, tmp_path_factory, job):
    from tests.encoder.tiny import tiny_model

    model = tmp_path_factory.mktemp("swapped")
    write(tmp_path / "in/a.parquet", sentences(10))
    job(model__name=str(tiny_model(model)))
    tiny_model(model, seed=9)
    write(tmp_path / "in/b.parquet", sentences(10))
    with pytest.raises(RuntimeError, match="not those of the plan"):
        job(model__name=str(model))
    assert output(tmp_path).num_rows == 10


@pytest.mark.parametrize(
    "dtype",
    ["int8", pytest.param("float16", marks=pytest.mark.slow), pytest.param("binary", marks=pytest.mark.slow)],
)
def test_quantised_output(tmp_path, tiny, job, dtype):
    texts = sentences(80)
    write(tmp_path / "in/a.parquet", texts)
    job(output__dtype=dtype)
    table = output(tmp_path)
    metadata = json.loads(table.schema.metadata[b"raybert"])
    found = dequantize(embedding_matrix(table["embedding"]), dtype, metadata["scale"])
    exact = Encoder.load(tiny, dtype="float32").encode(texts)
    if dtype == "int8":  # a model may move
        import shutil

        job(output__dtype=dtype, model__name=str(shutil.copytree(tiny, tmp_path / "moved")))
    if dtype == "binary":
        assert ((found > 0) == (exact > 0)).mean() > 0.999
        return
    cosines = (found * exact).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(exact, axis=1)
    assert cosines.min() > (0.9999 if dtype == "float16" else 0.999)
    assert np.abs(found - exact).max() < (1e-3 if dtype == "float16" else metadata["scale"] * 1.01)


def test_long_documents_in_windows_and_combined(tmp_path, tiny, job):
    texts = ["short one", " ".join(sentences(30)), "", "another short one"]
    write(tmp_path / "in/a.parquet", texts)
    report = job(chunk={"size": 20, "overlap": 5}, data__id="id")
    table = output(tmp_path)
    assert (report.rows, report.embedded, report.rejected) == (4, 3, 1)
    assert report.vectors == table.num_rows > 10
    encoder = Encoder.load(tiny, dtype="float32")
    for row in table.to_pylist():
        text = texts[int(row["id"][2:])][row["chunk_start"] : row["chunk_end"]]
        assert np.abs(encoder.encode(text)[0] - row["embedding"]).max() < 1e-5
        assert not row["truncated"]
    long = [row for row in table.to_pylist() if row["id"] == "id1"]
    assert [row["chunk"] for row in long] == list(range(len(long)))
    assert (long[0]["chunk_start"], long[-1]["chunk_end"]) == (0, len(texts[1]))

    job(
        chunk={"size": 20, "overlap": 5, "combine": "mean"}, data__id="id", output__path=str(tmp_path / "one")
    )
    one = pq.read_table(tmp_path / "one/data")
    assert one["id"].to_pylist() == ["id0", "id1", "id3"]
    mean = np.average([row["embedding"] for row in long], axis=0, weights=[row["num_tokens"] for row in long])
    expected = mean / np.linalg.norm(mean)
    assert np.abs(embedding_matrix(one["embedding"])[1] - expected).max() < 1e-5


def test_template_prompt_dimensions_and_limit(tmp_path, tiny, job):
    (tmp_path / "in").mkdir()
    rows = [{"title": f"title {i}", "body": f"body {i}" if i % 2 else None} for i in range(20)]
    (tmp_path / "in/a.jsonl").write_text("\n".join(map(json.dumps, rows)))
    job(data__template="{title}: {body}", model__prompt="query: ", model__dimensions=8, data__limit=7)
    found = embedding_matrix(output(tmp_path)["embedding"])
    texts = [f"title {i}: " + (f"body {i}" if i % 2 else "") for i in range(7)]
    exact = Encoder.load(tiny, dtype="float32", prompt="query: ", dimensions=8).encode(texts)
    assert found.shape == (7, 8)
    assert np.abs(found - exact).max() < 1e-5


def test_equal_texts_are_encoded_once(tmp_path, job):
    write(tmp_path / "in/a.parquet", ["the same text"] * 40 + ["another"] * 10)
    report = job()
    assert report.embedded == 50
    assert report.run["encoded_tokens"] < report.tokens / 10
    vectors = embedding_matrix(output(tmp_path)["embedding"])
    assert (vectors[:40] == vectors[0]).all()


def test_duplicate_ids_are_reported(tmp_path, job):
    write(tmp_path / "in/a.parquet", sentences(10))
    write(tmp_path / "in/b.parquet", sentences(5, seed=1), first=8)
    report = job(data__id="id")
    assert report.duplicate_ids == 2
    assert set(report.duplicate_examples) == {"id8", "id9"}
    assert "2 ids occur more than once" in str(report)


BAD_JSONL = [
    b'{"id": "ok", "text": "a good text"}',
    b'{"id": "null", "text": null}',
    b'{"id": "absent"}',
    b'{"id": "empty", "text": ""}',
    b'{"id": "space", "text": " \\n\\t "}',
    b'{"id": "number", "text": 7}',
    b'{"id": "list", "text": ["a"]}',
    b'{"id": "utf8", "text": "caf\xe9"}',
    b'{"id": "surrogate", "text": "\\ud800"}',
    b'{"id": "long", "text": "' + b"x" * 2000 + b'"}',
    b"{broken json",
    b"[1, 2]",
    b'{"text": "no id"}',
]


def test_hostile_rows_in_every_format_are_accounted_for(tmp_path, job):
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(b"\n".join(BAD_JSONL))
    (folder / "b.jsonl.gz").write_bytes(gzip.compress(b"\n".join(BAD_JSONL)))
    (folder / "c.csv").write_bytes(
        b'id,text\nok,good\nempty,\nspace,"  "\nutf8,caf\xe9\nshort\nlong,' + b"x" * 2000 + b"\n"
    )
    (folder / "d.tsv").write_bytes(b"id\ttext\nok\tgood\nempty\t\nutf8\tcaf\xe9\n")
    binary = pa.array([b"good", b"caf\xe9", None, b""], pa.binary())
    pq.write_table(pa.table({"id": ["ok", "utf8", "null", "empty"], "text": binary}), folder / "e.parquet")
    with pa.OSFile(str(folder / "f.arrow"), "wb") as sink:
        table = pa.table({"id": ["ok", None], "text": ["good", "id is null"]})
        with pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    report = job(data__id="id", data__max_chars=1000)
    assert report.rows == 13 + 13 + 6 + 3 + 4 + 2
    assert report.embedded == 6
    assert set(output(tmp_path)["id"].to_pylist()) == {"ok"}
    rejects = pq.read_table(tmp_path / "out/_rejects")
    assert rejects.num_rows == report.rejected == report.rows - 6
    assert sum(report.reasons.values()) == report.rejected
    why = {(row["source"].rpartition("/")[2], row["row"]): row["reason"] for row in rejects.to_pylist()}
    for file in ("a.jsonl", "b.jsonl.gz"):
        reasons = [why[file, i] for i in range(1, 13)]
        for reason, part in zip(
            reasons,
            ["null", "null", "empty", "whitespace", "not text: int", "not text: list", "UTF-8", "UTF-8", "max_chars",
             "invalid JSON", "not a JSON object", "data.id"],
            strict=True,
        ):  # fmt: skip
            assert part in reason
    assert rejects.filter(pa.compute.equal(rejects["reason"], "whitespace only")).num_rows == 3


def test_int8_is_calibrated_on_texts_wherever_they_are(tmp_path, job):
    write(tmp_path / "in/a.parquet", [None] * 100 + sentences(20))
    job(output__dtype="int8")
    assert np.abs(embedding_matrix(output(tmp_path)["embedding"])).max() > 60


def test_windows_that_the_model_would_cut_are_refused(tmp_path, job):
    write(tmp_path / "in/a.parquet", sentences(5))
    with pytest.raises(ValueError, match=r"chunk.size=400 does not fit.*use at most 46"):
        job(chunk={"size": 400})
    with pytest.raises(ValueError, match=r"model.prompt leaves no room"):
        job(model__prompt="word " * 100)


def test_a_changed_tokenizer_in_the_folder_is_noticed(tmp_path, job):
    write(tmp_path / "in/a.parquet", sentences(5))
    job()
    (file,) = (tmp_path / "out/_raybert").glob("tokenizer-*.json")
    file.write_text(file.read_text().replace("the", "eht"))
    write(tmp_path / "in/b.parquet", sentences(5, seed=1))
    with pytest.raises(ValueError, match="was changed"):
        job()


def test_an_empty_corpus_is_said_so(tmp_path, job):
    write(tmp_path / "in/a.parquet", pa.array([], pa.string()))
    with pytest.raises(ValueError, match="holds no rows"):
        job()
    assert not (tmp_path / "out").exists()


def test_a_wrong_column_stops_the_job_at_max_rejects(tmp_path, job):
    write(tmp_path / "in/a.parquet", sentences(500))
    with pytest.raises(RuntimeError, match=r"rows rejected.*not text.*output.max_rejects=60.*data.text"):
        job(data__text="n", output__max_rejects=60)
    with pytest.raises(RuntimeError, match=r"output.max_rejects=0.1"):
        job(data__text="n", output__max_rejects=0.1)
    with pytest.raises(RuntimeError, match=r"output.max_rejects=499"):  # also when all is done already
        job(data__text="n", output__max_rejects=499)


@pytest.mark.slow
def test_a_model_that_gives_nan_rejects_rows_not_the_job(tmp_path, tiny, tmp_path_factory, job):
    import shutil

    from safetensors.numpy import load_file, save_file

    model = tmp_path_factory.mktemp("nan") / "model"
    shutil.copytree(tiny, model)
    weights = load_file(model / "model.safetensors")
    name = next(key for key in weights if "word_embeddings" in key)
    word = Encoder.load(tiny).tokenizer()(["fox"]).values[1]
    weights[name][word] = np.nan
    save_file(weights, model / "model.safetensors", metadata={"format": "pt"})
    write(tmp_path / "in/a.parquet", ["a good text", "the fox", "another good text"])
    report = job(model__name=str(model))
    assert (report.embedded, report.rejected) == (2, 1)
    assert report.reasons == {"the model's vector is not finite": 1}


def test_dry_run_estimates_and_writes_nothing(tmp_path, job):
    texts = sentences(400)
    write(tmp_path / "in/a.parquet", texts)
    estimate = job(dry_run=True)
    assert not (tmp_path / "out").exists()
    assert (estimate.rows, estimate.shards, estimate.pending_rows) == (400, 8, 400)
    assert estimate.tokens_per_second > 0
    real = job().tokens
    assert abs(estimate.tokens - real) / real < 0.2
    assert job(dry_run=True).pending_rows == 0


def test_what_could_only_hang_is_refused(tmp_path, job):
    write(tmp_path / "in/a.parquet", sentences(10))
    with pytest.raises(ValueError, match=r"workers.count=64 .* do not fit: the cluster has \d+ CPUs"):
        job(workers={"count": 64, "cpus": 1})


def test_a_model_that_is_not_there_is_one_line(tmp_path, job):
    write(tmp_path / "in/a.parquet", sentences(10))
    with pytest.raises(ValueError, match=r"model.name 'no/such-model'") as error:
        job(model__name="no/such-model")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_embed_dataset_is_a_lazy_step_of_a_pipeline(tiny):
    import ray.data

    from raybert import embed_dataset

    texts = [*sentences(50), None, ""]
    ds = ray.data.from_arrow(pa.table({"key": list(range(52)), "text": texts}))
    out = embed_dataset(
        ds, {"model.name": tiny, "model.dtype": "float32", "workers": {"count": 1, "cpus": 1}}
    )
    rows = sorted(out.take_all(), key=lambda row: row["key"])
    exact = Encoder.load(tiny, dtype="float32").encode(texts[:50])
    assert np.abs(np.stack([row["embedding"] for row in rows[:50]]) - exact).max() < 1e-5
    assert [row["reject_reason"] for row in rows[50:]] == ["null", "empty"]
    assert rows[50]["embedding"] is None
