"""The service as a Ray Serve application: `import_path: raybert.serve.app:app` with the settings as `args`.

One model is one deployment, which takes HTTP itself. Several are a deployment each, behind one that takes HTTP and passes
requests on.
"""

import asyncio
import time
from collections.abc import Mapping
from typing import Any

from ray import serve

from raybert.config import ConfigError, load
from raybert.config.serving import ServeConfig, ServedModelSettings, ServeSettings, require_models
from raybert.corpus.paths import absolute
from raybert.serve.calls import Call
from raybert.serve.front import Front
from raybert.serve.http import Application, Reply
from raybert.serve.keys import Keys
from raybert.serve.loading import load_engine, load_index
from raybert.serve.model import MAX_REQUESTS, Limits, ServedModel
from raybert.serve.placement import range_of, settle

# Ray Serve replaces a replica after three checks without an answer: one that is stuck, within half a minute
_HEALTH_SECONDS = 8.0
_PERIOD_SECONDS = 2.0


_ELSEWHERE = {
    **dict.fromkeys(("host", "port"), "http_options of the file that is deployed"),
    "ingress": "the environment of the nodes (RAY_SERVE_ENABLE_HA_PROXY=1)",
}


class ModelReplica:
    """A process that holds a model; arguments are plain, as Ray Serve compares them to see what changed."""

    async def __init__(self, name: str, served: dict[str, Any], settings: dict[str, Any]) -> None:
        from raybert.serve.metrics import ModelMetrics

        config = load(ServedModelSettings, settings=served)
        self._settings = load(ServeSettings, settings=settings)
        self._name = name
        # the event loop stays free for Ray Serve's questions
        engine = await asyncio.to_thread(load_engine, config)
        limits = Limits(
            deadline=self._settings.deadline,
            truncate=self._settings.truncate,
            queue_tokens=None if self._settings.queue_tokens == "auto" else self._settings.queue_tokens,
            max_inputs=self._settings.max_inputs,
        )
        index = await asyncio.to_thread(load_index, self._settings.index, config, engine)
        self._model = await asyncio.to_thread(ServedModel, name, engine, limits, ModelMetrics(name), index)
        self._since = (time.monotonic(), 0.0)

    async def respond(self, call: Call) -> Reply:
        """See `raybert.serve.model.ServedModel`."""
        return await self._model.respond(call)

    async def info(self) -> dict[str, Any]:
        """What TEI's /info tells."""
        return await self._model.info()

    async def check(self, deadline: float) -> None:
        """Run the model."""
        await self._model.check(deadline)

    async def check_health(self) -> None:
        """Asked by Ray Serve, which replaces a replica that fails or does not answer."""
        self._model.metrics.tell(now=True)  # what came last before a pause
        await self._model.check(_HEALTH_SECONDS / 2)

    def record_autoscaling_stats(self) -> dict[str, float]:
        """For `raybert.serve.scaling.by_load`."""
        before, computed = self._since
        self._since = (time.monotonic(), self._model.computing_seconds)
        elapsed = max(1e-3, self._since[0] - before)
        return {
            "busy": min(1.0, (self._since[1] - computed) / elapsed),
            "waiting": self._model.waiting_seconds,
        }

    def __del__(self) -> None:
        if hasattr(self, "_model"):
            self._model.close()


class _Alone(ModelReplica):
    """One model, which takes HTTP."""

    def __serve_build_asgi_app__(self) -> Application:
        return application({self._name: self._model}, self._settings)


class _Router:
    """Several models, in deployments of their own."""

    def __init__(self, settings: dict[str, Any], **handles: Any) -> None:
        self._settings = load(ServeSettings, settings=settings)
        self._models = {name: _Remote(handle) for name, handle in handles.items()}

    def __serve_build_asgi_app__(self) -> Application:
        return application(self._models, self._settings)


class _Remote:
    """A model in another deployment, as a `raybert.serve.front.Backend`."""

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def respond(self, call: Call) -> Reply:
        return await self._handle.respond.remote(call)

    async def info(self) -> dict[str, Any]:
        return await self._handle.info.remote()

    async def check(self, deadline: float) -> None:
        await self._handle.check.remote(deadline)


def application(models: Mapping[str, Any], settings: ServeSettings) -> Application:
    """The ASGI application over models."""
    keys = Keys(settings.keys_from) if settings.keys_from else None
    front = Front(models, keys=keys, with_page=settings.page)
    return Application(front, front.refuse, max_body_bytes=settings.max_body_bytes)


def app(args: dict) -> serve.Application:
    """The application for settings as in YAML (`raybert.config.serving.ServeConfig`).

    Raises ValueError for settings that cannot be used. Here nobody knows who will be able to ask, so a service without
    keys must be asked for.
    """
    config: ServeConfig = load(ServeConfig, settings=args)
    require_models(config)
    for name in sorted({"host", "port", "ingress"} & config.serve.model_fields_set):
        raise ConfigError(
            f"serve.{name} is for raybert serve; on a cluster it belongs into {_ELSEWHERE[name]}"
        )
    if config.serve.keys_from is None and config.serve.anonymous is not True:
        raise ConfigError(
            "who may ask? give serve.keys_from=env:NAME or a file of keys, or serve.anonymous=true to let everybody"
        )
    return build(absolute(config))


def build(config: ServeConfig) -> serve.Application:
    """The application for settings that were checked."""
    settings = config.serve.model_dump(mode="json")
    served = settle(config)
    if len(served) == 1:
        ((name, one),) = served.items()
        made = serve.deployment(serve.ingress()(_Alone)).options(
            name=_safe(name), **_options(one, config.serve.deadline)
        )
        return made.bind(name, one.model_dump(mode="json"), settings)
    models = {
        name: serve.deployment(ModelReplica)
        .options(name=_safe(name), **_options(one, config.serve.deadline))
        .bind(name, one.model_dump(mode="json"), settings)
        for name, one in served.items()
    }
    router = serve.deployment(serve.ingress()(_Router)).options(
        name="router", max_ongoing_requests=MAX_REQUESTS, ray_actor_options={"num_cpus": 0}
    )
    return router.bind(settings, **models)


def _safe(name: str) -> str:
    """Ray Serve puts the names of deployments into names of its own."""
    return name.replace("/", "--")


def _options(served: ServedModelSettings, deadline: float) -> dict[str, Any]:
    """Of a deployment. What waits is bounded by the replica itself, in tokens; one that goes answers what it has first."""
    low, high = range_of(served)
    options: dict[str, Any] = {
        "max_ongoing_requests": MAX_REQUESTS,
        "health_check_period_s": _PERIOD_SECONDS,
        "health_check_timeout_s": _HEALTH_SECONDS,
        "graceful_shutdown_wait_loop_s": 1.0,
        "graceful_shutdown_timeout_s": deadline + 5,
        "max_surge_percent": 100,  # the new one answers before the old one goes
        "ray_actor_options": {
            "num_cpus": served.workers.cpus,
            "num_gpus": served.workers.gpus,
            **({"label_selector": dict(served.workers.labels)} if served.workers.labels else {}),
        },
    }
    if low == high:
        return {**options, "num_replicas": low}
    scaling = {
        "min_replicas": low,
        "max_replicas": high,
        "policy": {"policy_function": "raybert.serve.scaling:by_load"},
        "upscale_delay_s": 5.0,
        "downscale_delay_s": 120.0,
        "look_back_period_s": 15.0,
    }
    return {**options, "autoscaling_config": scaling}
