"""What a job needs of the nodes, by its settings."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from raybert.config import require
from raybert.config.finetune import FinetuneConfig
from raybert.config.serving import ServeConfig, require_models
from raybert.config.training import PretrainConfig
from raybert.corpus.paths import absolute

_TRAINING = ("pretrain", "finetune")


@dataclass(frozen=True)
class Model:
    """A model or tokenizer: `setting` is what names it, `config` what the verb loads it with."""

    setting: str
    name: str
    revision: str | None
    code: bool
    config: Any


@dataclass(frozen=True)
class Needs:
    """What is looked at beside the cluster itself.

    Attributes:
        verb: "" where the cluster alone is examined.
        reads: (setting, path) that the nodes that work read; `driver_reads` those that only the driver does.
        writes: the folder that all of them write.
        kernels: model.kernels where C code would be built, else "".
        automatic: the setting that is left to the hardware, model.dtype or train.precision, else "".
        binds: (host, port) of the service.
    """

    verb: str = ""
    config: Any = None
    reads: tuple[tuple[str, str], ...] = ()
    driver_reads: tuple[tuple[str, str], ...] = ()
    writes: str = ""
    models: tuple[Model, ...] = ()
    kernels: str = ""
    automatic: str = ""
    offload: bool = False
    binds: tuple[tuple[str, int], ...] = ()

    @property
    def training(self) -> bool:
        """Whether the workers wait for each other."""
        return self.verb in _TRAINING

    @property
    def workers(self) -> Any:
        """The group of settings."""
        return self.config.workers if self.config is not None else None

    @property
    def labels(self) -> Mapping[str, str]:
        """Of the nodes that encoders run on; of a service's, whose models may differ, none."""
        return {} if self.workers is None or self.verb == "serve" else self.workers.labels

    @property
    def reader_labels(self) -> Mapping[str, str]:
        """Of the nodes that read for them; where workers read for themselves, theirs."""
        if self.workers is None or self.verb == "serve":
            return {}
        return self.workers.labels if self.training else self.workers.reader_labels

    @property
    def grows(self) -> bool:
        """Whether an autoscaler is to bring nodes."""
        return self.workers is not None and bool(self.workers.wait)

    @property
    def wants_gpus(self) -> bool:
        """Whether the settings insist on GPUs: auto takes what there is."""
        asked = (
            [one.workers for one in self.config.served.values()] if self.verb == "serve" else [self.workers]
        )
        return any(each.gpus != "auto" and each.gpus > 0 for each in asked if each is not None)

    @property
    def refuses_gpus(self) -> bool:
        """Whether the settings want none."""
        return self.verb == "prepare" or (self.workers is not None and self.workers.gpus == 0)


def needs_of(verb: str, config: Any) -> Needs:
    """What the job `verb` needs with these settings; verb "" for none.

    Raises ValueError for settings that are missing, and those that the verb would refuse before it starts.
    """
    if not verb:
        return Needs()
    if verb == "serve":
        require_models(config)
    else:
        several = verb == "finetune" and config.task.name == "several"
        named = [] if verb == "pretrain" else ["model.name"]
        require(config, *named, *([] if several else ["data.path"]), "output.path")
    config = absolute(config)
    _refuse_settings(config)
    found = Needs(
        verb=verb,
        config=config,
        models=_models(verb, config),
        writes="" if verb == "serve" else config.output.path,
    )
    if verb == "serve":
        index = (("serve.index", config.serve.index),) if config.serve.index else ()
        port = ((config.serve.host, config.serve.port),) if config.serve.port else ()
        return replace(found, **_numbers(config.model), reads=index, binds=port)
    if verb == "pretrain":
        paths = [("data.path", config.data.path)]
        paths += [("train.phases", phase.path) for phase in config.train.phases if phase.path]
        return replace(found, **_precision(config), reads=tuple(paths))
    if verb == "finetune":
        return replace(found, **_precision(config), driver_reads=_tables(config))
    paths = tuple(("data.path", path) for path in config.data.paths)
    if verb == "evaluate":
        return replace(found, **_numbers(config.model), driver_reads=paths)
    numbers = {} if verb == "prepare" else _numbers(config.model)
    return replace(found, **numbers, reads=paths)


def _refuse_settings(config: Any) -> None:
    if isinstance(config, PretrainConfig):
        from raybert.train.job import refuse_settings

        refuse_settings(config)
    elif isinstance(config, FinetuneConfig):
        from raybert.train.task_job import refuse_settings as refuse_task

        refuse_task(config)


def _tables(config: FinetuneConfig) -> tuple[tuple[str, str], ...]:
    """The driver makes examples of the tables, and lays them down in the output."""
    groups = {"": config.data}
    if config.task.name == "several":
        groups = {f"task.tasks.{name}.": member.data for name, member in config.task.tasks.items()}
    found = []
    for prefix, data in groups.items():
        found += [(f"{prefix}data.path", path) for path in data.paths]
        found += [(f"{prefix}data.validation", path) for path in data.validation_paths]
    return tuple(found)


def _models(verb: str, config: Any) -> tuple[Model, ...]:
    if isinstance(config, ServeConfig):
        where = "models.{}.model.name" if config.models else "model.name"
        return tuple(_model(where.format(name), one) for name, one in config.served.items())
    if verb == "evaluate" and config.model.before:
        other = config.model.model_copy(update={"name": config.model.before, "revision": None})
        before = config.model_copy(update={"model": other})
        return _model("model.name", config), _model("model.before", before)
    return (_model("model.name", config),) if config.model.name else ()


def _model(setting: str, config: Any) -> Model:
    group = config.model
    code = getattr(group, "trust_remote_code", False)
    return Model(setting, group.name, group.revision, code, config)


def _numbers(model: Any) -> dict[str, str]:
    """Of a model that computes vectors or predictions."""
    automatic = "model.dtype" if model.dtype == "auto" else ""
    kernels = getattr(model, "kernels", "")
    wanted = kernels in ("auto", "native") and model.dtype in ("auto", "bfloat16")
    return {"automatic": automatic, "kernels": kernels if wanted else ""}


def _precision(config: Any) -> dict[str, Any]:
    automatic = "train.precision" if config.train.precision == "auto" else ""
    return {"automatic": automatic, "offload": config.train.offload}
