"""The routes of text-embeddings-inference: https://huggingface.github.io/text-embeddings-inference."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from pydantic import ConfigDict

from raybert.serve import tei_heads, tei_vectors, tokens
from raybert.serve.calls import Body, Call, Route, read_body
from raybert.serve.errors import invalid
from raybert.serve.http import Reply


class AnyRequest(Body):
    """POST /: the body of another route, known by its shape: `query` and `texts` are reranked, `inputs` with a
    `source_sentence` compared; other `inputs` become vectors, or what the model has a head for."""

    model_config = ConfigDict(extra="allow")

    inputs: Any = None
    query: str | None = None
    texts: list[str] | None = None


async def dispatch(model: Any, request: AnyRequest, call: Call) -> Reply:
    """What the route answers that the body is for: Hugging Face's InferenceClient knows the address of a service only."""
    path = _path(request, model.engine.routes)
    route = model.engine.routes.get(path)
    if route is None:
        raise invalid(f"the body is one of {path}, which model {model.name} does not answer")
    return await route.answer(model, read_body(route.request, call.data), replace(call, path=path))


def _path(request: AnyRequest, routes: Mapping[str, Route]) -> str:
    if request.query is not None or request.texts is not None:
        return "/rerank"
    if isinstance(request.inputs, dict):
        return "/similarity"
    if request.inputs is None:
        raise invalid("inputs: field required", "inputs")
    return "/predict" if "/predict" in routes else "/embed"


_ROOT = {"/": Route("tei", AnyRequest, dispatch, "What another route answers, by the shape of the body")}

ENCODER_ROUTES: Mapping[str, Route] = {**tei_vectors.ROUTES, **tokens.ROUTES, **_ROOT}
"""Of a model that makes vectors."""

HEAD_ROUTES: Mapping[str, Route] = {**tei_heads.PREDICT, **tokens.ROUTES, **_ROOT}
"""Of a model with a head."""

RERANKER_ROUTES: Mapping[str, Route] = {**tei_heads.RERANK, **HEAD_ROUTES}
"""Of a model with one output, which reads two texts together."""

ROUTES: dict[str, Route] = {**RERANKER_ROUTES, **ENCODER_ROUTES}
"""All of them, by path."""
