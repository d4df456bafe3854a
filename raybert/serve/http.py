"""Requests and answers without a web server, and the ASGI application that turns one into the other."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from raybert.serve.errors import ApiError

_BODY_SECONDS = 30.0  # for a body to arrive


@dataclass(frozen=True)
class Request:
    """A request whose body has arrived. `headers` have lower-case names."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True)
class Reply:
    """An answer."""

    body: bytes
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    media_type: str = "application/json"


def shown(path: str) -> str:
    """A path as messages and logs show it: not all of it, and ASCII in one line."""
    return ascii(path[:100])[1:-1]


Responder = Callable[[Request], Awaitable[Reply]]
_Message = MutableMapping[str, Any]


class Application:
    """An ASGI application. `respond` answers requests; `refuse` those whose body did not arrive whole.

    Raises nothing: whatever `respond` does not answer itself is its bug, and the server's 500.
    """

    def __init__(
        self,
        respond: Responder,
        refuse: Callable[[Request, ApiError], Reply],
        *,
        max_body_bytes: int,
        body_seconds: float = _BODY_SECONDS,
    ) -> None:
        self._respond, self._refuse = respond, refuse
        self._max, self._seconds = max_body_bytes, body_seconds

    async def __call__(
        self,
        scope: _Message,
        receive: Callable[[], Awaitable[_Message]],
        send: Callable[[_Message], Awaitable[None]],
    ) -> None:
        """See the ASGI specification."""
        if scope["type"] == "lifespan":
            await _live(receive, send)
            return
        if scope["type"] != "http":
            raise RuntimeError(f"no answer to {scope['type']}")
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        request = Request(scope["method"], scope["path"], headers)
        closing = False
        try:
            async with asyncio.timeout(self._seconds):
                body = await self._read(headers, receive)
        except TimeoutError:
            reply, closing = self._refuse(request, ApiError(408, "the body did not arrive in time")), True
        except ApiError as error:
            reply, closing = self._refuse(request, error), True
        else:
            if body is None:  # the client has gone
                return
            reply = await self._respond(Request(request.method, request.path, headers, body))
        await _send(reply, send, head=request.method == "HEAD", closing=closing)

    async def _read(
        self, headers: Mapping[str, str], receive: Callable[[], Awaitable[_Message]]
    ) -> bytes | None:
        """The body; None where the client left. Raises ApiError 413 as soon as it is known to be too large."""
        told = headers.get("content-length", "")
        if told.isdecimal() and int(told) > self._max:
            raise _too_large(self._max)
        parts, size = [], 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            part = message.get("body", b"")
            size += len(part)
            if size > self._max:
                raise _too_large(self._max)
            parts.append(part)
            if not message.get("more_body", False):
                return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413, f"the body is larger than {limit} bytes; send fewer inputs at a time", code="body_too_large"
    )


async def _live(
    receive: Callable[[], Awaitable[_Message]], send: Callable[[_Message], Awaitable[None]]
) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await send({"type": "lifespan.shutdown.complete"})
            return


async def _send(
    reply: Reply, send: Callable[[_Message], Awaitable[None]], *, head: bool, closing: bool
) -> None:
    headers = [
        (b"content-type", reply.media_type.encode()),
        (b"content-length", str(len(reply.body)).encode()),
    ]
    headers += [(key.encode("latin-1"), value.encode("latin-1")) for key, value in reply.headers.items()]
    if closing:  # the rest of the body is not read
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if head else reply.body})
