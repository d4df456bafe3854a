"""What a model is asked, apart from HTTP, and the table that says who answers."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError

from raybert.serve.errors import ApiError, invalid
from raybert.serve.http import Reply


class Body(BaseModel):
    """JSON of a request. Types are not converted into one another; keys that nobody knows are passed over, as both
    dialects do."""

    model_config = ConfigDict(strict=True, frozen=True, extra="ignore", protected_namespaces=())


@dataclass(frozen=True)
class Call:
    """A request for one model.

    Attributes:
        path: of a route.
        data: the JSON of the body.
        request_id: to find it in logs.
        bulk: it may wait behind interactive ones.
        prompt_name: of the model's prompts, where the client asked for the model as NAME:PROMPT.
    """

    path: str
    data: Any
    request_id: str = ""
    bulk: bool = False
    prompt_name: str | None = None


@dataclass(frozen=True)
class Route:
    """What answers a path: `answer(model, body, call)` gets the JSON as `request`. `dialect` is that of its errors."""

    dialect: str
    request: type[BaseModel]
    answer: Callable[[Any, Any, Call], Awaitable[Reply]]
    summary: str
    response: type[BaseModel] | None = None


def read_json(body: bytes) -> Any:
    """Raises ApiError 400 for what is no JSON object."""
    try:
        data = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise invalid(f"the body is not valid JSON: {error}", code="invalid_json") from None
    if not isinstance(data, dict):
        raise invalid(f"the body must be a JSON object, not a {type(data).__name__}", code="invalid_json")
    return data


def read_body(kind: type[BaseModel], data: Any) -> Any:
    """The JSON as `kind`. Raises ApiError 400 that names the first field that does not fit."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        raise explained(error) from None


def explained(error: ValidationError) -> ApiError:
    """The first complaint of pydantic, as one line that names the field, texts[3] for the fourth of a list."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    field = next((part for part in first["loc"] if isinstance(part, str)), None)
    where = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])[1:]
    message = first["msg"].removeprefix("Value error, ")
    message = message[:1].lower() + message[1:]
    if message.startswith("["):  # of a part of the field
        return invalid(f"{where}{message}", field)
    return invalid(f"{where}: {message}" if where else message, field)


def as_json(content: Any, headers: Mapping[str, str] | None = None, status: int = 200) -> Reply:
    """An answer of plain values and numpy arrays."""
    return Reply(orjson.dumps(content, option=orjson.OPT_SERIALIZE_NUMPY), status, headers or {})


def error_reply(error: ApiError, dialect: str) -> Reply:
    """The answer to a request that failed."""
    status, content = error.body(dialect)
    return as_json(content, error.all_headers(), status)
