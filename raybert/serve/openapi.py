"""The OpenAPI document of the service, from the table of routes."""

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from raybert.serve.calls import Route

_REF = "#/components/schemas/{model}"
_ERRORS = {
    "openai": {"400": "bad request", "404": "unknown model"},
    "tei": {"400": "empty input", "404": "unknown model", "422": "bad request", "424": "the model failed"},
}
_ALL = {"401": "no key", "413": "too large", "429": "overloaded, see Retry-After", "503": "unhealthy"}
_ALL |= {"500": "the server failed", "504": "no answer in time"}


def document(routes: Mapping[str, Route]) -> dict[str, Any]:
    """OpenAPI 3.1."""
    from raybert import __version__

    kinds: list[type[BaseModel]] = []
    for route in routes.values():
        kinds += [kind for kind in (route.request, route.response) if kind and kind not in kinds]
    made, definitions = models_json_schema([(kind, "validation") for kind in kinds], ref_template=_REF)
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
            **{path: {"get": _plain(text)} for path, text in _OTHERS.items()},
        },
    }


_OTHERS = {
    "/v1/models": "The models",
    "/info": "What the model is",
    "/health": "Whether the model answers: it is run on one token",
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
        "responses": {
            "200": {"description": "done", "content": {"application/json": {"schema": answer}}},
            **{status: _described(text) for status, text in sorted(errors.items())},
        },
    }


def _plain(text: str) -> dict[str, Any]:
    answers = {"200": _described("done"), "401": _described("no key"), "503": _described("unhealthy")}
    return {"summary": text, "responses": answers}


def _described(text: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": {}}}}
