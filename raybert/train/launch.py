"""The workers of a run on Ray Train: started, started again when one is lost, their lines shown on the driver.

Ray Train launches and notices failures; what is saved and gone on from is ours alone (its reported checkpoints are bound
to the number of workers and can be lost).
"""

import contextlib
import os
import sys
import threading
import uuid
from collections.abc import Mapping
from typing import Any

import ray
from ray.train import UserCallback

from raybert.config.finetune import FinetuneConfig
from raybert.config.training import PretrainConfig
from raybert.corpus.pool import Pool
from raybert.corpus.session import drivers_node


@ray.remote(num_cpus=0)
class Board:
    """Where workers leave lines for the user, the result, and why the run cannot be done at all."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._failure: tuple[str, str] | None = None
        self._result: dict[str, Any] = {}

    def say(self, line: str) -> None:
        self._lines.append(line)

    def lost(self, line: str) -> None:
        """Where the run cannot be done at all, workers that end are no loss."""
        if self._failure is None:
            self._lines.append(line)

    def take(self) -> list[str]:
        lines, self._lines = self._lines, []
        return lines

    def fail(self, kind: str, why: str) -> None:
        self._failure = self._failure or (kind, why)

    def failure(self) -> tuple[str, str] | None:
        return self._failure

    def finish(self, result: dict[str, Any]) -> None:
        self._result = result

    def result(self) -> dict[str, Any]:
        return self._result


class _Told(UserCallback):
    """Tells the user of lost workers; runs in Ray Train's controller."""

    def __init__(self, board: Any, pool: Pool) -> None:
        self._board, self._pool = board, pool

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        low, cpus, gpus = self._pool.low, self._pool.cpus, self._pool.gpus
        each = f"{cpus} CPUs" + (f" and {gpus:g} GPUs" if gpus else "")
        self._board.lost.remote(
            f"lost worker {_with_reasons(worker_exceptions)}; going on from the newest "
            f"checkpoint once there is room for {low} with {each} each"
        )


def _with_reasons(worker_exceptions: Mapping[int, Exception]) -> str:
    """Ranks, with what was raised in them; of those that were lost without a word Ray tells a page, which is left out."""
    found = []
    for rank, error in sorted(worker_exceptions.items()):
        lost = type(error).__module__.startswith("ray.")
        found.append(str(rank) if lost else f"{rank} ({type(error).__name__}: {_last_line(error)[:200]})")
    return ", ".join(found)


def _last_line(error: Exception) -> str:
    said = str(error).strip()
    return said.splitlines()[-1] if said else type(error).__name__


def work(given: dict[str, Any]) -> None:
    """One worker's life. A failure that would come again is left on the board, so that no restart is tried."""
    import ray.train.torch
    import torch

    from raybert.train.finetuning import Finetuning
    from raybert.train.loop import Run
    from raybert.train.pretraining import Pretraining
    from raybert.train.spikes import TrainingDiverged

    board = given["board"]
    if ray.get(board.failure.remote()) is not None:
        return
    device = ray.train.torch.get_device()
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        kind, made = {"pretrain": (PretrainConfig, Pretraining), "finetune": (FinetuneConfig, Finetuning)}[
            given["verb"]
        ]
        config, job = kind.model_validate(given["config"]), given["job"]
        if job.get("task") == "several":
            from raybert.train.several import SeveralTasks

            made = SeveralTasks
        result = Run(config, job, made(config, job), device, board.say.remote, _a_node_is_leaving).go()
        ray.get(board.finish.remote(result))
    except TrainingDiverged as error:  # on all ranks alike
        ray.get(board.fail.remote("diverged", str(error)))
    except ValueError as error:  # maybe on this one only: the others must not wait for it
        ray.get(board.fail.remote("unusable", str(error)))
        raise


def _a_node_is_leaving() -> bool:
    """In a worker, and in all at once: whether Ray was told (a spot node's notice) that one of the run's nodes will go."""
    import ray.train

    return ray.train.get_preemption_info() is not None


def best_precision(pool: Pool) -> str:
    """bfloat16 where a worker's hardware multiplies it, else float32. Asks one worker: the driver may be another machine."""
    return ray.get(_best_precision.options(**pool.needs).remote())


@ray.remote(max_retries=3)
def _best_precision() -> str:
    if ray.get_gpu_ids():
        from raybert.encoder.loading import pick_dtype

        return pick_dtype("auto", "cuda")
    from raybert.encoder.hardware import cpu_has_bfloat16

    return "bfloat16" if cpu_has_bfloat16() else "float32"


def launch(config: PretrainConfig | FinetuneConfig, job: dict[str, Any], pool: Pool) -> dict[str, Any]:
    """Run to the end on the workers of `pool`; the final figures.

    Raises:
        ValueError: settings that the workers found unusable.
        RuntimeError: the loss went wrong, or workers were lost more often than `train.restarts`.
    """
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
    from ray.train.v2.api.exceptions import TrainingFailedError

    from raybert.train.interface import WorkersConfig

    if pool.low < pool.high:
        # Ray Train learns late of a lost node and then waits for it, by default a minute, before it looks again
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
    board = Board.options(scheduling_strategy=drivers_node()).remote()
    trainer = DataParallelTrainer(
        work,
        train_loop_config={
            "verb": "pretrain" if isinstance(config, PretrainConfig) else "finetune",
            "config": config.model_dump(mode="json"),
            "job": job,
            "board": board,
        },
        backend_config=WorkersConfig(backend="nccl" if pool.gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=pool.low if pool.low == pool.high else (pool.low, pool.high),
            use_gpu=bool(pool.gpus),
            resources_per_worker={"CPU": pool.cpus, **({"GPU": pool.gpus} if pool.gpus else {})},
            label_selector=dict(pool.labels) or None,
        ),
        run_config=RunConfig(
            name=uuid.uuid4().hex,  # a known name would make Ray go on from a checkpoint of its own
            storage_path=f"{config.output.path.rstrip('/')}/_raybert/ray",
            failure_config=FailureConfig(max_failures=config.train.restarts),
            callbacks=[_Told(board, pool)],
        ),
    )
    with _lines_shown(board):
        try:
            trainer.fit()
        except TrainingFailedError as error:
            _raise_known(board)
            raise RuntimeError(f"training failed: {_cause(error)}; run the same command to go on") from error
    _raise_known(board)
    return ray.get(board.result.remote())


def _raise_known(board: Any) -> None:
    failure = ray.get(board.failure.remote())
    if failure is not None:
        kind, why = failure
        raise ValueError(why) if kind == "unusable" else RuntimeError(why)


def _cause(error: Exception) -> str:
    """The first worker's last line."""
    failures = getattr(error, "worker_failures", {})
    return _last_line(next(iter(failures.values()), error))


@contextlib.contextmanager
def _lines_shown(board: Any) -> Any:
    """The workers' lines on standard error, twice a second."""
    ended = threading.Event()

    def show() -> None:
        while not ended.wait(0.5):
            _show(board)

    thread = threading.Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        _show(board)


def _show(board: Any) -> None:
    for line in ray.get(board.take.remote()):
        print(line, file=sys.stderr, flush=True)
