"""What decides the numbers of a fine-tuning run: rows to examples, labels, lengths; resolved once. Without torch."""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from raybert.config import refuse_differences
from raybert.config.finetune import FinetuneConfig
from raybert.config.several import SeveralSettings
from raybert.corpus.rejects import count_reasons
from raybert.encoder.folders import Folder, read_folder, resolve
from raybert.pretrain.counter import permutation
from raybert.pretrain.tokenizer_folder import read_tokenizer
from raybert.tasks.columns import chosen
from raybert.tasks.examples import Examples
from raybert.tasks.heads import longest_input
from raybert.tasks.known import MODELS, data_side
from raybert.tasks.rows import read_labelled, refuse_unread
from raybert.tasks.storage import to_bytes
from raybert.tasks.table import Labelled
from raybert.train.combinations import (
    KEPT_APART,
    refuse_combinations,
    refuse_family,
    refuse_levers,
    refuse_precision,
)
from raybert.train.example_stream import Groups, refuse_longer, rows_of
from raybert.train.generation_job import describe_decoder
from raybert.train.job import FREE, steps_of
from raybert.train.task_levers import refuse_task_levers
from raybert.train.tracking import refuse_missing

EXAMPLES, TOKENIZER, REJECTS = "_raybert/examples", "_raybert/tokenizer", "_rejects"

EARLIER = "earlier"
"""The part of the examples that is of an earlier task (regularize.ewc)."""

_PARTS = {"train": "data.path", "validation": "data.validation", EARLIER: "regularize.ewc_data"}
_SPLIT, _SAMPLE = (
    1,
    2,
)  # names of the random numbers that choose the validation rows, and those of the earlier task


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


@dataclass(frozen=True)
class Base:
    """The model to begin with: its folder and the commit of one of the hub, its config.json, its tokenizer with the tasks'
    own tokens (`new_tokens`), the tokenizer's files, and the longest row in tokens."""

    folder: Folder
    revision: str | None
    shape: Mapping[str, Any]
    tokenizer: Tokenizer
    new_tokens: list[int]
    files: Mapping[str, bytes]
    longest: int


@dataclass(frozen=True)
class Tables:
    """A task's labels and, by part (`train`, `validation`), its examples, the rejected rows, and how many of each."""

    labels: list[str]
    examples: Mapping[str, Examples]
    rejects: Mapping[str, pa.Table]
    rows: Mapping[str, Any]


def prepare_job(config: FinetuneConfig) -> Prepared:
    """Read the tables and make the examples. Raises ValueError for a table, model or setting that cannot be used."""
    if isinstance(config.task, SeveralSettings):
        from raybert.train.several_job import prepare_several

        return prepare_several(config)
    base, parts = read_base(config, [config.task]), None
    if hasattr(data_side(config.task.name), "settle"):
        parts = _tables(config)
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


def read_base(config: FinetuneConfig, tasks: Sequence[Any]) -> Base:
    """The model that the settings name, with what these tasks add to its tokenizer."""
    place, revision = resolve(config.model.name, config.model.revision, code=config.model.trust_remote_code)
    folder = read_folder(place)
    if folder.base is not None:
        raise ValueError(
            f"model.name={config.model.name} is an adapter; begin with its base, {folder.base.path}, or with a model that was "
            "trained as a whole"
        )
    path = folder.transformer
    shape = _shape(path)
    refuse_family(config, shape)
    words = read_tokenizer(path)
    tokenizer = Tokenizer.from_str(words.json)
    files, known = dict(words.files), set(tokenizer.get_vocab().values())
    for task in tasks:
        if hasattr(side := data_side(task.name), "add_markers"):
            side.add_markers(tokenizer, task)
            files["tokenizer.json"] = tokenizer.to_str(pretty=True)
    found = {f"{TOKENIZER}/{name}": text.encode() for name, text in files.items()}
    new = sorted(set(tokenizer.get_vocab().values()) - known)
    taken = config.adapter.tokens if config.adapter.name == "prefix" else 0
    longest = longest_input(shape, config.model.max_length, None, config.model.name, taken=taken)
    return Base(folder, revision, shape, tokenizer, new, found, longest)


def read_tables(config: FinetuneConfig, base: Base, tables: Mapping[str, Labelled] | None = None) -> Tables:
    """Rows to examples; `tables` are those of the settings, where they are read already."""
    side, tables = data_side(config.task.name), tables or _tables(config)
    labels = side.find_labels(tables["train"].table, config.task)
    if config.regularize.ewc:
        _refuse_other_head(config, base.shape, labels)
    examples, rejected, rows = {}, {}, {}
    for part, table in tables.items():
        setting = setting_of(part)
        made, reasons = _examples(config, side, table, base.tokenizer, labels, base.longest, setting)
        if part == "train" and hasattr(side, "weigh"):
            made = side.weigh(made, labels, config.task)
        rejects = table.rejects(reasons)
        _refuse_rejects(config, rejects, len(table), setting)
        _refuse_nothing(made, rejects, setting)
        examples[part], rejected[part] = made, rejects
        rows[part] = {
            "rows": len(table),
            "used": len(table) - len(rejects),
            "rejected": count_reasons(rejects),
            "examples": len(made),
            "tokens": int(made.ids.offsets[-1]),
            "truncated": 0 if made.cut is None else len(np.unique(made.row[made.cut])),
            "repaired": _repaired(side, table, labels, config.task),
        }
    return Tables(labels, examples, rejected, rows)


