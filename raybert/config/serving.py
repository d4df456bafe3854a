"""Settings of serving."""

import re
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raybert.config.core import Settings, require
from raybert.config.groups import ModelSettings, WorkersSettings
from raybert.config.paths import Place

_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts that only this machine reaches."""


class ServedModelSettings(Settings):
    """A model of the service, and its replicas."""

    model: ModelSettings = Field(default_factory=ModelSettings)
    workers: WorkersSettings = Field(default_factory=WorkersSettings)
    batch_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="tokens in one forward pass; auto: 1024 a thread on a CPU, 32768 on a GPU"
    )


class ServeSettings(Settings):
    """The service."""

    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0: every one of this machine")
    port: int = Field(8000, ge=0, le=65535, description="port to listen on")
    ingress: Literal["proxy", "haproxy"] = Field(
        "proxy",
        description="what takes the requests: Ray Serve's own proxy, or HAProxy, several times faster (for production)",
    )
    name: str | None = Field(
        None, description="what clients call the model; default: the last part of model.name"
    )
    keys_from: str | None = Field(
        None,
        description="who may ask: env:NAME (a variable with keys apart by commas) or a file with a key a line",
    )
    anonymous: bool | Literal["auto"] = Field(
        "auto", description="answer without a key; auto: where only this machine can ask"
    )
    deadline: float = Field(30.0, gt=0, description="seconds that an answer may take")
    truncate: bool = Field(
        False, description="cut texts that are too long, unless a request says otherwise; false: refuse them"
    )
    queue_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="tokens that may wait for a replica, more is refused with 429; auto: what it computes in half of "
        "serve.deadline",
    )
    max_body_bytes: int = Field(32 * 2**20, ge=1, description="of a request")
    max_inputs: int = Field(10_000, ge=1, description="texts of a request")
    index: Place | None = Field(
        None, description="folder of vectors to search in, made by raybert embed with the same model"
    )
    page: bool = Field(True, description="a page to try the service in a browser, at /")

    @property
    def only_here(self) -> bool:
        """Whether no other machine can ask."""
        return self.host in LOOPBACK


class ServeConfig(ServedModelSettings):
    """raybert serve: an HTTP service for OpenAI and TEI clients."""

    models: dict[str, ServedModelSettings] = Field(
        {}, description="instead of model: several by the name that clients call them, each {model, workers}"
    )
    serve: ServeSettings = Field(default_factory=ServeSettings)

    @model_validator(mode="after")
    def _one_or_several(self) -> Self:
        if self.models and self.model.name:
            raise ValueError(
                "model.name and models exclude each other: give one model, or several under models.NAME"
            )
        for name, served in self.served.items():
            if not _NAME.fullmatch(name):
                raise ValueError(f"{name!r} cannot be the name of a model: take letters, digits and . _ - /")
            if self.models and not served.model.name:
                raise ValueError(f"models.{name}.model.name is missing")
        if self.models and self.serve.name:
            raise ValueError("serve.name is for one model; several have their names in models.NAME")
        if self.models and self.serve.index:
            raise ValueError("serve.index is for one model, the one that made the folder")
        return self

    @property
    def served(self) -> dict[str, ServedModelSettings]:
        """The models by the name that clients call them."""
        if self.models:
            return dict(self.models)
        name = self.serve.name or re.split(r"[/\\]", self.model.name.rstrip("/\\"))[-1] or "model"
        alone = ServedModelSettings(model=self.model, workers=self.workers, batch_tokens=self.batch_tokens)
        return {name: alone}


def require_models(config: ServeConfig) -> None:
    """Raise ConfigError where there is nothing to serve."""
    if not config.models:
        require(config, "model.name")
