"""raybert pretrain: token shards in, a pretrained model out. Resolves and checks on the driver, which needs no torch."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from raybert.config import dump_yaml, load, require
from raybert.config.training import PretrainConfig
from raybert.corpus.paths import absolute, public
from raybert.corpus.pool import Pool
from raybert.corpus.session import ray_session
from raybert.corpus.store import Store
from raybert.train.folder import figures_of, job_of, train_in_folder
from raybert.train.job import complete_job, make_job, refuse_other_job, refuse_settings


@dataclass(frozen=True)
class PretrainReport:
    """How a run ended. `figures` are those of the finished model; empty for a dry run."""

    folder: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    plan: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        if not self.figures:
            phases = [
                f"{p['steps']:,} steps of {p['global_batch_tokens']:,} tokens from {p['path']}"
                for p in self.plan["phases"]
            ]
            return "\n".join([*phases, "dry run: nothing was written"])
        lines = [f"{name:24} {value:.6g}" for name, value in self.figures.items() if value is not None]
        return "\n".join([*lines, f"{'model':24} {self.folder}/model"])


def main(config: PretrainConfig) -> int:
    """The command: run, print the report. Returns 0."""
    print(pretrain(config))
    return 0


def pretrain(config: PretrainConfig | Mapping[str, Any]) -> PretrainReport:
    """Pretrain on token shards; a run that was stopped goes on from its newest checkpoint, on any number of workers.

    Raises:
        ValueError: settings or tokens that cannot be used, or that changed since the folder was started; another
            driver trains in it.
        RuntimeError: the run failed; the same call goes on from the newest checkpoint.
    """
    if not isinstance(config, PretrainConfig):
        config = load(PretrainConfig, settings=config)
    require(config, "data.path", "output.path")
    config = absolute(config)
    refuse_settings(config)
    job = make_job(config)
    if config.dry_run:
        complete_job(job, config, gpu=False)
        print(dump_yaml(public(config)), file=sys.stderr)
        return PretrainReport(config.output.path, plan=job)
    store = Store(config.output.path)
    if (was := job_of(store)) is not None:
        refuse_other_job(was, job, config.output.path)
    if (figures := figures_of(store)) is None:
        with ray_session():
            figures = train_in_folder(config, job, partial(_complete, job, config))
    return PretrainReport(config.output.path, figures)


def _complete(job: dict[str, Any], config: PretrainConfig, pool: Pool, precision: str) -> None:
    complete_job(job, config, gpu=bool(pool.gpus), precision=precision)
