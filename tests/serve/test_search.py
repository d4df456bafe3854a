"""POST /search: the same hits as `raybert search`, and as brute force; filters, prompts, bad requests, foreign folders."""

import asyncio
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import raybert.serve.search as serving
from raybert.config import load
from raybert.config.serving import ServedModelSettings
from raybert.corpus.filters import parse_filter
from raybert.corpus.nearest import VectorFolder, prepare_queries, read_vectors, scan
from raybert.search import search
from raybert.serve.loading import load_engine, load_index
from raybert.serve.metrics import ModelMetrics
from raybert.serve.model import Limits, ServedModel
from raybert.serve.search import SearchIndex
from tests.conftest import raybert, sentences
from tests.encoder.tiny import tiny_model
from tests.serve.conftest import client, run
from tests.vector_folders import make_folder

TEXTS = sentences(240, seed=4)
QUERY = "a quick fox reads vectors"


def folder_of(path: Path, encoder: Any, dtype: str = "float32", **metadata: Any) -> str:
    """What `raybert embed` writes of TEXTS, 60 rows a file, with two kept columns."""
    facts = {
        key: getattr(encoder, key) for key in ("digest", "pooling", "layers", "normalized", "max_length")
    }
    prompt = metadata.pop("prompt", encoder.prompt)
    vectors = encoder.encode(TEXTS, prompt=prompt)
    kept = {"text": {"a": TEXTS}, "year": {"a": [2000 + i % 7 for i in range(len(TEXTS))]}}
    types = {"text": pa.string(), "year": pa.int64()}
    metadata = {**facts, "model": encoder.name, "prompt": prompt, **metadata}
    make_folder(path, {"a": vectors}, dtype=dtype, rows_per_shard=60, kept=kept, types=types, **metadata)
    return str(path)


@pytest.fixture(scope="module")
def folder(engine, tmp_path_factory) -> str:
    return folder_of(tmp_path_factory.mktemp("index") / "out", engine.encoder)


@pytest.fixture
def searching(engine, folder):
    """Makes a model with an index."""
    made = []

    def make(path: str = folder, prompt: str | None = None, **limits: Any) -> ServedModel:
        index = SearchIndex(path, engine.encoder, prompt)
        made.append(ServedModel("tiny", engine, Limits(**limits), ModelMetrics("tiny"), index))
        return made[-1]

    yield make
    for model in made:
        model.close()


def ask(model: ServedModel, /, **body: Any) -> Any:
    async def asking() -> Any:
        async with client(model) as http:
            return await http.post("/search", json=body)

    return run(asking())


def brute_force(encoder: Any, query: str, k: int, prompt: str = "") -> tuple[list[str], np.ndarray]:
    scores = (
        encoder.encode(TEXTS, prompt=prompt).astype(np.float64) @ encoder.encode([query], prompt=prompt)[0]
    )
    order = np.argsort(-scores, kind="stable")[:k]
    return [TEXTS[i] for i in order], scores[order]


@pytest.mark.parametrize("held", [True, False])
def test_hits_are_those_of_brute_force(engine, searching, monkeypatch, held):
    monkeypatch.setattr(serving, "_HELD_BYTES", 512 << 20 if held else 0)
    model = searching()
    assert (model.index._read is read_vectors) != held
    reply = ask(model, query=QUERY, k=5)
    assert reply.status_code == 200
    hits = reply.json()["hits"]
    texts, scores = brute_force(engine.encoder, QUERY, 5)
    assert [hit["row"]["text"] for hit in hits] == texts
    np.testing.assert_allclose([hit["score"] for hit in hits], scores, atol=1e-6)
    assert hits[0]["row"].keys() == {"id", "text", "year"}
    assert int(reply.headers["x-search-time"]) >= 0
    assert int(reply.headers["x-compute-tokens"]) > 0


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "binary"])
@pytest.mark.parametrize("where", [None, "year >= 2003 and year != 2005"])
def test_vectors_in_memory_give_the_hits_of_those_in_files(engine, tmp_path, dtype, where):
    folder = VectorFolder.open(folder_of(tmp_path / "out", engine.encoder, dtype))
    parsed = None if where is None else parse_filter(where, folder.filterable)
    queries = prepare_queries(engine.encoder.encode([QUERY, "dog"]), folder.metadata)
    asked = (folder, list(enumerate(folder.sizes)), queries, 50, parsed)
    of_files = scan(*asked).columns()
    assert len(of_files[0]) == 100
    for held, streamed in zip(scan(*asked, serving._Held(folder)).columns(), of_files, strict=True):
        np.testing.assert_array_equal(held, streamed)


