"""Jobs of `tests.train.ranks` on several tasks: what every stage of ZeRO does to heads, runs gone on with, levers."""

import json
import shutil
from pathlib import Path

STEPS = 8
LONG = {"train.zero": 2, "train.steps": 60, "train.evaluate.every": 30, "train.checkpoint.steps": 30}
"""Of a run in which every task is learnt."""


def run_of(folder: Path, name: str, **changes):
    """A run of the loop in this process."""
    import torch.distributed as dist

    from raybert.train.loop import Run
    from raybert.train.several import SeveralTasks
    from tests.train.several_tables import prepared_of, tables

    if dist.get_rank() == 0 and not (folder / "intents-train.parquet").exists():
        tables(folder)
    dist.barrier()
    config, prepared = prepared_of(folder, name, write_files=dist.get_rank() == 0, **changes)
    dist.barrier()
    return Run(config, prepared.job, SeveralTasks(config, prepared.job), "cpu", lambda line: None)


def common(folder: Path, rank: int) -> dict:
    """ZeRO 0 against the reference; under ZeRO 2 a run whole, and gone on with from its middle."""
    return {
        "zero0": stepwise(folder, rank, "zero0"),
        "plain": whole_and_again(folder, rank, "plain", **LONG),
    }


def more_stages(folder: Path, rank: int) -> dict:
    """The other stages."""
    return {name: stepwise(folder, rank, name, **given) for name, given in _MORE_STAGES.items()}


_HALF = {"train.precision": "bfloat16"}
_MORE_STAGES: dict = {
    "zero1": {"train.zero": 1},
    "zero2": {"train.zero": 2, "train.layer_decay": 0.9},
    "zero3": {"train.zero": 3},
    "zero1-bfloat16": {"train.zero": 1, **_HALF},
    "zero2-bfloat16": {"train.zero": 2, **_HALF},
    "lamb": {"train.optimizer": "lamb"},
}


def stepwise(folder: Path, rank: int, name: str, **changes) -> dict:
    """Which heads every step changed, weights and moments; how far the weights are from `reference` in the end."""
    import torch

    from raybert.train.gather import gather

    run = run_of(
        folder, name, **{"train.steps": STEPS, "train.evaluate.every": 0, "model.dropout": 0.1, **changes}
    )
    run._start(None)
    turns = [run.trained.streams[0].turn(step) for step in range(STEPS)]
    moved, losses = [], []
    for _ in range(STEPS):
        before = gather(run.engine)
        losses.append(run._one_step().loss)
        after = gather(run.engine)
        if rank:
            continue
        found = set()
        for was, now in ((before.weights, after.weights), (before.moments, after.moments)):
            heads = [key for key in now if "encoder.layer" not in key and "embeddings" not in key]
            found |= {
                key.split(".")[0] for key in heads if key in was and not torch.equal(was[key], now[key])
            }
        moved.append(sorted(found))
    run.engine.close()
    out = {"turns": turns, "moved": moved, "losses": losses}
    if rank == 0:
        weights, out["expected"] = reference(run)
        away = {key: float((value - after.weights[key]).abs().max()) for key, value in weights.items()}
        out["away"] = max(away.values())
        out["moves"] = float((weights["of_entities.classifier.weight"] - run.begun).abs().max())
        out["updates"] = {key: int(value) for key, value in after.extra.items()}
    return out


def reference(run) -> tuple[dict, list[float]]:
    """The weights after the same steps by torch alone in one process, which passes over what has no gradient."""
    from raybert.train.optimizers import make_optimizer
    from raybert.train.step import train_step

    several, train = run.trained, run.train
    model = several.model(None)
    optimizer = make_optimizer(train.optimizer, model, betas=(0.9, 0.999), groups=several.groups(model))
    run.begun = dict(model.plain.named_parameters())["of_entities.classifier.weight"].detach().clone()
    cursor, losses = several.streams[0].cursor(), []
    for step in range(STEPS):
        batch = several.streams[0].read(cursor)
        cursor = batch.cursor
        model.train()
        found = train_step(
            model,
            optimizer,
            batch.micro,
            lr=run.schedules[0](step),
            seed=train.seed,
            step=step,
            clip=train.clip,
            objective=several.objective,
        )
        losses.append(found.loss)
    return {key: p.detach() for key, p in model.plain.named_parameters()}, losses


def levers(folder: Path, rank: int) -> dict:
    """Short runs with every lever, each gone on with."""
    short = {"train.steps": 8, "train.evaluate.every": 4, "train.checkpoint.steps": 4}
    return {name: whole_and_again(folder, rank, name, **short, **given) for name, given in _LEVERS.items()}


_LEVERS: dict = {
    "lora": {"adapter.name": "lora", "train.zero": 2},
    "bitfit": {"adapter.name": "bitfit"},
    "bottleneck": {"adapter.name": "bottleneck", "adapter.width": 4},
    "frozen": {"freeze.layers": 1, "train.layer_decay": 0.8},
    "head": {"freeze.layers": "all"},
    "gradual": {"freeze.gradual": True},
    "r_drop": {"regularize.r_drop": 1.0, "regularize.label_smoothing": 0.1, "model.dropout": 0.2},
    "fgm": {"adversarial.name": "fgm"},
    "pgd": {"adversarial.name": "pgd", "train.zero": 3},
    "freelb": {"adversarial.name": "freelb", "adversarial.epsilon": 0.0},
    "padded": {"train.padded": True},
}


def whole_and_again(folder: Path, rank: int, name: str, **changes) -> dict:
    """A run whole; and the same from the checkpoint in its middle, as after a kill."""
    import torch.distributed as dist

    from raybert.train.checkpoint import Checkpoints

    run = run_of(folder, name, **changes)
    out: dict = {"figures": run.go(), "history": run.records.history.values, "best": run.best}
    last = run.steps
    out["digests"] = run.checkpoints.record(last)["digests"]
    out["cursor"] = run.checkpoints.record(last)["cursor"]
    dist.barrier()
    if rank == 0:
        shutil.copytree(folder / name, folder / f"{name}-again")
        shutil.rmtree(folder / f"{name}-again" / "model")
        Checkpoints(folder / f"{name}-again" / "checkpoints").drop_after(last // 2)
    dist.barrier()
    more = run_of(folder, f"{name}-again", **changes)
    out["again"] = more.go()
    out["again_digests"] = more.checkpoints.record(last)["digests"]
    return json.loads(json.dumps(out))