def _repaired(side: Any, table: Labelled, labels: list[str], task: Any) -> int:
    """Rows whose truth was wrong, and is used as the task put it right."""
    if not hasattr(side, "repaired_rows"):
        return 0
    return int(
        side.repaired_rows(table.table.take(np.flatnonzero(chosen(table.reasons))), labels, task).sum()
    )


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
    files |= base.files
    files |= {
        f"{REJECTS}/{part}.parquet": _parquet(found) for part, found in tables.rejects.items() if len(found)
    }
    return Prepared(job, tables.examples, files)


def setting_of(part: str) -> str:
    """The setting that names the rows of a part: `train`, `validation`, or of one of several tasks `NAME/train`."""
    member, _, name = part.rpartition("/")
    setting = _PARTS[name]
    return f"task.tasks.{member}.{setting}" if member else setting


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


def _tables(config: FinetuneConfig) -> dict[str, Labelled]:
    """The rows to train on and, if there are any, those to evaluate on, and those of an earlier task."""
    data, share = config.data, config.data.validation_share
    found = {"train": _read(config, data.paths)}
    if data.validation:
        found["validation"] = _read(config, data.validation_paths)
    elif share:
        found = _split(found["train"], share, config.train.seed)
    if config.regularize.ewc:
        earlier = _read(config, config.regularize.ewc_paths)
        drawn = permutation(len(earlier), config.train.seed, _SAMPLE)[: config.regularize.ewc_rows]
        found[EARLIER] = earlier.take(np.sort(drawn))
    return found


def _split(table: Labelled, share: float, seed: int) -> dict[str, Labelled]:
    order = permutation(len(table), seed, _SPLIT)
    held = min(max(1, round(share * len(table))), len(table) - 1)
    if held < 1:
        raise ValueError(f"data.validation_share={share:g} of {len(table)} rows leaves none; give more rows")
    return {"train": table.take(np.sort(order[held:])), "validation": table.take(np.sort(order[:held]))}


def _refuse_other_head(config: FinetuneConfig, shape: Mapping[str, Any], labels: list[str]) -> None:
    """What an earlier task needs is told by the model that was trained for it, with its head."""
    if shape.get("label2id") != {label: i for i, label in enumerate(labels)}:
        raise ValueError(
            "regularize.ewc needs a model that was trained for the earlier task, with the labels of data.path; "
            f"{config.model.name} has no head for them"
        )


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


def _read(config: FinetuneConfig, paths: list[str]) -> Labelled:
    """The table in the columns that the task asks for."""
    return read_labelled(paths, config.data, config.task.name, config.task)


def _examples(
    config: FinetuneConfig,
    side: Any,
    table: Labelled,
    tokenizer: Tokenizer,
    labels: list[str],
    longest: int,
    setting: str,
) -> tuple[Examples, np.ndarray]:
    """Examples of the rows that could be read; reasons [rows] of all."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    good = np.flatnonzero([reason is None for reason in table.reasons])
    rows = table.table.take(good)
    try:
        made, found = side.prepare(rows, tokenizer, labels, config.task, max_length=longest)
    except ValueError as error:
        raise ValueError(f"{setting}: {error}") from None
    reasons = table.reasons.copy()
    reasons[good] = found
    if setting == "data.validation" and hasattr(side, "with_truth"):
        made = side.with_truth(made, rows, labels, config.task)
    return replace(made, row=good[made.row]), reasons


def _shape(path: Path) -> dict[str, Any]:
    try:
        return json.loads((path / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"model.name: {path / 'config.json'} cannot be read: {error}") from error


def _refuse_rejects(config: FinetuneConfig, rejects: pa.Table, rows: int, setting: str) -> None:
    most = config.output.max_rejects
    if most is None:
        return
    allowed = most * rows if isinstance(most, float) and most < 1 else most
    if len(rejects) > allowed:
        first = rejects["reason"][0].as_py()
        raise ValueError(
            f"{setting}: {len(rejects):,} of {rows:,} rows are rejected, the first because {first}; "
            f"output.max_rejects={most:g} allows {allowed:g}"
        )


def _refuse_nothing(made: Examples, rejects: pa.Table, setting: str) -> None:
    if len(made):
        return
    if not len(rejects):
        raise ValueError(f"{setting} has no rows")
    counted = Counter(rejects["reason"].to_pylist())
    reason, times = counted.most_common(1)[0]
    raise ValueError(f"{setting}: no row can be used: {times:,} x {reason}")


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink)
    return sink.getvalue()
