"""raybert finetune: a pretrained encoder and a labelled table in, a model of the task out.

Resolves and checks on the driver, which makes the examples and needs no torch.
"""

import json
import statistics
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from raybert.config import dump_yaml, load, require
from raybert.config.finetune import FinetuneConfig
from raybert.config.several import SeveralSettings
from raybert.corpus.paths import absolute, public
from raybert.corpus.pool import Pool
from raybert.corpus.session import ray_session
from raybert.corpus.store import Store
from raybert.train.folder import REPORT, figures_of, job_of, train_in_folder
from raybert.train.task_job import (
    Prepared,
    complete_job,
    prepare_job,
    refuse_other_job,
    refuse_settings,
)


@dataclass(frozen=True)
class FinetuneReport:
    """How a run ended.

    Attributes:
        figures: of the finished model; empty for a dry run. Of several seeds their means, and `NAME_deviation`, the
            standard deviation of a sample.
        plan: the job: rows, labels, steps.
        seeds: the figures of every seed, where there were several.
    """

    folder: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)
    seeds: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = []
        for part, rows in self.plan.get("rows", {}).items():
            rejected = rows["rows"] - rows["used"]
            lines.append(f"{part:24} {rows['rows']:,} rows = {rows['used']:,} used + {rejected:,} rejected")
            lines += [f"{'':24} {count:,} x {reason}" for reason, count in rows["rejected"].items()]
            done = [f"{rows[what]:,} {what}" for what in ("truncated", "repaired") if rows.get(what)]
            lines += [f"{'':24} of those used, {' and '.join(done)}"] if done else []
        labels = self.plan.get("labels", [])
        for name, found in labels.items() if isinstance(labels, dict) else [("", labels)]:
            lines.append(f"{f'{name} labels'.strip():24} {len(found):,}")
        if not self.figures:
            return "\n".join(
                [*lines, f"{'steps':24} {self.plan['phases'][0]['steps']:,}", "dry run: nothing was written"]
            )
        for name, value in self.figures.items():
            if value is None or name.endswith("_deviation"):
                continue
            deviation = self.figures.get(f"{name}_deviation")
            shown = f"{value:,}" if isinstance(value, int) else f"{value:.6g}"
            lines.append(f"{name:24} {shown}" + (f" ± {deviation:.2g}" if deviation is not None else ""))
        where = f"{self.folder}/seed-*/model" if self.seeds else f"{self.folder}/model"
        return "\n".join([*lines, f"{'model':24} {where}"])


def main(config: FinetuneConfig) -> int:
    """The command: run, print the report. Returns 0."""
    print(finetune(config))
    return 0


def finetune(config: FinetuneConfig | Mapping[str, Any]) -> FinetuneReport:
    """Fine-tune for a task; a run that was stopped goes on from its newest checkpoint, on any number of workers.

    Raises:
        ValueError: settings or rows that cannot be used, or that changed since the folder was started.
        RuntimeError: the run failed; the same call goes on from the newest checkpoint.
    """
    if not isinstance(config, FinetuneConfig):
        config = load(FinetuneConfig, settings=config)
    own_tables = isinstance(config.task, SeveralSettings)
    require(config, "model.name", *([] if own_tables else ["data.path"]), "output.path")
    config = absolute(config)
    refuse_settings(config)
    if len(config.train.seeds) > 0:
        return _each_seed(config)
    prepared = prepare_job(config)
    if config.dry_run:
        complete_job(prepared, config, gpu=False, workers=1)
        print(dump_yaml(public(config)), file=sys.stderr)
        return FinetuneReport(config.output.path, plan=prepared.job)
    with ray_session():
        return _run(config, prepared)


def _each_seed(config: FinetuneConfig) -> FinetuneReport:
    """One run after the other, in folders of their own; means and deviations of their figures."""
    store, seeds, plan = Store(config.output.path), {}, {}
    with ray_session():
        for seed in config.train.seeds:
            train = config.train.model_copy(update={"seed": seed, "seeds": []})
            path = f"{config.output.path.rstrip('/')}/seed-{seed}"
            output = config.output.model_copy(update={"path": path})
            own = config.model_copy(update={"train": train, "output": output})
            prepared = prepare_job(own)
            if config.dry_run:
                complete_job(prepared, own, gpu=False, workers=1)
                print(dump_yaml(public(config)), file=sys.stderr)
                return FinetuneReport(config.output.path, plan=prepared.job)
            report = _run(own, prepared)
            seeds[str(seed)], plan = report.figures, report.plan
    figures = _means([*seeds.values()])
    store.write(REPORT, json.dumps({"figures": figures, "seeds": seeds}, indent=1).encode())
    return FinetuneReport(config.output.path, figures, plan, seeds)


def _means(every: list[Mapping[str, Any]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name in every[0]:
        values = [figures[name] for figures in every if figures.get(name) is not None]
        if all(isinstance(value, int) for value in values) and len({*values}) == 1:
            found[name] = values[0]
            continue
        found[name] = statistics.fmean(values) if values else float("nan")
        if len(values) > 1:
            found[f"{name}_deviation"] = statistics.stdev(values)
    return found


def _run(config: FinetuneConfig, prepared: Prepared) -> FinetuneReport:
    """One run to its end, or what is left of it."""
    store, job = Store(config.output.path), prepared.job
    if (was := job_of(store)) is not None:
        refuse_other_job(was, job, config.output.path)
        if (figures := figures_of(store)) is not None:
            return FinetuneReport(config.output.path, figures, was)
    figures = train_in_folder(config, job, partial(_complete, prepared, config), prepared.files)
    return FinetuneReport(config.output.path, figures, job)


def _complete(prepared: Prepared, config: FinetuneConfig, pool: Pool, precision: str) -> None:
    complete_job(prepared, config, gpu=bool(pool.gpus), workers=pool.high, precision=precision)
