"""raybert evaluate: one or two models with a head on a labelled table, and the report that compares them.

The driver makes the examples and needs no torch; each worker takes a part of them, and their counts are added up.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from raybert.config import load, require
from raybert.config.predicting import EvaluateConfig, HeadModelSettings, HeadTaskSettings
from raybert.corpus.filesystems import public_uri
from raybert.corpus.paths import absolute, public_name
from raybert.corpus.pool import Pool, worker_pool
from raybert.corpus.progress import duration
from raybert.corpus.rejects import count_reasons
from raybert.corpus.session import ray_session
from raybert.corpus.store import Store
from raybert.evaluate.report import write_report
from raybert.evaluate.result import Evaluation
from raybert.evaluate.tables import comparison_table, label_table
from raybert.resolve import on_workers, prepare_process
from raybert.resolve_head import HeadFolder, load_predictor, local_folder, open_folder, pick
from raybert.tasks.columns import chosen
from raybert.tasks.examples import Examples
from raybert.tasks.heads import TRAINED, Head
from raybert.tasks.known import data_side
from raybert.tasks.outputs import blocks, finite_rows
from raybert.tasks.rows import read_labelled, refuse_unread
from raybert.tasks.table import Labelled

_BLOCK = 4096  # sequences whose outputs are in memory at once
_PER_WORKER = 1024  # sequences for which it pays to load the model once more
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
    """One model on some rows: the state of the metric, and what was predicted for every row."""

    state: str
    rows: list[dict[str, Any]]
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
    config = absolute(config)
    started = time.monotonic()
    models = _models(config)
    folders = _open(models, config.task)
    head = folders["after"].head
    refuse_unread(head.task, config.data)
    if "before" in folders:
        _refuse_other_head(folders["before"].head, head, models)
    table = read_labelled(config.data.paths, config.data, head.task, head.settings)
    made = {name: _examples(table, folder, head, models[name]) for name, folder in folders.items()}
    examples, reasons = _usable_by_all(made)
    found: dict[str, Evaluation] = {}
    predicted: dict[str, list[dict[str, Any]]] = {}
    with ray_session():
        pool = worker_pool(config.workers, reading=False)
        for name, model in models.items():
            parts = _predict(config, model, folders[name], head, examples[name], pool)
            found[name] = _evaluation(name, model, head, parts, int(examples[name].first.sum()))
            predicted[name] = [row for part in parts for row in part.rows]
    rejects = table.rejects(reasons)
    changed = changed_rows(table.table, examples["after"], head, predicted)
    write_report(Store(config.output.path), found.get("before"), found["after"], changed_rows=changed)
    seconds = time.monotonic() - started
    where = public_uri(config.output.path)
    return Evaluated(found.get("before"), found["after"], count_reasons(rejects), where, seconds)


def _models(config: EvaluateConfig) -> dict[str, HeadModelSettings]:
    """`before`, if there is one, and `after`."""
    after = HeadModelSettings(**config.model.model_dump(exclude={"before"}))
    if config.model.before is None:
        return {"after": after}
    before = after.model_copy(update={"name": config.model.before, "revision": None})
    return {"before": before, "after": after}


def _open(models: Mapping[str, HeadModelSettings], task: HeadTaskSettings) -> dict[str, HeadFolder]:
    """`before` reads the columns that `after` reads, whatever its folder says."""
    folders = {"after": open_folder(models["after"], task)}
    if "before" not in models:
        return folders
    head = folders["after"].head
    same = {key: value for key, value in head.settings if key not in ("name", *TRAINED.get(head.task, ()))}
    given = HeadTaskSettings(name=head.task, **{**same, **task.given})
    try:
        return {"before": open_folder(models["before"], given), **folders}
    except ValueError as error:
        raise ValueError(str(error).replace("model.name", "model.before", 1)) from None


def _refuse_other_head(before: Head, after: Head, models: Mapping[str, HeadModelSettings]) -> None:
    """The order of the labels may differ."""
    kinds = [getattr(head.settings, "kind", None) for head in (before, after)]
    if kinds[0] != kinds[1]:
        raise ValueError(
            f"model.before={models['before'].name} is for task.kind={kinds[0]}, "
            f"{models['after'].name} for {kinds[1]}; set task.kind if one of them is wrong"
        )
    if differ := sorted(set(before.labels) ^ set(after.labels)):
        raise ValueError(
            f"model.before={models['before'].name} has other labels than {models['after'].name}; they differ in: "
            f"{_listed(differ)}"
        )


def _usable_by_all(
    made: Mapping[str, tuple[Examples, np.ndarray]],
) -> tuple[dict[str, Examples], np.ndarray]:
    """Examples of the same rows for every model, and the reasons of the others: a row may be too long for one of them."""
    lines = [reasons for _, reasons in made.values()]
    reasons = lines[-1].copy()
    for other in lines[:-1]:
        reasons = np.where(chosen(reasons), other, reasons)
    good = chosen(reasons)
    if not good.any():
        first = next((reason for reason in reasons if reason is not None), "it has no rows")
        raise ValueError(f"data.path: no row can be evaluated: {first}")
    return {name: found.take(np.flatnonzero(good[found.row])) for name, (found, _) in made.items()}, reasons


def _listed(labels: list[str]) -> str:
    more = f" and {len(labels) - _SHOWN} more" if len(labels) > _SHOWN else ""
    return ", ".join(labels[:_SHOWN]) + more


def _examples(
    table: Labelled, folder: HeadFolder, head: Head, model: HeadModelSettings
) -> tuple[Examples, np.ndarray]:
    """With targets in the order of `head`; reasons [rows] of all rows."""
    good = np.flatnonzero(chosen(table.reasons))
    rows, side = table.table.take(good), data_side(head.task)
    if hasattr(side, "labels_of_rows"):
        _refuse_unknown(side.labels_of_rows(rows, head.settings), head, model)
    own = folder.head.settings
    made, found = side.prepare(
        rows, Tokenizer.from_str(folder.tokenizer), head.labels, own, max_length=folder.max_length
    )
    if hasattr(side, "with_texts"):
        made = side.with_texts(made, rows, own)
    if hasattr(side, "with_truth"):
        made = side.with_truth(made, rows, head.labels, own)
    reasons = table.reasons.copy()
    reasons[good] = found
    return replace(made, row=good[made.row]), reasons


def _refuse_unknown(labels: list[list[str]], head: Head, model: HeadModelSettings) -> None:
    if unknown := sorted(set(chain.from_iterable(labels)) - set(head.labels)):
        raise ValueError(
            f"data.label has labels that model.name={model.name} does not know: {_listed(unknown)}; it knows: "
            f"{_listed(head.labels)}"
        )


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
    parts = [examples.take(some) for some in blocks(examples, -(-len(examples) // count))]
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
    scores, rows = side.Scores(head.labels, own.settings), []
    started = time.monotonic()
    for some in blocks(examples, _BLOCK):
        block = examples.take(some)
        outputs = predictor(block)
        if not finite_rows(outputs, block).all():
            raise ValueError(
                f"model.name={model.name} gives outputs that are not finite; set model.dtype=float32"
            )
        if order != sorted(order):
            outputs = {**outputs, "logits": outputs["logits"][:, order]}
        scores.add(outputs, block)
        rows += side.decode(outputs, block, head.labels, own.settings)
    return _Predicted(scores.to_json(), rows, time.monotonic() - started)


def _evaluation(
    name: str, model: HeadModelSettings, head: Head, parts: list[_Predicted], rows: int
) -> Evaluation:
    scores = data_side(head.task).Scores(head.labels, head.settings)
    for part in parts:
        scores.merge(part.state)
    return Evaluation.of(
        scores,
        name=name,
        task=head.task,
        model=public_name(model.name),
        rows=rows,
        seconds=max(part.seconds for part in parts),
        main=data_side(head.task).main_figure(head.settings),
    )


def changed_rows(
    table: pa.Table, examples: Examples, head: Head, predicted: Mapping[str, list[dict[str, Any]]]
) -> pa.Table | None:
    """What `raybert.evaluate.changes.find_changes` takes; None for a task that does not say how good a row is.

    Args:
        table: the rows that `examples.row` counts.
        predicted: what was decoded for every row of the examples, by model: `before`, `after`.
    """
    side = data_side(head.task)
    if not hasattr(side, "shown_rows"):
        return None
    used = table.take(pa.array(examples.row[examples.first]))
    columns: dict[str, Any] = {}
    for name, rows in predicted.items():
        found = side.shown_rows(rows, used, examples, head.labels, head.settings)
        columns |= {key: found[key] for key in ("text", "label")}
        columns[name] = found["predicted"]
        columns |= {f"{name}_{key}": found[key] for key in ("probability", "score") if key in found}
    return pa.table(columns)
