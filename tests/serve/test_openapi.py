"""The OpenAPI document, and what the service does with requests made from it: such as fit, and such as do not."""

from collections import Counter

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import positive_data_acceptance

from raybert.serve.app import application
from raybert.serve.metrics import ModelMetrics
from raybert.serve.model import Limits, ServedModel
from raybert.serve.openapi import document
from raybert.serve.routes import ROUTES
from raybert.serve.search import SearchIndex
from tests.heads import tiny_head
from tests.serve.services import ask, load_model, serve_settings
from tests.serve.test_search import folder_of

EXAMPLES = 10
# what a document cannot say: texts of white space are refused, and token ids of nobody knows whose tokenizer
UNSAID = [positive_data_acceptance]


@pytest.fixture(scope="module")
def reranker_app(tmp_path_factory):
    folder = tiny_head(tmp_path_factory.mktemp("head") / "model", ["LABEL_0"], problem=None)
    model = load_model(folder)
    yield application({"tiny": model}, serve_settings())
    model.close()


@pytest.fixture(scope="module")
def searching_app(tmp_path_factory, encoder_model):
    engine = encoder_model.engine
    index = SearchIndex(folder_of(tmp_path_factory.mktemp("index") / "out", engine.encoder), engine.encoder)
    model = ServedModel("tiny", engine, Limits(), ModelMetrics("tiny"), index)
    yield application({"tiny": model}, serve_settings())
    model.close()


def test_the_document_has_every_path_and_every_reference(encoder_app):
    made = ask(encoder_app, "GET", "/openapi.json").json()
    assert made == document(ROUTES)
    reading = {path for path, item in made["paths"].items() if "get" in item}
    assert reading == {"/v1/models", "/v1/models/{model}", "/info", "/health"}
    assert {path for path, item in made["paths"].items() if "post" in item} == set(ROUTES)
    schemas = made["components"]["schemas"]
    assert {
        "EmbeddingsRequest",
        "EmbedRequest",
        "PredictRequest",
        "OpenAIError",
        "TEIError",
    } <= schemas.keys()
    found = [
        text.partition('"')[0] for text in str(made).replace("'", '"').split("#/components/schemas/")[1:]
    ]
    assert set(found) <= schemas.keys()


def fuzz(app, mode, paths):
    """Statuses of the answers by path. Every answer fits the document: no 5xx, no status or body that it does not name."""
    api = schemathesis.openapi.from_asgi("/openapi.json", app)
    seen = Counter()
    for result in api.get_all_operations():
        operation = result.ok()
        if operation.path in paths:
            try_operation(operation, mode, seen)
    return seen


def try_operation(operation, mode, seen):
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(mode))
    def one(case):
        if mode == GenerationMode.POSITIVE and isinstance(case.body, dict):
            case.body["model"] = "tiny"  # these no document can know
            if case.body.get("prompt_name"):
                case.body["prompt_name"] = "query"
        reply = case.call()
        case.validate_response(reply, excluded_checks=UNSAID)
        seen[operation.path, reply.status_code] += 1

    one()


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_an_encoder_answers_every_request_as_the_document_says(searching_app, mode):
    paths = {*ROUTES} - {"/predict"}
    if mode == GenerationMode.POSITIVE:  # there is nothing wrong to send to the others
        paths |= {"/v1/models/{model}", "/v1/models", "/info", "/health"}
    seen = fuzz(searching_app, mode, paths)
    answered = {path for path, status in seen if status == 200}
    if mode == GenerationMode.POSITIVE:
        assert answered >= paths - {"/v1/models/{model}", "/"}
    else:
        assert not answered
        assert {path for path, _ in seen} == paths


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_a_model_with_a_head_answers_as_the_document_says(reranker_app, mode):
    seen = fuzz(reranker_app, mode, {"/predict", "/rerank", "/"})
    if mode == GenerationMode.POSITIVE:
        assert {path for path, status in seen if status == 200} >= {"/predict", "/rerank"}
