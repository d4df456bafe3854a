"""What tests ask a service with: a model as a replica holds it, an application, a port."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import uvicorn

from raybert.config import load
from raybert.config.serving import ServedModelSettings, ServeSettings
from raybert.serve.loading import load_engine
from raybert.serve.metrics import ModelMetrics
from raybert.serve.model import Limits, ServedModel


def load_model(
    path: str, name: str = "tiny", *, limits: Limits | None = None, **settings: Any
) -> ServedModel:
    """A model as a replica holds it, in float32 with one thread."""
    values = {"model.name": path, "model.dtype": "float32", "workers.cpus": 1, **settings}
    engine = load_engine(load(ServedModelSettings, settings=values))
    return ServedModel(name, engine, limits or Limits(), ModelMetrics(name))


def serve_settings(**settings: Any) -> ServeSettings:
    """Settings of a service."""
    return load(ServeSettings, settings=settings)


@contextmanager
def listening(app: Any) -> Iterator[str]:
    """The address of an ASGI application behind a port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            threading.Event().wait(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


def ask(app: Any, method: str, path: str, **options: Any) -> httpx.Response:
    """A request without a port."""

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **options)

    return asyncio.run(send())


def post(app: Any, path: str, **body: Any) -> httpx.Response:
    """JSON to a path."""
    return ask(app, "POST", path, json=body)
