"""raybert evaluate: one or two models with a head on a labelled table, and the report that compares them.

The driver makes the examples and needs no torch; each worker takes a part of them, and their counts are added up.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from raybert.config import load, require
from raybert.config.predicting import EvaluateConfig, HeadModelSettings
from raybert.corpus.filesystems import public_uri
from raybert.corpus.progress import duration
from raybert.corpus.rejects import count_reasons
from raybert.corpus.session import Pool, ray_session, worker_pool
from raybert.corpus.store import Store
from raybert.evaluate.report import write_report
from raybert.evaluate.result import Evaluation
from raybert.evaluate.tables import comparison_table, label_table
from raybert.resolve import on_workers, prepare_process
from raybert.resolve_head import HeadFolder, load_predictor, local_folder, open_folder, pick
from raybert.tasks.classify import labels_of_rows
from raybert.tasks.examples import Examples
from raybert.tasks.heads import Head
from raybert.tasks.known import data_side
from raybert.tasks.rows import read_rows
from raybert.tasks.table import Labelled

_BLOCK = 4096  # rows whose outputs are in memory at once
_PER_WORKER = 1024  # rows for which it pays to load the model once more
_SHOWN = 10


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation found.

    Attributes:
        before, after: the model to compare with, or None, and the model.
        rejected: rows that could not be used, by reason.
        path: where the report lies.
        seconds: in all.
    """

    before: Evaluation | None
    after: Evaluation
    rejected: Mapping[str, int]
    path: str
    seconds: float

    def __str__(self) -> str:
        lines = [label_table(self.after, digits=4)] if self.after.per_label else []
        lines.append(comparison_table(self.before, self.after))
        total = self.after.rows + sum(self.rejected.values())
        facts = [f"{total:,} rows = {self.after.rows:,} evaluated + {sum(self.rejected.values()):,} rejected"]
        facts += [f"  {count:,} x {reason}" for reason, count in self.rejected.items()]
        facts.append(f"{duration(self.seconds)}, report in {self.path}/report.html")
        return "\n".join([*lines, *facts])


@dataclass(frozen=True)
class _Predicted:
    """One model on some rows: the state of the metric, and per row what was predicted and how sure it was."""

    state: str
    predicted: list[Any]
    probability: list[float] | None
    seconds: float


def main(config: EvaluateConfig) -> int:
    """The command: evaluate, print the tables. Returns 0."""
    print(evaluate(config))
    return 0


def evaluate(config: EvaluateConfig | Mapping[str, Any]) -> Evaluated:
    """Predict a labelled table with a model, and with `model.before` if it is given, and write the report.

    Writes report.html, its pictures and metrics.json (see `raybert.evaluate.report`).

    Raises:
        ValueError: settings, a model or a table that cannot be used; labels that a model does not know are listed.
        RuntimeError: a model does not load or its process died.
        OSError: the output cannot be written.
    """
    if not isinstance(config, EvaluateConfig):
        config = load(EvaluateConfig, settings=config)
    require(config, "model.name", "data.path", "output.path")
    started = time.monotonic()
    models = _models(config)
    folders = {name: _open(config, model) for name, model in models.items()}
    head = folders["after"].head
    if "before" in folders:
        _refuse_other_head(folders["before"].head, head, models)
    table = read_rows(config.data.paths, config.data)
    _refuse_unknown(table, head, models["after"])
    found: dict[str, Evaluation] = {}
    changed: dict[str, Any] = {}
    with ray_session():
        pool = worker_pool(config.workers, reading=False)
        for name, model in models.items():
            examples, reasons = _examples(table, folders[name], head)
            parts = _predict(config, model, folders[name], head, examples, pool)
            found[name] = _evaluation(name, model, head, parts, len(examples))
            changed |= _columns(name, parts)
            used = examples.row
    rejects = table.rejects(reasons)
    predictions = pa.table({**_shown(table, used, head), **changed})
    write_report(Store(config.output.path), found.get("before"), found["after"], changed_rows=predictions)
    seconds = time.monotonic() - started
    where = public_uri(config.output.path)
    return Evaluated(found.get("before"), found["after"], count_reasons(rejects), where, seconds)


def _models(config: EvaluateConfig) -> dict[str, HeadModelSettings]:
    """`before`, if there is one, and `after`."""
    values = config.model.model_dump(exclude={"before"})
    after = HeadModelSettings(**{**values, "name": _absolute(values["name"])})
    if config.model.before is None:
        return {"after": after}
    before = after.model_copy(update={"name": _absolute(config.model.before), "revision": None})
    return {"before": before, "after": after}


def _absolute(name: str) -> str:
    """A folder means the same on every worker, whatever its working directory."""
    path = os.path.expanduser(name)
    return os.path.abspath(path) if os.path.isdir(path) else name


def _open(config: EvaluateConfig, model: HeadModelSettings) -> HeadFolder:
    return open_folder(model, kind=config.task.kind, separator=config.task.separator)


def _refuse_other_head(before: Head, after: Head, models: Mapping[str, HeadModelSettings]) -> None:
    """The order of the labels may differ."""
    if before.settings.kind != after.settings.kind:
        raise ValueError(
            f"model.before={models['before'].name} is for task.kind={before.settings.kind}, "
            f"{models['after'].name} for {after.settings.kind}; set task.kind if one of them is wrong"
        )
    if differ := sorted(set(before.labels) ^ set(after.labels)):
        raise ValueError(
            f"model.before={models['before'].name} has other labels than {models['after'].name}; they differ in: "
            f"{_listed(differ)}"
        )


