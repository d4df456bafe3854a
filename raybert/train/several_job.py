"""What decides the numbers of a run on several tasks: each task's rows to examples; resolved once. Without torch."""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from raybert.config.finetune import FinetuneConfig
from raybert.config.several import name_settings
from raybert.tasks.known import data_side
from raybert.train.task_base import read_base
from raybert.train.task_job import (
    Prepared,
    make_prepared,
    refuse_settings,
)
from raybert.train.task_tables import Tables, read_tables


def member_configs(config: FinetuneConfig) -> dict[str, FinetuneConfig]:
    """The settings of every task as if it were the only one, by name, in the order of the names."""
    evaluate = config.train.evaluate.model_copy(update={"metric": "auto", "patience": None})
    train = config.train.model_copy(update={"evaluate": evaluate})
    return {
        name: config.model_copy(update={"task": member.task, "data": member.data, "train": train})
        for name, member in sorted(config.task.tasks.items())
    }


def member_job(job: Mapping[str, Any], name: str, config: FinetuneConfig) -> dict[str, Any]:
    """The job of one task, as `raybert.train.task_job` makes it for a task alone; `config` are its settings."""
    rows = {
        part.partition("/")[2]: found for part, found in job["rows"].items() if part.startswith(f"{name}/")
    }
    metric = data_side(config.task.name).main_figure(config.task)
    return {**job, "task": config.task.name, "labels": job["labels"][name], "rows": rows, "metric": metric}


def prepare_several(config: FinetuneConfig) -> Prepared:
    """Read the tables and make the examples of all tasks, with one tokenizer. Raises ValueError for what cannot be used."""
    members = member_configs(config)
    base = read_base(config, [own.task for own in members.values()])
    found = {}
    for name, own in members.items():
        with _named(name):
            found[name] = read_tables(own, base)
    metric = config.train.evaluate.metric
    examples, rejects, rows = (
        {f"{name}/{part}": value for name, own in found.items() for part, value in getattr(own, kind).items()}
        for kind in ("examples", "rejects", "rows")
    )
    labels: Any = {name: own.labels for name, own in found.items()}
    tables = Tables(labels, examples, rejects, rows)
    return make_prepared(config, base, tables, "mean" if metric == "auto" else metric)


def refuse_several(config: FinetuneConfig) -> None:
    """Raise ValueError for what could only fail later."""
    train = config.train
    for key, field in type(config.data).model_fields.items():
        if getattr(config.data, key) != field.default:
            raise ValueError(
                f"data.{key} means nothing with task.name=several; every task has its own: task.tasks.NAME.data.{key}"
            )
    if config.adapter.name in ("adalora", "prefix"):
        raise ValueError(
            f"adapter.name={config.adapter.name} does not work with task.name=several; take lora, bottleneck, bitfit or none"
        )
    if train.offload:
        raise ValueError("train.offload=true does not work with task.name=several; set train.offload=false")
    if train.on_spike != "ignore":
        raise ValueError(
            f"train.on_spike={train.on_spike} would compare losses of different tasks; with task.name=several set "
            "train.on_spike=ignore"
        )
    for name, own in member_configs(config).items():
        with _named(name):
            if not own.data.path:
                raise ValueError("data.path is missing: give it as data.path=... or in the config file")
            refuse_settings(own)
    _refuse_metric(config)


def _refuse_metric(config: FinetuneConfig) -> None:
    """Evaluation asks for figures that there are."""
    evaluate = config.train.evaluate
    data = {name: member.data for name, member in config.task.tasks.items()}
    held = sorted(name for name, own in data.items() if own.validation or own.validation_share)
    if evaluate.patience is not None and not held:
        raise ValueError(
            "train.evaluate.patience needs rows to evaluate on; set task.tasks.NAME.data.validation or validation_share"
        )
    name, _, figure = evaluate.metric.partition(".")
    if evaluate.metric not in ("auto", "mean", "loss") and not (figure and name in held):
        raise ValueError(
            f"train.evaluate.metric={evaluate.metric} must be mean, loss, or a figure of a task with validation rows: "
            + (", ".join(f"{name}.FIGURE" for name in held) or "there is none")
        )


@contextlib.contextmanager
def _named(member: str) -> Iterator[None]:
    """Errors about a task's settings name them as they stand in the whole tree."""
    try:
        yield
    except ValueError as error:
        raise ValueError(name_settings(str(error), member)) from None
