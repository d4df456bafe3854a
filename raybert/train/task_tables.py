"""The tables of a fine-tuning run: rows to the examples of their parts. For the driver, without torch."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from raybert.config.finetune import FinetuneConfig
from raybert.corpus.rejects import count_reasons
from raybert.pretrain.counter import permutation
from raybert.tasks.columns import chosen
from raybert.tasks.examples import Examples
from raybert.tasks.known import data_side
from raybert.tasks.rows import read_labelled
from raybert.tasks.table import Labelled
from raybert.train.task_base import Base, refuse_other_head

EARLIER = "earlier"
"""The part of the examples that is of an earlier task (regularize.ewc)."""

_PARTS = {"train": "data.path", "validation": "data.validation", EARLIER: "regularize.ewc_data"}
_SPLIT, _SAMPLE = (
    1,
    2,
)  # names of the random numbers that choose the validation rows, and those of the earlier task


@dataclass(frozen=True)
class Tables:
    """A task's labels and, by part (`train`, `validation`), its examples, the rejected rows, and how many of each."""

    labels: list[str]
    examples: Mapping[str, Examples]
    rejects: Mapping[str, pa.Table]
    rows: Mapping[str, Any]


def read_parts(config: FinetuneConfig) -> dict[str, Labelled]:
    """The rows to train on and, if there are any, those to evaluate on, and those of an earlier task, by part."""
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


def read_tables(config: FinetuneConfig, base: Base, tables: Mapping[str, Labelled] | None = None) -> Tables:
    """Rows to examples; `tables` are those of the settings, where they are read already."""
    side, tables = data_side(config.task.name), tables or read_parts(config)
    labels = side.find_labels(tables["train"].table, config.task)
    if config.regularize.ewc:
        refuse_other_head(config, base.shape, labels)
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


def setting_of(part: str) -> str:
    """The setting that names the rows of a part: `train`, `validation`, or of one of several tasks `NAME/train`."""
    member, _, name = part.rpartition("/")
    setting = _PARTS[name]
    return f"task.tasks.{member}.{setting}" if member else setting


def _repaired(side: Any, table: Labelled, labels: list[str], task: Any) -> int:
    """Rows whose truth was wrong, and is used as the task put it right."""
    if not hasattr(side, "repaired_rows"):
        return 0
    return int(
        side.repaired_rows(table.table.take(np.flatnonzero(chosen(table.reasons))), labels, task).sum()
    )


def _split(table: Labelled, share: float, seed: int) -> dict[str, Labelled]:
    order = permutation(len(table), seed, _SPLIT)
    held = min(max(1, round(share * len(table))), len(table) - 1)
    if held < 1:
        raise ValueError(f"data.validation_share={share:g} of {len(table)} rows leaves none; give more rows")
    return {"train": table.take(np.sort(order[held:])), "validation": table.take(np.sort(order[:held]))}


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
