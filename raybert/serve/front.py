"""The front of the service: who asks, for which model, and what is answered without one."""

import asyncio
import logging
import re
import time
import uuid
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Protocol

from raybert.serve import page
from raybert.serve.calls import Call, as_json, error_reply, read_json
from raybert.serve.errors import ApiError
from raybert.serve.http import Reply, Request, shown
from raybert.serve.keys import Keys
from raybert.serve.openapi import document
from raybert.serve.routes import ROUTES

_CHECK_SECONDS = 5.0  # in which a model must answer, to be healthy
_CACHE_SECONDS = 1.0
_OPEN = ("/", "/health", "/openapi.json")
_ID = re.compile(r"[\x21-\x7e]{1,128}")

logger = logging.getLogger("ray.serve")


class Backend(Protocol):
    """A model, here or in another process."""

    async def respond(self, call: Call) -> Reply:
        """See `raybert.serve.model.ServedModel`."""

    async def info(self) -> dict[str, Any]:
        """What TEI's /info tells."""

    async def check(self, deadline: float) -> None:
        """Raises what is wrong with it."""


class Front:
    """`await front(request)` is the answer; it raises nothing for anything that a client sends.

    Args:
        models: by the name that clients call them.
        keys: None answers everybody.
        with_page: whether there is a page at /.
    """

    def __init__(self, models: Mapping[str, Backend], *, keys: Keys | None, with_page: bool = True) -> None:
        self._models, self._keys, self._with_page = models, keys, with_page
        self._created = int(time.time())
        self._checked: dict[str, tuple[float, str | None]] = {}
        self._checking = asyncio.Lock()

    async def __call__(self, request: Request) -> Reply:
        """See above."""
        started = time.perf_counter()
        # Ray Serve gives a request without an id one, and the answer too
        given = request.headers.get("x-request-id", "")
        request_id = given if _ID.fullmatch(given) else uuid.uuid4().hex
        try:
            reply = await self._answer(request, request_id)
        except ApiError as error:
            reply = self.refuse(request, error)
        except Exception:
            logger.exception("request %s failed", request_id)
            reply = self.refuse(request, ApiError(500, "the server failed; see its log"))
        self._log(request, reply, request_id, time.perf_counter() - started)
        return reply

    def refuse(self, request: Request, error: ApiError) -> Reply:
        """The answer to a request that gets no further."""
        return error_reply(error, dialect_of(request.path))

    async def _answer(self, request: Request, request_id: str) -> Reply:
        reading = request.method in ("GET", "HEAD")
        path = request.path.rstrip("/") or "/"
        if self._with_page and reading and (path == "/" or path.startswith("/page/")):
            return page.file(path)
        if self._keys and not (reading and path in _OPEN):
            self._keys.check(request.headers.get("authorization"))
        name, inner = self._split(path)
        if name is None and inner.startswith("/v1/models"):
            _allow(request, "GET", "HEAD")
            return self._list(inner.removeprefix("/v1/models").lstrip("/"))
        if inner in ("/health", "/info", "/openapi.json"):
            _allow(request, "GET", "HEAD")
            return await self._about(inner, name)
        if inner not in ROUTES:
            raise _no_route(inner)
        _allow(request, "POST")
        return await self._ask(request, inner, name, request_id)

    async def _ask(self, request: Request, path: str, name: str | None, request_id: str) -> Reply:
        data = read_json(request.body)
        asked = name or data.get("model")
        backend, prompt_name = self._pick(asked if isinstance(asked, str) else None)
        bulk = request.headers.get("x-priority", "").lower() == "bulk"
        return await backend.respond(Call(path, data, request_id, bulk, prompt_name))

    def _split(self, path: str) -> tuple[str | None, str]:
        """/models/NAME/embed as NAME and /embed; NAME may have a slash and a prompt behind a colon."""
        if not path.startswith("/models/"):
            return None, path
        parts = path.removeprefix("/models/").split("/")
        two = "/".join([parts[0], *(part.partition(":")[0] for part in parts[1:2])])
        count = 2 if two in self._models else 1
        return "/".join(parts[:count]), "/" + "/".join(parts[count:])

    def _pick(self, asked: str | None) -> tuple[Backend, str | None]:
        """The model of a name, and the prompt behind a colon."""
        if asked is None:
            if len(self._models) > 1:
                names = ", ".join(self._models)
                raise ApiError(400, f"there are several models; name one as `model`: {names}", "model")
            return next(iter(self._models.values())), None
        if asked in self._models:
            return self._models[asked], None
        name, _, prompt = asked.rpartition(":")
        if name in self._models:
            return self._models[name], prompt
        names = ", ".join(self._models)
        raise ApiError(
            404, f"there is no model {asked[:100]!r}; there is: {names}", "model", "model_not_found"
        )

    async def _about(self, path: str, name: str | None) -> Reply:
        if path == "/openapi.json":
            return as_json(document(ROUTES))
        chosen = self._models if name is None else {name: self._pick(name)[0]}
        if path == "/health":
            return await self._health(chosen)
        infos = {key: await each.info() for key, each in chosen.items()}
        return as_json(next(iter(infos.values())) if len(infos) == 1 else {"models": infos})

    async def _health(self, chosen: Mapping[str, Backend]) -> Reply:
        """Runs every model, unless it was run a moment ago."""
        async with self._checking:  # many that ask at once are told the same
            now = time.monotonic()
            old = [name for name in chosen if now - self._checked.get(name, (-1e9, ""))[0] > _CACHE_SECONDS]
            wrong = await asyncio.gather(*(_wrong_with(chosen[name]) for name in old))
            for name, found in zip(old, wrong, strict=True):
                self._checked[name] = (time.monotonic(), found)
        bad = [f"{name}: {why}" for name in chosen if (why := self._checked[name][1])]
        if bad:
            raise ApiError(503, "; ".join(bad), code="unhealthy", kind="Unhealthy", retry_after=1)
        return as_json({"status": "ok"})

    def _list(self, name: str) -> Reply:
        entries = {
            key: {"id": key, "object": "model", "created": self._created, "owned_by": "raybert"}
            for key in self._models
        }
        if not name:
            return as_json({"object": "list", "data": list(entries.values())})
        if name not in entries:
            raise ApiError(404, f"there is no model {name[:100]!r}", "model", "model_not_found")
        return as_json(entries[name])

    def _log(self, request: Request, reply: Reply, request_id: str, seconds: float) -> None:
        """One line a request, without a word of its texts."""
        logger.info(
            "%s %s %d",
            request.method,
            shown(request.path),
            reply.status,
            extra={
                "request": request_id,
                "status": reply.status,
                "milliseconds": round(seconds * 1000, 1),
                "bytes_in": len(request.body),
                "bytes_out": len(reply.body),
                "tokens": int(reply.headers.get("x-compute-tokens", 0)),
            },
        )


def dialect_of(path: str) -> str:
    """In which words an error on this path is told."""
    return "openai" if path.startswith("/v1") or "/v1/" in path else "tei"


def _allow(request: Request, *methods: str) -> None:
    if request.method not in methods:
        raise ApiError(
            405,
            f"{shown(request.path)} takes {methods[0]}, not {request.method}",
            code="method_not_allowed",
            headers={"allow": ", ".join(methods)},
        )


def _no_route(path: str) -> ApiError:
    near = get_close_matches(path, [*ROUTES, "/v1/models", "/health", "/info"], 1, 0.5)
    hint = f"; did you mean {near[0]}?" if near else "; /openapi.json tells what there is"
    return ApiError(404, f"there is no {shown(path)}{hint}", code="not_found")


async def _wrong_with(backend: Backend) -> str | None:
    try:
        async with asyncio.timeout(_CHECK_SECONDS + 1):
            await backend.check(_CHECK_SECONDS)
    except TimeoutError:
        return f"the model does not answer within {_CHECK_SECONDS:g} s"
    except Exception as error:
        return f"the model fails: {type(error).__name__}"
    return None