def _refuse_unknown(table: Labelled, head: Head, model: HeadModelSettings) -> None:
    if head.settings.kind == "regression":
        return
    good = np.flatnonzero([reason is None for reason in table.reasons])
    found = set(chain.from_iterable(labels_of_rows(table.table.take(good), head.settings)))
    if unknown := sorted(found - set(head.labels)):
        raise ValueError(
            f"data.label has labels that model.name={model.name} does not know: {_listed(unknown)}; it knows: "
            f"{_listed(head.labels)}"
        )


def _listed(labels: list[str]) -> str:
    more = f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
    return ", ".join(labels[:_SHOWN]) + more


def _examples(table: Labelled, folder: HeadFolder, head: Head) -> tuple[Examples, np.ndarray]:
    """With targets in the order of `head`; reasons [rows] of all rows. Raises ValueError if no row can be used."""
    good = np.flatnonzero([reason is None for reason in table.reasons])
    made, found = data_side(head.task).prepare(
        table.table.take(good),
        Tokenizer.from_str(folder.tokenizer),
        head.labels,
        head.settings,
        max_length=folder.max_length,
    )
    reasons = table.reasons.copy()
    reasons[good] = found
    if not len(made):
        first = next((reason for reason in reasons if reason is not None), "it has no rows")
        raise ValueError(f"data.path: no row can be evaluated: {first}")
    return Examples(made.ids, made.boundary, good[made.row], made.targets), reasons


def _predict(
    config: EvaluateConfig,
    model: HeadModelSettings,
    folder: HeadFolder,
    head: Head,
    examples: Examples,
    pool: Pool,
) -> list[_Predicted]:
    """On as many workers as pays, in the order of the examples."""
    count = max(1, min(pool.high, len(examples) // _PER_WORKER))
    parts = [examples.take(rows) for rows in np.array_split(np.arange(len(examples)), count)]
    order = [folder.head.labels.index(label) for label in head.labels]
    settings = (folder.revision, folder.head, head, order, model, config.batch_tokens, pool.cpus)
    return on_workers(_predict_part, [(part, *settings) for part in parts], pool, model.name)


def _predict_part(
    examples: Examples,
    revision: str | None,
    own: Head,
    head: Head,
    order: list[int],
    model: HeadModelSettings,
    batch_tokens: int | str,
    threads: int,
) -> _Predicted:
    """In a worker: `own` is the model's head, whose outputs `order` brings into the order of `head`."""
    prepare_process()
    device, dtype, tokens = pick(model.dtype, batch_tokens)
    predictor = load_predictor(
        local_folder(model, revision).transformer,
        own,
        model,
        device=device,
        dtype=dtype,
        batch_tokens=tokens,
        threads=threads,
    )
    side = data_side(head.task)
    scores, rows = side.Scores(head.labels, head.settings), []
    started = time.monotonic()
    for at in range(0, len(examples), _BLOCK):
        block = examples.take(np.arange(at, min(at + _BLOCK, len(examples))))
        outputs = {"logits": predictor(block)["logits"][:, order]}
        if not np.isfinite(outputs["logits"]).all():
            raise ValueError(
                f"model.name={model.name} gives outputs that are not finite; set model.dtype=float32"
            )
        scores.add(outputs, block)
        rows += side.decode(outputs, head.labels, head.settings)
    key = {"single": "label", "multi": "labels", "regression": "value"}[head.settings.kind]
    sure = [row["score"] for row in rows] if head.settings.kind == "single" else None
    return _Predicted(scores.to_json(), [row[key] for row in rows], sure, time.monotonic() - started)


def _evaluation(
    name: str, model: HeadModelSettings, head: Head, parts: list[_Predicted], rows: int
) -> Evaluation:
    scores = data_side(head.task).Scores(head.labels, head.settings)
    for part in parts:
        scores.merge(part.state)
    return Evaluation.of(
        scores.counted,
        name=name,
        task=head.task,
        model=public_uri(model.name) if "://" in model.name else model.name,
        rows=rows,
        seconds=max(part.seconds for part in parts),
    )


def _columns(name: str, parts: list[_Predicted]) -> dict[str, Any]:
    """Of the table of predictions (see `raybert.evaluate.changes.find_changes`)."""
    columns: dict[str, Any] = {name: [value for part in parts for value in part.predicted]}
    if parts[0].probability is not None:
        columns[f"{name}_probability"] = np.concatenate([np.array(part.probability) for part in parts])
    return columns


def _shown(table: Labelled, rows: np.ndarray, head: Head) -> dict[str, Any]:
    """Texts and true labels of the rows that were evaluated."""
    used = table.table.take(rows)
    texts = used["text"].to_pylist()
    if "text_pair" in used.column_names:
        texts = [
            f"{text} | {other}" for text, other in zip(texts, used["text_pair"].to_pylist(), strict=True)
        ]
    truth = used["label"].to_pylist()
    if head.settings.kind == "regression":
        truth = [float(value) for value in truth]
    elif head.settings.kind == "single":
        truth = [str(value) for value in truth]
    else:
        truth = labels_of_rows(used, head.settings)
    return {"text": texts, "label": truth}
