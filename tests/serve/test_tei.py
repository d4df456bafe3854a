"""TEI's routes over an encoder: what they answer is what `Encoder` and the model's own tokenizer say."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from raybert.serve import encoding, tokens
from raybert.serve.app import application
from raybert.serve.encoding import EncoderEngine
from raybert.serve.errors import ApiError
from raybert.serve.metrics import ModelMetrics
from raybert.serve.model import Limits, ServedModel
from raybert.serve.routes import ROUTES
from tests.conftest import sentences
from tests.serve.services import ask, load_model, post, serve_settings

TEXTS = [" ".join(text.split()[:12]) for text in sentences(7)]
LONG = "a b c d e f g h i j k l m n o p q r s t u v w x y z " * 2  # a token a letter, 50 too many


def answer(app, path, **body):
    reply = post(app, path, **body)
    assert reply.status_code == 200, reply.text
    return reply.json()


def error(app, path, **body):
    reply = post(app, path, **body)
    assert set(reply.json()) == {"error", "error_type"}
    return reply.status_code, reply.json()["error_type"], reply.json()["error"]


def near(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(np.asarray(found), expected, atol=tolerance)


def test_embed_gives_the_vectors_of_the_encoder(encoder_app, encoder_model):
    encoder = encoder_model.engine.encoder
    near(answer(encoder_app, "/embed", inputs=TEXTS), encoder.encode(TEXTS))
    near(answer(encoder_app, "/embed", inputs=TEXTS[0]), encoder.encode(TEXTS[:1]))
    cut = answer(encoder_app, "/embed", inputs=TEXTS, dimensions=8)
    near(cut, encoder.encode(TEXTS, dimensions=8))
    raw = answer(encoder_app, "/embed", inputs=TEXTS, normalize=False)
    near(raw, encoder.encode(TEXTS, normalize=False))
    assert np.abs(np.linalg.norm(raw, axis=1) - 1).min() > 0.1
    asked = answer(encoder_app, "/embed", inputs=TEXTS, prompt_name="query")
    near(asked, encoder.encode(TEXTS, prompt_name="query"))
    assert np.abs(np.array(asked) - encoder.encode(TEXTS)).max() > 0.01
    near(answer(encoder_app, "/models/tiny:query/embed", inputs=TEXTS), asked)
    reply = post(encoder_app, "/embed", inputs=TEXTS)
    assert reply.headers["x-compute-tokens"] == str(encoder.tokenizer()(TEXTS).lengths.sum())
    assert float(reply.headers["x-compute-time"]) >= 0


def test_a_text_that_is_too_long_is_refused_or_cut_on_the_side_that_is_asked_for(encoder_app, encoder_model):
    encoder, words = encoder_model.engine.encoder, LONG.split()
    assert len(words) + 2 - encoder.max_length == 6
    assert error(encoder_app, "/embed", inputs=["a", LONG]) == (
        422,
        "Validation",
        "inputs[1] has more than 48 tokens; shorten it, or set truncate to true",
    )
    end, begin = (encoder.encode(" ".join(part)) for part in (words[6:], words[:-6]))
    for side, expected in {"right": begin, "Right": begin, "left": end, "Left": end, None: begin}.items():
        body = {"inputs": LONG, "truncate": True, "truncation_direction": side}
        near(answer(encoder_app, "/embed", **body), expected)
    near(
        answer(encoder_app, "/embed_all", inputs=LONG, truncate=True, truncation_direction="left")[0],
        encoder.encode(" ".join(words[6:]), output="tokens")[0],
    )
    pair = {"source_sentence": LONG, "sentences": ["a b"]}
    code, _, message = error(encoder_app, "/similarity", inputs=pair)
    assert (code, message.split(" has")[0]) == (422, "inputs.source_sentence")
    cut = answer(encoder_app, "/similarity", inputs=pair, parameters={"truncate": True})
    near(cut, begin @ encoder.encode("a b")[0])


def test_embed_all_gives_every_token(encoder_app, encoder_model, monkeypatch):
    found = answer(encoder_app, "/embed_all", inputs=TEXTS)
    expected = encoder_model.engine.encoder.encode(TEXTS, output="tokens")
    assert [len(one) for one in found] == [len(one) for one in expected]
    for one, other in zip(found, expected, strict=True):
        near(one, other)
    monkeypatch.setattr(encoding, "_MOST_NUMBERS", 32 * 20)
    code, kind, message = error(encoder_app, "/embed_all", inputs=TEXTS)
    assert (code, kind) == (413, "Validation")
    assert message.endswith("a vector for each is answered for 20 at a time")
    assert len(answer(encoder_app, "/embed", inputs=TEXTS)) == 7  # which needs one for each text alone


def test_similarity_is_the_cosine(encoder_app, encoder_model):
    vectors = encoder_model.engine.encoder.encode(TEXTS)
    body = {"inputs": {"source_sentence": TEXTS[0], "sentences": TEXTS}}
    found = answer(encoder_app, "/similarity", **body)
    near(found, vectors @ vectors[0])
    assert max(found) <= 1
    asked = encoder_model.engine.encoder.encode(TEXTS, prompt_name="query")
    prompted = answer(encoder_app, "/similarity", **body, parameters={"prompt_name": "query"})
    near(prompted, asked @ asked[0])


def test_an_encoder_reranks_by_cosines_with_its_prompts(encoder_app, encoder_model):
    encode = encoder_model.engine.encoder.encode
    expected = encode(TEXTS, prompt_name="document") @ encode("the lazy dog", prompt_name="query")[0]
    found = answer(encoder_app, "/rerank", query="the lazy dog", texts=TEXTS, return_text=True)
    assert [one["index"] for one in found] == np.argsort(-expected).tolist()
    near([one["score"] for one in found], np.sort(expected)[::-1])
    assert [one["text"] for one in found] == [TEXTS[one["index"]] for one in found]
    plain = answer(encoder_app, "/rerank", query="the lazy dog", texts=TEXTS)
    assert all(set(one) == {"index", "score"} for one in plain)


def test_tokens_are_those_of_the_models_own_tokenizer(encoder_app, prompted, monkeypatch):
    text = "Fox, jumps über 中文"
    own = AutoTokenizer.from_pretrained(prompted)
    for specials in (True, False):
        made = own(
            text, return_offsets_mapping=True, return_special_tokens_mask=True, add_special_tokens=specials
        )
        found = answer(encoder_app, "/tokenize", inputs=[text, ""], add_special_tokens=specials)
        assert [one["id"] for one in found[0]] == made["input_ids"]
        assert [one["special"] for one in found[0]] == [bool(m) for m in made["special_tokens_mask"]]
        for one, (start, stop) in zip(found[0], made["offset_mapping"], strict=True):
            if one["special"]:
                assert (one["start"], one["stop"]) == (None, None)
                assert one["text"] in ("[CLS]", "[SEP]")
            else:
                assert (one["start"], one["stop"], one["text"]) == (start, stop, text[start:stop])
        assert len(found[1]) == 2 * specials
    (found,) = answer(encoder_app, "/tokenize", inputs="dog", prompt_name="query")
    assert [one["text"] for one in found if not one["special"]] == ["find", "text", "dog"]
    assert len(answer(encoder_app, "/tokenize", inputs=LONG * 20)[0]) > 1000  # nothing is cut
    monkeypatch.setattr(tokens, "_MOST_CHARS", 10)
    assert error(encoder_app, "/tokenize", inputs=["quick", "brown fox"])[0] == 413


def test_the_root_answers_by_the_shape_of_the_body(encoder_app):
    for path, body in {
        "/embed": {"inputs": TEXTS, "dimensions": 4},
        "/similarity": {"inputs": {"source_sentence": "fox", "sentences": TEXTS}},
        "/rerank": {"query": "fox", "texts": TEXTS, "return_text": True},
    }.items():
        assert answer(encoder_app, "/", **body) == answer(encoder_app, path, **body)
        assert answer(encoder_app, "/models/tiny", **body) == answer(encoder_app, path, **body)
    assert error(encoder_app, "/", other=1)[2] == "inputs: field required"
    assert error(encoder_app, "/", inputs=["fox", 5])[2] == "inputs[1] must be a text, not a number"
    assert error(encoder_app, "/", query="fox", texts=5)[0] == 422


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/embed", {"inputs": []}, (400, "Empty", "`inputs` cannot be empty")),
        ("/embed", {"inputs": ["fox", " \n"]}, (400, "Empty", "`inputs[1]` cannot be empty")),
        ("/embed_all", {"inputs": ""}, (400, "Empty", "`inputs` cannot be empty")),
        ("/tokenize", {"inputs": []}, (400, "Empty", "`inputs` cannot be empty")),
        ("/rerank", {"query": " ", "texts": ["a"]}, (400, "Empty", "`query` cannot be empty")),
        ("/rerank", {"query": "a", "texts": []}, (400, "Empty", "`texts` cannot be empty")),
        (
            "/similarity",
            {"inputs": {"source_sentence": "a", "sentences": ["a", ""]}},
            (400, "Empty", "`inputs.sentences[1]` cannot be empty"),
        ),
        (
            "/similarity",
            {"inputs": {"source_sentence": "a", "sentences": ["a", 1]}},
            (422, "Validation", "inputs.sentences[1] must be a text, not a number"),
        ),
        (
            "/embed",
            {"inputs": "a", "dimensions": 33},
            (422, "Validation", "dimensions is 33; the model has 32"),
        ),
        (
            "/embed",
            {"inputs": "a", "prompt_name": "x"},
            (422, "Validation", "prompt_name 'x' is not a prompt of the model; it has: document, query"),
        ),
    ],
)
def test_errors_name_the_field(encoder_app, path, body, expected):
    assert error(encoder_app, path, **body) == expected


def test_a_route_that_the_model_has_not_names_those_it_has(encoder_app):
    code, _, message = error(encoder_app, "/predict", inputs="fox")
    assert code == 404
    assert message.startswith("model tiny does not answer /predict, but /v1/embeddings, /embed, ")


def test_info_has_teis_keys(encoder_app, prompted):
    info = ask(encoder_app, "GET", "/info").json()
    assert info["model_type"] == {"embedding": {"pooling": "mean"}}
    assert (info["model_id"], info["model_dtype"]) == (prompted, "float32")
    assert (info["max_input_length"], info["max_client_batch_size"], info["auto_truncate"]) == (
        48,
        10_000,
        False,
    )
    needed = {"model_sha", "max_concurrent_requests", "max_batch_tokens", "max_batch_requests", "version"}
    assert needed | {"tokenization_workers", "sha", "docker_label"} <= info.keys()
    assert ask(encoder_app, "GET", "/health").status_code == 200


def test_the_limits_of_the_service(prompted):
    model = load_model(prompted, limits=Limits(max_inputs=3, truncate=True))
    app = application({"tiny": model}, serve_settings())
    assert len(answer(app, "/embed", inputs=[LONG] * 3)) == 3
    for path in ("/embed", "/embed_all", "/tokenize"):
        assert error(app, path, inputs=["a"] * 4) == (413, "Validation", "inputs has 4 inputs, more than 3")
    assert error(app, "/embed", inputs=LONG, truncate=False)[0] == 422
    assert error(app, "/rerank", query="a", texts=["a"] * 4)[0] == 413
    model.close()


def test_failures_in_teis_words(encoder_model):
    class Broken(EncoderEngine):
        broken = False

        def run(self, way, parts):
            if self.broken:
                raise RuntimeError("what a text said")
            return super().run(way, parts)

    engine = Broken(encoder_model.engine.encoder, 1)
    model = ServedModel("tiny", engine, Limits(), ModelMetrics("tiny"))
    app = application({"tiny": model}, serve_settings())
    engine.broken = True
    assert error(app, "/embed", inputs="fox") == (
        424,
        "Backend",
        "the model failed; see the log of the server",
    )
    unhealthy = ask(app, "GET", "/health")
    assert (unhealthy.status_code, unhealthy.json()["error_type"]) == (503, "Unhealthy")
    assert "text said" not in unhealthy.text
    engine.broken = False
    assert len(answer(app, "/embed", inputs="fox")) == 1
    model.close()
    full = ApiError(429, "full", retry_after=2.3)
    assert full.body("tei") == (429, {"error": "full", "error_type": "Overloaded"})
    assert full.all_headers() == {"retry-after": "3"}


def test_every_route_is_in_the_document(encoder_app):
    paths = ask(encoder_app, "GET", "/openapi.json").json()["paths"]
    assert ROUTES.keys() <= paths.keys()
