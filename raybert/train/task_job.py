"""What decides the numbers of a fine-tuning run: rows to examples, labels, lengths; resolved once. Without torch."""

import hashlib
import io
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raybert.config import refuse_differences
from raybert.config.finetune import FinetuneConfig
from raybert.config.several import SeveralSettings
from raybert.tasks.examples import Examples
from raybert.tasks.known import MODELS, data_side
from raybert.tasks.rows import refuse_unread
from raybert.tasks.storage import to_bytes
from raybert.tasks.table import Labelled
from raybert.train.combinations import (
    KEPT_APART,
    refuse_combinations,
    refuse_levers,
    refuse_precision,
)
from raybert.train.example_stream import Groups, refuse_longer, rows_of
from raybert.train.generation_job import describe_decoder
from raybert.train.job import FREE, steps_of
from raybert.train.task_base import Base, read_base
from raybert.train.task_levers import refuse_task_levers
from raybert.train.task_tables import read_parts, read_tables, setting_of
from raybert.train.tracking import refuse_missing

EXAMPLES, TOKENIZER, REJECTS = "_raybert/examples", "_raybert/tokenizer", "_rejects"


@dataclass(frozen=True)
class Prepared:
    """A job (JSON), the examples of its parts (`train`, `validation`; of several tasks `NAME/train` ...), and the files that
    belong in the run's folder."""

    job: dict[str, Any]
    examples: Mapping[str, Examples]
    files: Mapping[str, bytes]


def refuse_settings(config: FinetuneConfig) -> None:
    """Raise ValueError for what could only fail later."""
    refuse_levers(config)
    if isinstance(config.task, SeveralSettings):
        from raybert.train.several_job import refuse_several

        refuse_several(config)
        return
    train = config.train
    if config.task.name not in MODELS:
        raise ValueError(
            f"task.name={config.task.name} cannot be trained here; take one of {', '.join(MODELS)}"
        )
    refuse_combinations(
        optimizer=train.optimizer, zero=train.zero, offload=train.offload, precision=train.precision
    )
    refuse_missing(config.track)
    refuse_task_levers(config)
    refuse_unread(config.task.name, config.data)
    if train.evaluate.patience is not None and not (config.data.validation or config.data.validation_share):
        raise ValueError(
            "train.evaluate.patience needs rows to evaluate on; set data.validation or data.validation_share"
        )


def prepare_job(config: FinetuneConfig) -> Prepared:
    """Read the tables and make the examples. Raises ValueError for a table, model or setting that cannot be used."""
    if isinstance(config.task, SeveralSettings):
        from raybert.train.several_job import prepare_several

        return prepare_several(config)
    base, parts = read_base(config, [config.task]), None
    if hasattr(data_side(config.task.name), "settle"):
        parts = read_parts(config)
        config, base = _settled(config, base, parts)
    decoder, files = describe_decoder(config) if config.task.name == "generation" else ({}, {})
    tables = read_tables(config, base, parts)
    metric = config.train.evaluate.metric
    metric = data_side(config.task.name).main_figure(config.task) if metric == "auto" else metric
    found = make_prepared(config, base, tables, metric)
    if not decoder:
        return found
    own = {f"{TOKENIZER}/{name}": content for name, content in files.items()}
    return replace(found, job={**found.job, "decoder": decoder}, files={**found.files, **own})


def _settled(
    config: FinetuneConfig, base: Base, tables: Mapping[str, Labelled]
) -> tuple[FinetuneConfig, Base]:
    """Settings with what the defaults of the task stand for in this model folder and these tables; and the longest row,
    which is that of the folder unless it is set."""
    found = {
        setting_of(part): table.table.filter(
            pa.array([reason is None for reason in table.reasons], pa.bool_())
        )
        for part, table in tables.items()
    }
    task = data_side(config.task.name).settle(config.task, base.folder, found)
    longest = base.longest
    if config.model.max_length is None:
        longest = min(longest, base.folder.max_seq_length or longest)
    return config.model_copy(update={"task": task}), replace(base, longest=longest)


