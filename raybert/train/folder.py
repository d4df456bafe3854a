"""A training run in its folder: begun, gone on with, or seen to be finished. By the driver, which needs no torch."""

import json
import shutil
from collections.abc import Callable, Mapping
from typing import Any

from raybert.config import dump_yaml
from raybert.corpus.paths import public
from raybert.corpus.pool import Pool, worker_pool
from raybert.corpus.store import Store
from raybert.train.alone import alone

JOB, REPORT = "_raybert/job.json", "_raybert/report.json"
_CONFIG, _OF_RAY = "_raybert/config.yaml", "_raybert/ray"

# what depends on the hardware of the first call holds for those that go on
_KEPT = ("batch_tokens", "precision", "parts", "phases")


def job_of(store: Store) -> dict[str, Any] | None:
    """What was resolved when the folder was started; None for a new one."""
    return json.loads(store.read(JOB)) if store.exists(JOB) else None


def figures_of(store: Store) -> dict[str, Any] | None:
    """The figures of a finished run; None for another."""
    return json.loads(store.read(REPORT)) if store.exists(REPORT) else None


def train_in_folder(
    config: Any,
    job: dict[str, Any],
    complete: Callable[[Pool, str], None],
    files: Mapping[str, bytes] | None = None,
) -> dict[str, Any]:
    """Train to the end, from the newest checkpoint if there is one; the final figures. Within a session of Ray.

    Args:
        complete: fills in what of `job` depends on the workers; its second argument is what train.precision=auto is there.
        files: of the run, written before it starts.

    Raises:
        ValueError: settings that cannot be used; another driver trains in the folder.
        RuntimeError: the run failed.
    """
    from raybert.train.launch import best_precision, launch

    store = Store(config.output.path)
    pool, kept = worker_pool(config.workers, reading=False, whole_nodes=True), job_of(store)
    automatic = config.train.precision == "auto" and kept is None
    complete(pool, best_precision(pool) if automatic else "float32")
    job |= {key: kept[key] for key in _KEPT if key in kept} if kept else {}
    with alone(store, config.output.path):
        for name, content in (files or {}).items():
            store.write(name, content)
        store.write(_CONFIG, dump_yaml(public(config)).encode())
        store.write(JOB, json.dumps(job, indent=1).encode())
        figures = launch(config, job, pool)
        store.write(REPORT, json.dumps(figures).encode())
    if store.local:
        shutil.rmtree(store.path(_OF_RAY), ignore_errors=True)
    return figures
