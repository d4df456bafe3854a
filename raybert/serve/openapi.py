"""The OpenAPI document of the service, from the table of routes."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from raybert.serve.calls import Route

_REF = "#/components/schemas/{model}"
_ERRORS = {
    "openai": {"400": "bad request", "500": "the server failed", "504": "no answer in time"},
    "tei": {"400": "empty input", "422": "bad request", "424": "the model failed"},
}
_ALL = {"401": "no key", "404": "unknown model, or one that does not answer this", "408": "slow body"}
_ALL |= {"413": "too large", "429": "overloaded, see Retry-After", "503": "unhealthy"}


class OpenAIErrorDetail(BaseModel):
    """What went wrong, and with which field."""

    message: str
    type: str
    param: str | None
    code: str | None


class OpenAIError(BaseModel):
    """As OpenAI writes errors."""

    error: OpenAIErrorDetail


class TEIError(BaseModel):
    """As text-embeddings-inference writes errors."""

    error: str
    error_type: str


class Model(BaseModel):
    """A model that can be asked."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """Those there are."""

    object: Literal["list"]
    data: list[Model]


class Info(BaseModel):
    """What a model is, with text-embeddings-inference's keys and more; of several models by their names."""

    model_id: str | None = None
    model_type: dict[str, Any] | None = None
    models: dict[str, Any] | None = None


class Health(BaseModel):
    """The model answers."""

    status: Literal["ok"]


_ERROR_KINDS: Mapping[str, type[BaseModel]] = {"openai": OpenAIError, "tei": TEIError}
_READ: Mapping[str, tuple[str, type[BaseModel], str]] = {
    "/v1/models": ("openai", ModelList, "The models"),
    "/v1/models/{model}": ("openai", Model, "A model"),
    "/info": ("tei", Info, "What the model is"),
    "/health": ("tei", Health, "Whether the model answers: it is run on one token"),
}


def document(routes: Mapping[str, Route]) -> dict[str, Any]:
    """OpenAPI 3.1."""
    from raybert import __version__

    kinds = [kind for route in routes.values() for kind in (route.request, route.response) if kind]
    kinds += [*_ERROR_KINDS.values(), *(kind for _, kind, _ in _READ.values())]
    made, definitions = models_json_schema(
        [(kind, "validation") for kind in dict.fromkeys(kinds)], ref_template=_REF
    )
    schemas = {kind: made[kind, "validation"] for kind in kinds}
    return {
        "openapi": "3.1.0",
        "info": {"title": "raybert", "version": __version__},
        "components": {
            "schemas": definitions.get("$defs", {}),
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
        "paths": {
            **{path: {"post": _operation(route, schemas)} for path, route in routes.items()},
            **{path: {"get": _reading(path, schemas)} for path in _READ},
        },
    }


def _operation(route: Route, schemas: Mapping[type[BaseModel], Any]) -> dict[str, Any]:
    answer = schemas[route.response] if route.response else {}
    errors = {**_ERRORS[route.dialect], **_ALL}
    return {
        "summary": route.summary,
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": schemas[route.request]}},
        },
        "responses": {"200": _described("done", answer), **_failing(errors, route.dialect, schemas)},
    }


def _reading(path: str, schemas: Mapping[type[BaseModel], Any]) -> dict[str, Any]:
    dialect, kind, text = _READ[path]
    errors = {"401": "no key", "404": "unknown model", "503": "unhealthy"}
    responses = {"200": _described("done", schemas[kind]), **_failing(errors, dialect, schemas)}
    if "{model}" not in path:
        return {"summary": text, "responses": responses}
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    return {"summary": text, "parameters": [name], "responses": responses}


def _failing(
    errors: Mapping[str, str], dialect: str, schemas: Mapping[type[BaseModel], Any]
) -> dict[str, Any]:
    schema = schemas[_ERROR_KINDS[dialect]]
    return {status: _described(text, schema) for status, text in sorted(errors.items())}


def _described(text: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": schema}}}