def make_prepared(config: FinetuneConfig, base: Base, tables: Any, metric: str) -> Prepared:
    """The job and its files; `tables` are `Tables`, of one task or of several (labels by task, parts as `NAME/train`)."""
    files = {f"{EXAMPLES}/{part}.parquet": bytes(to_bytes(made)) for part, made in tables.examples.items()}
    job = {
        "task": config.task.name,
        "settings": config.task.model_dump(mode="json"),
        "requested": deciding_settings(config),
        "labels": tables.labels,
        "family": base.shape["model_type"],
        "max_length": base.longest,
        "vocabulary": base.tokenizer.get_vocab_size(),
        "new_tokens": base.new_tokens,
        "metric": metric,
        "rows": tables.rows,
        "digests": {
            part: hashlib.blake2b(files[f"{EXAMPLES}/{part}.parquet"], digest_size=16).hexdigest()
            for part in tables.examples
        },
    }
    if config.adapter.name in KEPT_APART:
        own = {"name": config.model.name, "revision": base.revision}
        job["base"] = {**own, "digest": base.folder.digest()}
    files |= {f"{TOKENIZER}/{name}": text.encode() for name, text in base.files.items()}
    files |= {
        f"{REJECTS}/{part}.parquet": _parquet(found) for part, found in tables.rejects.items() if len(found)
    }
    return Prepared(job, tables.examples, files)


def complete_job(
    prepared: Prepared, config: FinetuneConfig, *, gpu: bool, workers: int, precision: str = "float32"
) -> None:
    """Fill in what depends on the hardware, and the length of the run. Raises ValueError for what does not fit it.

    `precision` is what train.precision=auto stands for there.
    """
    train, job = config.train, prepared.job
    job["batch_tokens"] = (32768 if gpu else 4096) if config.batch_tokens == "auto" else config.batch_tokens
    job["precision"] = precision if train.precision == "auto" else train.precision
    if job["precision"] == "float16" and not gpu:
        raise ValueError("train.precision=float16 needs GPUs; set train.precision=auto")
    job["parts"] = workers
    groups = groups_of(job["task"])
    for part, made in prepared.examples.items():
        refuse_longer(made, job["batch_tokens"], groups if part == "train" else "none")
    trained = [made for part, made in prepared.examples.items() if part.rpartition("/")[2] == "train"]
    an_epoch = sum(-(-len(rows_of(made, groups)) // train.batch_size) for made in trained)
    steps = train.steps or max(1, round((train.epochs or 3) * an_epoch))
    refuse_precision(config, job["precision"], steps)
    schedule = {
        "name": train.schedule,
        "steps": steps,
        "lr": train.lr,
        "warmup": steps_of(train.warmup, steps),
        "decay": steps_of(train.decay, steps),
        "final": train.final,
    }
    tail = schedule["decay"] if train.schedule == "wsd" else 0
    if schedule["warmup"] + tail > steps:
        raise ValueError(
            f"train.warmup={train.warmup:g} and train.decay={train.decay:g} are longer than the {steps} steps of the "
            "run; lower them"
        )
    job["phases"] = [{"number": 0, "steps": steps, "lr": train.lr, "schedule": schedule}]


def groups_of(task: str) -> Groups:
    """What becomes of the sequences of a row in training (see `ExampleStream`)."""
    return "none" if task == "several" else getattr(data_side(task), "GROUPS", "none")


def deciding_settings(config: FinetuneConfig) -> dict[str, Any]:
    """The settings on which the weights depend, beside the examples."""
    values = config.model_dump(mode="json", exclude={"workers", "dry_run", "track", "data", "output"})
    for name in (*FREE, "seeds"):
        values["train"].pop(name)
    values["regularize"].pop("ewc_data")  # its examples are compared
    for member in values["task"].get("tasks", {}).values():
        member.pop("data")
    return values


def refuse_other_job(was: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    """Raise ValueError if the folder was started with settings or rows that give another model."""
    refuse_differences(where, was["requested"], now["requested"])
    if was.get("base", {}).get("digest") != now.get("base", {}).get("digest"):
        raise ValueError(
            f"{where} was started from other weights than are in {now['base']['name']} now; put them back, or use another "
            "output.path to start afresh"
        )
    if was["labels"] != now["labels"]:
        raise ValueError(
            f"{where} was started with other labels than the data has now; restore the data, or use another output.path"
        )
    for part in was["digests"].keys() | now["digests"].keys():
        if was["digests"].get(part) != now["digests"].get(part):
            raise ValueError(
                f"{where} was started with other rows than are in {setting_of(part)} now; restore them, or use another "
                "output.path to start afresh"
            )


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()
