"""Runs what the tests of the engine need in processes of one gloo group: python -m tests.train.ranks RANK WORLD FOLDER JOB."""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
STEPS, BINS, SEED = 6, 5, 3


def batches(step: int):
    """The global batch of a step: 5 bins of different sizes."""
    from tests.train.fakes import micro

    return [(number, micro(100 * step + number, (4 + number, 9, 3 + step))) for number in range(BINS)]


def losses(engine, first: int, last: int) -> list[float]:
    """Train steps `first` to `last`; the losses."""
    import torch.distributed as dist

    from raybert.train.step import even_out

    rank, world = dist.get_rank(), dist.get_world_size()
    out = []
    for step in range(first, last):
        own = even_out(batches(step)[rank::world], BINS, world)
        out.append(engine.train(own, lr=3e-3, seed=SEED, step=step).loss)
    return out


def engine_of(zero: int, precision: str = "float32", start=None, **settings):
    from raybert.train.engine import Engine, EngineSettings
    from raybert.train.gather import load_weights, restore
    from tests.train.fakes import model

    made = model(pairs=True, dropout=0.1)
    if start is not None:
        load_weights(made.plain, start.weights)
    engine = Engine(made, EngineSettings(zero=zero, precision=precision, **settings))
    if start is not None:
        restore(engine, start)
    return engine


def stages(folder: Path, rank: int) -> dict:
    """Losses of 6 steps by stage and precision; a state after 3 of them."""
    from raybert.train.checkpoint import Checkpoints, RunState
    from raybert.train.gather import gather

    out = {}
    for zero in (0, 1, 2, 3):
        engine = engine_of(zero)
        out[f"zero{zero}"] = losses(engine, 0, 3)
        tensors = gather(engine)
        if rank == 0:
            Checkpoints(folder / f"zero{zero}").write(tensors, RunState(step=3, digests=[1, 2]))
        out[f"zero{zero}"] += losses(engine, 3, STEPS)
        out[f"norm{zero}"] = engine._norm
        out[f"evaluate{zero}"] = engine.evaluate(
            batches(0)[rank::2] if rank == 0 else [*batches(0)[1::2], None]
        ).loss
        engine.close()
    engine = engine_of(0, optimizer="lamb")
    out["lamb"] = losses(engine, 0, STEPS)
    engine.close()
    for zero in (0, 1, 2, 3):
        engine = engine_of(zero, "bfloat16", recompute=zero == 2)
        out[f"bfloat16-{zero}"] = losses(engine, 0, STEPS)
        engine.close()
    return out


def resume(folder: Path, rank: int) -> dict:
    """Losses of steps 3 to 5 from the states of `stages`, on another world and other stages."""
    from raybert.train.checkpoint import Checkpoints
    from raybert.train.gather import gather

    out = {}
    for was, zero, precision in [
        (0, 2, "float32"),
        (1, 3, "float32"),
        (2, 1, "float32"),
        (3, 0, "float32"),
        (2, 2, "float32"),
        (2, 1, "bfloat16"),
    ]:
        tensors, _ = Checkpoints(folder / f"zero{was}").read(3)
        engine = engine_of(zero, precision, start=tensors)
        again = gather(engine)
        if rank == 0:
            import torch

            same = all(torch.equal(tensors.weights[n], again.weights[n]) for n in tensors.weights)
            same &= all(torch.equal(tensors.moments[n], again.moments[n]) for n in tensors.moments)
            out[f"same-{was}-{zero}-{precision}"] = same and again.updates == 3
        out[f"{was}-{zero}-{precision}"] = losses(engine, 3, STEPS)
        engine.close()
    return out


def spike(folder: Path, rank: int) -> dict:
    """Runs whose seventh batch has a loss that is not a number, or high ones from there: stopped, and rewound."""
    from dataclasses import replace

    from raybert.train.engine import Engine
    from raybert.train.spikes import TrainingDiverged

    train = Engine.train
    out: dict = {}
    for kind, on_spike, wrong in [
        ("nan", "stop", 1),
        ("nan", "rewind", 1),
        ("high", "rewind", 3),
        ("high", "ignore", 3),
    ]:
        name, seen, bad = f"{kind}-{on_spike}", [], []

        def spoilt(self, micros, *, lr, seed, step, kind=kind, wrong=wrong, seen=seen, bad=bad):
            found = train(self, micros, lr=lr, seed=seed, step=step)
            digest = micros[0][1].digest
            seen.append([step, digest])
            if step >= 6 and len(bad) < wrong:  # these batches are bad, whenever they come
                bad.append(digest)
            high = found.loss * 3 if kind == "high" else float("nan")
            return replace(found, loss=high) if digest in bad else found

        Engine.train = spoilt
        run, lines = loop_run(
            folder, name, {"steps": 12, "on_spike": on_spike, "spike": {"patience": 3, "window": 4}}
        )
        try:
            run.go()
        except TrainingDiverged as error:
            lines.append(str(error))
        out[name] = {
            "seen": seen,
            "bad": bad,
            "lines": lines,
            "steps": run.checkpoints.steps(),
            "skipped": run.skipped,
        }
    Engine.train = train
    return out