@pytest.mark.slow
def test_hits_are_those_of_raybert_search(engine, searching, tmp_path, ray_local):
    for dtype in ("float32", "float16", "int8", "binary"):
        path = folder_of(tmp_path / dtype, engine.encoder, dtype)
        model = searching(path)
        for where in (None, "year >= 2003 and year != 2005"):
            asked = {"data.path": path, "search.k": 100, "search.filter": where}
            (expected,) = search({**asked, "search.query": QUERY})
            hits = ask(model, query=QUERY, k=100, filter=where).json()["hits"]
            assert len(hits) == 100
            assert [hit["row"] for hit in hits] == [{"id": hit.id, **hit.columns} for hit in expected]
            np.testing.assert_allclose(
                [hit["score"] for hit in hits], [hit.score for hit in expected], atol=1e-6
            )


def test_a_query_gets_the_prompt_of_the_rows(engine, searching, tmp_path):
    model = searching(folder_of(tmp_path / "out", engine.encoder, prompt="the quick "))
    assert model.index.prompt == "the quick "
    hits = ask(model, query=QUERY, k=5).json()["hits"]
    assert [hit["row"]["text"] for hit in hits] == brute_force(engine.encoder, QUERY, 5, "the quick ")[0]


def test_a_prompt_of_the_settings_goes_first(tmp_path):
    name = str(tiny_model(tmp_path / "model", prompts={"query": "fox: ", "passage": "dog: "}))
    settings = {"model.name": name, "model.dtype": "float32", "workers.cpus": 1, "model.prompt_name": "query"}
    config = load(ServedModelSettings, settings=settings)
    engine = load_engine(config)
    path = folder_of(tmp_path / "out", engine.encoder, prompt="dog: ")
    index = load_index(path, config, engine)
    plain = load_index(path, config.model_copy(update={"model": load(ServedModelSettings).model}), engine)
    assert (index.prompt, plain.prompt) == ("fox: ", "dog: ")
    model = ServedModel("tiny", engine, Limits(), ModelMetrics("tiny"), plain)
    named = ServedModel("tiny", engine, Limits(), ModelMetrics("tiny"), index)
    body = {"query": QUERY, "k": 3}
    by_name, by_default = ask(model, **body, prompt_name="query").json(), ask(named, **body).json()
    by_model = ask(model, **{**body, "model": "tiny:query"}).json()
    assert by_name == by_default == by_model != ask(model, **body).json()
    model.close()
    named.close()


BAD = [
    ({}, 422, "query: field required"),
    ({"query": 1}, 422, "query: input should be a valid string"),
    ({"query": " "}, 400, "`query` cannot be empty"),
    ({"query": "a", "k": 0}, 422, "k: input should be greater than or equal to 1"),
    ({"query": "a", "k": 101}, 422, "k: input should be less than or equal to 100"),
    ({"query": "a", "k": "3"}, 422, "k: input should be a valid integer"),
    ({"query": "a", "filter": ""}, 422, "filter='': expected a column"),
    (
        {"query": "a", "filter": "yaer == 1"},
        422,
        "filter: there is no column 'yaer'; there are id, text, year",
    ),
    ({"query": "a", "filter": "year = 1"}, 422, "filter='year = 1': cannot read"),
    ({"query": "a", "prompt_name": "x"}, 422, "prompt_name 'x' is not a prompt of the model"),
    ({"query": "a " * 100}, 422, "query has more than 48 tokens"),
]


