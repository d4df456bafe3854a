"""/v1/embeddings and /v1/models: values, formats and errors as OpenAI's reference has them."""

import base64

import numpy as np
import pytest

from raybert.serve.app import application
from raybert.serve.model import Limits
from tests.conftest import sentences
from tests.serve.services import ask, load_model, post, serve_settings

TEXTS = [" ".join(text.split()[:12]) for text in sentences(7)]
LONG = "fox " * 60


def answer(app, path="/v1/embeddings", **body):
    reply = post(app, path, **{"model": "tiny", **body})
    assert reply.status_code == 200, reply.text
    return reply.json()


def error(app, path="/v1/embeddings", **body):
    reply = post(app, path, **{"model": "tiny", **body})
    assert set(reply.json()) == {"error"}
    found = reply.json()["error"]
    assert set(found) == {"message", "type", "param", "code"}
    return reply.status_code, found["type"], found["param"], found["code"], found["message"]


def vectors(found):
    assert [one["index"] for one in found["data"]] == list(range(len(found["data"])))
    assert {one["object"] for one in found["data"]} == {"embedding"}
    return np.array([one["embedding"] for one in found["data"]])


def test_the_answer(encoder_app, encoder_model):
    encoder = encoder_model.engine.encoder
    found = answer(encoder_app, input=TEXTS, user="somebody")
    tokens = int(encoder.tokenizer()(TEXTS).lengths.sum())
    assert (found["object"], found["model"]) == ("list", "tiny")
    assert found["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
    np.testing.assert_allclose(vectors(found), encoder.encode(TEXTS), atol=1e-5)
    one = answer(encoder_app, input=TEXTS[3])
    np.testing.assert_allclose(vectors(one), encoder.encode(TEXTS[3:4]), atol=1e-5)


def test_base64_is_of_little_endian_float32(encoder_app, encoder_model):
    expected = encoder_model.engine.encoder.encode(TEXTS)
    found = answer(encoder_app, input=TEXTS, encoding_format="base64")["data"]
    rows = np.stack([np.frombuffer(base64.b64decode(one["embedding"]), "<f4") for one in found])
    np.testing.assert_allclose(rows, expected, atol=1e-5)
    assert answer(encoder_app, input=TEXTS, encoding_format=None) == answer(encoder_app, input=TEXTS)


def test_dimensions_are_cut_and_normalised_again(encoder_app, encoder_model):
    found = vectors(answer(encoder_app, input=TEXTS, dimensions=5))
    whole = encoder_model.engine.encoder.encode(TEXTS)[:, :5]
    np.testing.assert_allclose(found, whole / np.linalg.norm(whole, axis=1, keepdims=True), atol=1e-5)
    assert error(encoder_app, input="fox", dimensions=33) == (
        *(400, "invalid_request_error", "dimensions", None),
        "dimensions is 33; the model has 32",
    )


def test_a_model_that_does_not_normalise_does_where_dimensions_are_cut(prompted):
    model = load_model(prompted, **{"model.normalize": False})
    app = application({"tiny": model}, serve_settings())
    whole = model.engine.encoder.encode(TEXTS)
    assert np.abs(np.linalg.norm(whole, axis=1) - 1).min() > 0.1
    np.testing.assert_allclose(vectors(answer(app, input=TEXTS)), whole, atol=1e-5)
    cut = whole[:, :5] / np.linalg.norm(whole[:, :5], axis=1, keepdims=True)
    np.testing.assert_allclose(vectors(answer(app, input=TEXTS, dimensions=5)), cut, atol=1e-5)
    model.close()


def test_prompts_by_a_field_and_by_the_name_of_the_model(encoder_app, encoder_model):
    expected = encoder_model.engine.encoder.encode(TEXTS, prompt_name="document")
    for body in ({"prompt_name": "document"}, {"model": "tiny:document"}):
        found = answer(encoder_app, input=TEXTS, **body)
        np.testing.assert_allclose(vectors(found), expected, atol=1e-5)
    assert found["model"] == "tiny:document"
    assert error(encoder_app, input="fox", model="tiny:x")[:3] == (
        400,
        "invalid_request_error",
        "prompt_name",
    )


def test_token_ids_only_of_the_models_own_tokenizer(encoder_app, encoder_model):
    encoder = encoder_model.engine.encoder
    made = encoder.tokenizer()(TEXTS)
    rows = [made.ids(i).tolist() for i in range(len(TEXTS))]
    found = vectors(answer(encoder_app, input=rows, tokenizer="tiny"))
    np.testing.assert_allclose(found, encoder.encode(TEXTS), atol=1e-5)
    one = vectors(answer(encoder_app, input=rows[2], tokenizer="tiny"))
    np.testing.assert_allclose(one, encoder.encode(TEXTS[2:3]), atol=1e-5)
    for wrong in ({}, {"tokenizer": "cl100k_base"}):
        status, _, param, code, message = error(encoder_app, input=rows, **wrong)
        assert (status, param, code) == (400, "input", "token_ids_not_supported")
        assert "check_embedding_ctx_length=False" in message


def test_a_batch_of_any_size_is_split(encoder_app, encoder_model):
    texts = [text.partition(" ")[2][:30] for text in sentences(400)]
    assert sum(map(len, texts)) / 4 > 5 * encoder_model.engine.step_tokens
    found = vectors(answer(encoder_app, input=texts))
    np.testing.assert_allclose(found, encoder_model.engine.encoder.encode(texts), atol=1e-5)


def test_long_texts(encoder_app, encoder_model):
    assert error(encoder_app, input=["fox", LONG]) == (
        *(400, "invalid_request_error", "input", "context_length_exceeded"),
        "input[1] has more than 48 tokens; shorten it, or set truncate to true",
    )
    cut = answer(encoder_app, input=LONG, truncate=True)
    assert cut["usage"]["prompt_tokens"] == 48
    np.testing.assert_allclose(vectors(cut), encoder_model.engine.encoder.encode(LONG), atol=1e-5)


def test_models(encoder_app):
    listed = ask(encoder_app, "GET", "/v1/models").json()
    (one,) = listed["data"]
    assert (listed["object"], one["id"], one["object"], one["owned_by"]) == (
        "list",
        "tiny",
        "model",
        "raybert",
    )
    assert isinstance(one["created"], int)
    assert ask(encoder_app, "GET", "/v1/models/tiny").json() == one
    missing = ask(encoder_app, "GET", "/v1/models/other")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "model_not_found")
    assert error(encoder_app, input="fox", model="other")[:4] == (
        *(404, "invalid_request_error", "model"),
        "model_not_found",
    )