def phases(folder: Path, rank: int) -> dict:
    """Two phases with tokens, rates and batch sizes of their own; and half an epoch."""
    from tests.train.tokens import token_folder

    long = token_folder(folder / "long", shards=2)
    parts = [{"steps": 4}, {"steps": 3, "path": long, "lr": 1e-3, "global_batch_tokens": 512}]
    run, _ = loop_run(
        folder,
        "phases",
        {"phases": parts, "evaluate": {"every": 0}, "log_every": 1, "checkpoint": {"keep": 9}},
    )
    run.go()
    saved = run.checkpoints.steps()
    epochs, _ = loop_run(folder, "epochs", {"epochs": 0.5, "evaluate": {"every": 0}})
    return {
        **run.records.history.values,
        "saved": saved,
        "epochs": epochs.steps,
        "per_epoch": epochs.trained.streams[0].steps_per_epoch,
    }


_TASKS: dict[str, dict] = {
    "plain": {},
    "zero2": {"train.zero": 2},
    "lora": {"adapter.name": "lora"},
    "early": {"train.lr": 1e-9, "train.evaluate.every": 2, "train.evaluate.patience": 2},
}
_MORE_TASKS: dict[str, dict] = {
    "zero3": {"train.zero": 3},
    "frozen": {"freeze.layers": 1, "train.layer_decay": 0.8},
    "gradual": {"freeze.gradual": True, "train.batch_size": 50},
    "freelb": {"adversarial.name": "freelb", "adversarial.epsilon": 0.0},
}


def tasks(folder: Path, rank: int) -> dict:
    """Runs of a task: plain, cut up, with an adapter, stopped early."""
    return whole_and_again(folder, rank, _TASKS)


def more_tasks(folder: Path, rank: int) -> dict:
    """Runs of a task with other levers."""
    return whole_and_again(folder, rank, _MORE_TASKS)


def generation(folder: Path, rank: int) -> dict:
    """Sequence to sequence."""
    return whole_and_again(folder, rank, {"plain": translation(folder)})


def more_generation(folder: Path, rank: int) -> dict:
    """Sequence to sequence, cut up and with levers."""
    levers = {"task.share": True, "adversarial.name": "fgm", "regularize.label_smoothing": 0.1}
    runs = {
        "zero2": {"train.zero": 2, "task.generate": "evaluations"},
        "zero3": {"train.zero": 3},
        "levers": levers,
    }
    return whole_and_again(folder, rank, {name: {**translation(folder), **own} for name, own in runs.items()})


def translation(folder: Path) -> dict:
    """Settings of a small run on the tables of `task_tables.word_pairs`, which the test has written."""
    return {
        "task.name": "generation",
        "task.max_target_length": 8,
        "data.path": str(folder / "pairs.parquet"),
        "data.validation": str(folder / "pairs_validation.parquet"),
        "train.evaluate.every": 12,
    }


def whole_and_again(folder: Path, rank: int, runs: dict[str, dict]) -> dict:
    """Every run whole, and gone on with from a checkpoint in its middle."""
    import shutil

    import torch.distributed as dist

    from raybert.train.checkpoint import Checkpoints

    out: dict = {}
    for name, changes in runs.items():
        run, lines = task_run(folder, name, changes)
        figures = run.go()
        saved = run.checkpoints.steps()
        out[name] = {"figures": figures, "lines": lines, "saved": saved, "best": run.best}
        out[name]["digests"] = run.checkpoints.record(saved[-1])["digests"]
        out[name]["history"] = run.records.history.values
        if name == "early":
            continue
        dist.barrier()
        if rank == 0:
            shutil.copytree(folder / name, folder / f"{name}-again")
            shutil.rmtree(folder / f"{name}-again" / "model")
            Checkpoints(folder / f"{name}-again" / "checkpoints").drop_after(12)
        dist.barrier()
        again, _ = task_run(folder, f"{name}-again", changes)
        out[name]["again"] = again.go()
        out[name]["again_best"] = again.best
        out[name]["again_digests"] = again.checkpoints.record(24)["digests"]
    return out