def test_bad_requests_name_the_field(searching):
    model = searching()

    async def asking() -> list[Any]:
        async with client(model) as http:
            return [await http.post("/search", json=body) for body, _, _ in BAD]

    for reply, (body, status, message) in zip(run(asking()), BAD, strict=True):
        assert (reply.status_code, message in reply.json()["error"]) == (status, True), (body, reply.text)
        assert reply.json().keys() == {"error", "error_type"}
    assert ask(model, query="a " * 100, truncate=True).status_code == 200


def test_without_an_index_there_is_no_search(served, searching):
    async def infos() -> tuple[Any, Any, Any]:
        async with client(served()) as plain, client(searching()) as http:
            refused = await plain.post("/search", json={"query": "a"})
            return refused, (await plain.get("/info")).json(), (await http.get("/info")).json()

    refused, plain, info = run(infos())
    assert refused.status_code == 404
    assert "does not answer /search" in refused.json()["error"]
    assert "search" not in plain
    assert info["search"] == {
        "rows": len(TEXTS),
        "columns": ["id", "text", "year", "num_tokens", "truncated"],
    }


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        ({"digest": "e" * 64}, "with digest=eeeeeeeeeeee, the served model has "),
        ({"pooling": "cls"}, "with pooling=cls, the served model has mean"),
        ({"normalized": False}, "with normalized=False, the served model has True"),
        ({"layers": "sum:last2"}, "with layers=sum:last2, the served model has last"),
    ],
)
def test_folders_of_another_model_are_refused(engine, tmp_path, metadata, message):
    path = folder_of(tmp_path / "out", engine.encoder, **metadata)
    with pytest.raises(ValueError, match=r"^serve\.index=") as error:
        SearchIndex(path, engine.encoder)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_folders_that_are_none_are_refused(engine, folder, tmp_path):
    with pytest.raises(ValueError, match=r"^serve\.index=.* holds no data/\*\.parquet"):
        SearchIndex(str(tmp_path), engine.encoder)
    config = load(ServedModelSettings)
    assert load_index(None, config, engine) is None
    with pytest.raises(ValueError, match=r"needs a model that makes vectors"):
        load_index(folder, config, object())


def test_the_command_refuses_before_ray_is_started(tiny, engine, tmp_path):
    folder_of(tmp_path / "out", engine.encoder, digest="e" * 64)
    done = raybert("serve", f"model.name={tiny}", "port=0", f"serve.index={tmp_path}/out", check=False)
    assert done.returncode == 2
    assert "out was made with digest=eeeeeeeeeeee, the served model has" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_file_that_went_away_is_an_error_of_the_server(engine, searching, tmp_path):
    path = folder_of(tmp_path / "out", engine.encoder)
    model = searching(path)
    for file in (Path(path) / "data").iterdir():
        file.unlink()
    reply = ask(model, query=QUERY)
    assert reply.status_code == 424
    assert reply.json() == {
        "error": "the index cannot be read; see the log of the server",
        "error_type": "Backend",
    }


def test_a_late_search_ends_and_leaves_the_thread(searching, monkeypatch):
    model = searching(deadline=0.3)
    inner, batches, go = model.index._read, [], threading.Event()

    def slow(*arguments: Any) -> Any:
        for batch in inner(*arguments):
            batches.append(1)
            go.wait(5)
            yield batch

    monkeypatch.setattr(model.index, "_read", slow)

    async def asking() -> tuple[Any, Any, Any]:
        async with client(model) as http:
            late = await http.post("/search", json={"query": QUERY})
            health = await http.get("/health")  # the event loop and the model are free
            go.set()
            await asyncio.sleep(0.05)
            stopped = len(batches)
            monkeypatch.setattr(model.index, "_read", inner)
            return late, health, await http.post("/search", json={"query": QUERY}), stopped

    late, health, after, stopped = run(asking())
    assert late.status_code == 424
    assert "no answer within 0.3 s" in late.json()["error"]
    assert health.status_code == 200
    assert stopped == 1
    assert after.status_code == 200


def test_searches_that_would_wait_too_long_are_refused(searching):
    model = searching()
    model.index._waiting, model.index._seconds = 4, 5.0
    reply = ask(model, query=QUERY)
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "5")
    assert reply.json()["error_type"] == "Overloaded"
    model.index._waiting = 3
    assert ask(model, query=QUERY).status_code == 200