def test_several_models(prompted, tiny):
    models = {"one": load_model(prompted, "one"), "org/two": load_model(tiny, "org/two")}
    app = application(models, serve_settings())
    for name, model in models.items():
        expected = model.engine.encoder.encode(TEXTS)
        found = vectors(answer(app, input=TEXTS, model=name))
        np.testing.assert_allclose(found, expected, atol=1e-5)
        found = post(app, f"/models/{name}/embed", inputs=TEXTS).json()
        np.testing.assert_allclose(found, expected, atol=1e-5)
        assert ask(app, "GET", f"/models/{name}/info").json()["served_name"] == name
    assert not np.allclose(found, models["one"].engine.encoder.encode(TEXTS), atol=0.01)
    assert post(app, "/embed", inputs="fox").json()["error"].startswith("there are several models; name one")
    wrong = post(app, "/models/three/v1/embeddings", input="fox")
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (404, "model_not_found")
    assert len(ask(app, "GET", "/info").json()["models"]) == 2
    for model in models.values():
        model.close()


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"input": ""}, "input", "input is empty"),
        ({"input": ["a", "\n"]}, "input", "input[1] is empty"),
        ({"input": []}, "input", "input is empty"),
        ({"input": ["a", None]}, "input", "input[1] must be a text, not null"),
        ({"input": [1, 2.5]}, "input", "input[1] must be a token id, not a number"),
        (
            {"input": [[1], [True]]},
            "input",
            "input[1] must be a list of token ids, not one with something else in it",
        ),
        ({}, "input", "input: field required"),
        (
            {"input": "a", "dimensions": 0},
            "dimensions",
            "dimensions: input should be greater than or equal to 1",
        ),
    ],
)
def test_errors_name_the_field(encoder_app, body, param, message):
    assert error(encoder_app, **body) == (400, "invalid_request_error", param, None, message)


def test_too_many_inputs(prompted):
    model = load_model(prompted, limits=Limits(max_inputs=2))
    app = application({"tiny": model}, serve_settings())
    assert error(app, input=["a"] * 3)[:4] == (413, "invalid_request_error", "input", "too_many_inputs")
    model.close()
