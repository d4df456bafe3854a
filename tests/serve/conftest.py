"""A tiny encoder behind the service, without Ray."""

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import httpx
import pytest

from raybert.config import load
from raybert.config.serving import ServedModelSettings, ServeSettings
from raybert.serve.app import application
from raybert.serve.loading import load_engine
from raybert.serve.metrics import ModelMetrics
from raybert.serve.model import Limits, ServedModel
from tests.encoder.tiny import tiny_model
from tests.serve.services import load_model, serve_settings


@pytest.fixture(scope="session")
def engine(tiny: str) -> Any:
    """Of a tiny encoder in float32."""
    settings = {"model.name": tiny, "model.dtype": "float32", "workers.cpus": 1}
    return load_engine(load(ServedModelSettings, settings=settings))


@pytest.fixture
def served(engine: Any) -> Iterator[Callable[..., ServedModel]]:
    """Makes models of the engine under limits."""
    made = []

    def make(name: str = "tiny", **limits: Any) -> ServedModel:
        made.append(ServedModel(name, engine, Limits(**limits), ModelMetrics(name)))
        return made[-1]

    yield make
    for model in made:
        model.close()


def client(*models: ServedModel, **settings: Any) -> httpx.AsyncClient:
    """A client of the application over models."""
    app = application({model.name: model for model in models}, ServeSettings(**settings))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")


def run(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """In an event loop of its own."""
    return asyncio.run(coroutine)


@pytest.fixture(scope="session")
def prompted(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An encoder with prompts for queries and documents."""
    prompts = {"query": "find text ", "document": "text "}
    return str(tiny_model(tmp_path_factory.mktemp("prompted") / "model", prompts=prompts, seed=1))


@pytest.fixture(scope="session")
def encoder_model(prompted: str) -> ServedModel:
    """An encoder with prompts, called tiny."""
    return load_model(prompted, batch_tokens=256)


@pytest.fixture(scope="session")
def encoder_app(encoder_model: ServedModel) -> Any:
    """The service of that encoder alone."""
    return application({"tiny": encoder_model}, serve_settings())
