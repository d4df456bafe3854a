"""raybert pretrain: token shards in, a pretrained model out. Resolves and checks on the driver, which needs no torch."""

import json
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from raybert.config import dump_yaml, load, require
from raybert.config.training import PretrainConfig
from raybert.corpus.filesystems import public_uri
from raybert.corpus.session import ray_session, worker_pool
from raybert.corpus.store import Store
from raybert.train.alone import alone
from raybert.train.job import complete_job, make_job, refuse_other_job, refuse_settings

_JOB, _CONFIG, _REPORT = "_raybert/job.json", "_raybert/config.yaml", "_raybert/report.json"


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
    config = _absolute(config)
    store = Store(config.output.path)
    refuse_settings(config)
    job = make_job(config)
    if config.dry_run:
        complete_job(job, config, gpu=False)
        print(dump_yaml(_public(config)), file=sys.stderr)
        return PretrainReport(config.output.path, plan=job)
    if store.exists(_JOB):
        refuse_other_job(json.loads(store.read(_JOB)), job, config.output.path)
    if store.exists(_REPORT):
        return PretrainReport(config.output.path, json.loads(store.read(_REPORT)))
    with ray_session():
        from raybert.train.launch import best_precision, launch

        pool = worker_pool(config.workers, reading=False)
        automatic = config.train.precision == "auto" and not store.exists(_JOB)
        precision = best_precision(pool) if automatic else "float32"
        complete_job(job, config, gpu=bool(pool.gpus), precision=precision)
        if store.exists(_JOB):  # what `auto` became then holds
            kept = json.loads(store.read(_JOB))
            job |= {key: kept[key] for key in ("batch_tokens", "precision", "phases")}
        with alone(store, config.output.path):
            store.write(_JOB, json.dumps(job, indent=1).encode())
            store.write(_CONFIG, dump_yaml(_public(config)).encode())
            figures = launch(config, job, pool)
            store.write(_REPORT, json.dumps(figures).encode())
    if store.local:
        shutil.rmtree(store.path("_raybert/ray"), ignore_errors=True)
    return PretrainReport(config.output.path, figures)


def _public(config: PretrainConfig) -> PretrainConfig:
    """The settings as they may be shown and stored: paths without credentials."""
    phases = [
        p.model_copy(update={"path": public_uri(p.path)} if p.path else {}) for p in config.train.phases
    ]
    return config.model_copy(
        update={
            "data": config.data.model_copy(update={"path": public_uri(config.data.path)}),
            "output": config.output.model_copy(update={"path": public_uri(config.output.path)}),
            "train": config.train.model_copy(update={"phases": phases}),
        }
    )


def _absolute(config: PretrainConfig) -> PretrainConfig:
    """Paths that mean the same on every worker."""

    def whole(path: str) -> str:
        return path if "://" in path else os.path.abspath(os.path.expanduser(path))

    name = config.model.name
    model = {"name": whole(name)} if name and os.path.isdir(os.path.expanduser(name)) else {}
    phases = [p.model_copy(update={"path": whole(p.path)} if p.path else {}) for p in config.train.phases]
    return config.model_copy(
        update={
            "model": config.model.model_copy(update=model),
            "data": config.data.model_copy(update={"path": whole(config.data.path)}),
            "output": config.output.model_copy(update={"path": whole(config.output.path)}),
            "train": config.train.model_copy(update={"phases": phases}),
        }
    )