def task_run(folder: Path, name: str, changes: dict):
    """A run of the loop for a task in this process, and its lines."""
    import torch.distributed as dist

    from raybert.config import load
    from raybert.config.finetune import FinetuneConfig
    from raybert.corpus.store import Store
    from raybert.train.finetuning import Finetuning
    from raybert.train.loop import Run
    from raybert.train.task_job import complete_job, prepare_job
    from tests.train.task_tables import task_settings

    if dist.get_rank() == 0:
        task_settings(folder, folder / name)
    dist.barrier()
    config = load(FinetuneConfig, settings=task_settings(folder, folder / name, **changes))
    prepared = prepare_job(config)
    complete_job(prepared, config, gpu=False, workers=2)
    if dist.get_rank() == 0:
        for file, content in prepared.files.items():
            Store(config.output.path).write(file, content)
    dist.barrier()
    lines: list[str] = []
    made = Finetuning(config, prepared.job)
    return Run(config, prepared.job, made, "cpu", lines.append), lines


def writing(folder: Path, rank: int) -> dict:
    """Checkpoints that take a while to write, and one that cannot be written."""
    import time

    from raybert.train.checkpoint import Checkpoints

    write, spans = Checkpoints.write, []

    def slow(self, tensors, state):
        begun = run.step
        time.sleep(0.3)
        write(self, tensors, state)
        spans.append((state.step, begun, run.step))

    def full(self, tensors, state):
        raise OSError("the disk is full")

    Checkpoints.write = slow
    run, _ = loop_run(folder, "slow", {"steps": 12, "checkpoint": {"steps": 4, "keep": 9}})
    run.go()
    Checkpoints.write = full
    other, _ = loop_run(folder, "full", {"steps": 12, "checkpoint": {"steps": 4}})
    try:
        other.go()
        error = ""
    except OSError as caught:
        error = str(caught)
    return {"spans": spans, "saved": run.checkpoints.steps(), "error": error, "at": other.step}


def loop_run(folder: Path, name: str, train: dict):
    """A run of the loop in this process, and its lines."""
    from raybert.config.training import PretrainConfig
    from raybert.train.job import complete_job, make_job
    from raybert.train.loop import Run
    from raybert.train.pretraining import Pretraining
    from tests.train.tokens import token_folder

    tokens = folder / "tokens"
    if not tokens.exists():
        token_folder(tokens)
    common = {
        "global_batch_tokens": 256,
        "lr": 3e-3,
        "log_every": 4,
        "warmup": 0,
        "checkpoint": {"steps": 2, "keep": 9},
    }
    config = PretrainConfig.model_validate(
        {
            "model": {"layers": 1, "hidden": 16, "heads": 2},
            "data": {"path": str(tokens)},
            "output": {"path": str(folder / name)},
            "batch_tokens": 256,
            "track": [],
            "train": {**common, **train},
        }
    )
    job = make_job(config)
    complete_job(job, config, gpu=False)
    lines: list[str] = []
    return Run(config, job, Pretraining(config, job), "cpu", lines.append), lines


def run(world: int, folder: Path, job: str, timeout: int = 240) -> dict:
    """Do `job` in `world` processes; what rank 0 found."""
    folder.mkdir(parents=True, exist_ok=True)
    meeting = folder / f"meet-{job}-{world}"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": "/nowhere", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "tests.train.ranks"]
    started = [
        subprocess.Popen(
            [*command, str(rank), str(world), str(folder), job, str(meeting)],
            cwd=ROOT,
            env={**environment, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(world)
    ]
    try:
        said = [process.communicate(timeout=timeout)[0] for process in started]
    finally:
        for process in started:
            process.kill()
    failed = [text for process, text in zip(started, said, strict=True) if process.returncode]
    assert not failed, "\n".join(text[-2500:] for text in failed)
    return json.loads((folder / f"{job}-{world}.json").read_text())


def main(rank: int, world: int, folder: Path, job: str, meeting: str) -> None:
    """One process of the group. PATH has no compiler: DeepSpeed must do without."""
    import torch.distributed as dist

    from tests.train import several_ranks
    from tests.train.elastic_ranks import elastic
    from tests.train.lever_runs import levers
    from tests.train.ranking_ranks import ranking

    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=world)
    found = {
        "stages": stages,
        "resume": resume,
        "spike": spike,
        "phases": phases,
        "writing": writing,
        "tasks": tasks,
        "more_tasks": more_tasks,
        "generation": generation,
        "more_generation": more_generation,
        "levers": levers,
        "several": several_ranks.common,
        "several_more_stages": several_ranks.more_stages,
        "several_levers": several_ranks.levers,
        "ranking": ranking,
        "elastic": elastic,
    }[job](folder, rank)
    if rank == 0:
        (folder / f"{job}-{world}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], sys.argv[5])
