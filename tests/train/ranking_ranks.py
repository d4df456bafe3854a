"""Contrastive batches through the real engine in processes of one gloo group; started by `tests.train.ranks`."""

from pathlib import Path
from typing import Any

import numpy as np

from raybert.config.pair_tasks import RetrievalSettings, SimilaritySettings
from raybert.tasks.examples import Examples, Lists

ROWS, STEP, SEED = 7, 3, 7
SETTINGS: dict[str, Any] = {
    "retrieval": RetrievalSettings(dimensions=[32, 8], symmetric=True, pooling="mean"),
    "similarity": SimilaritySettings(pooling="mean"),
}


def examples_of(task: str) -> Examples:
    """Rows of two sequences; of a retrieval some have hard negatives, and two have one document."""
    from tests.train.fakes import VOCABULARY

    rng = np.random.default_rng(0)
    counts = np.full(ROWS, 2) if task == "similarity" else np.array([2, 4, 2, 3, 2, 2, 3])
    row = np.repeat(np.arange(ROWS), counts)
    role = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    lengths = rng.integers(4, 15, len(row))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(5, VOCABULARY, offsets[-1]).astype(np.int32)
    targets: dict[str, Any] = {"role": role, "example": row}
    if task == "similarity":
        targets["labels"] = np.repeat(rng.integers(0, 4, ROWS) / 4, 2).astype(np.float32)
    else:
        key = np.arange(len(row)) + 100
        key[(row == 4) & (role == 1)] = key[(row == 0) & (role == 1)]
        targets["key"] = key
    return Examples(Lists(ids, offsets), lengths.astype(np.int32), row, targets)


def micros_of(task: str, rank: int, world: int, pieces: int) -> list[Any]:
    """A rank's part of the global batch, which is cut into `pieces` bins whatever the number of ranks."""
    from raybert.train.example_stream import Cursor, ExampleStream
    from raybert.train.step import even_out

    stream = ExampleStream(
        examples_of(task),
        seed=1,
        batch_size=ROWS,
        batch_tokens=1000,
        parts=pieces,
        groups="bin" if task == "similarity" else "batch",
    )
    batch = stream.read(Cursor(), rank, world)
    assert batch.bins == pieces
    return even_out(batch.micro, batch.bins, world)


def model_of(task: str) -> Any:
    """A small encoder with dropout; the same weights every time."""
    import torch
    from transformers import AutoModel

    from raybert.tasks.known import model_side
    from tests.train.fakes import config

    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = AutoModel.from_config(config("bert", dropout=0.3))
    return model_side(task).Model(plain, SETTINGS[task])


def objective_of(task: str, cache: Any) -> Any:
    """As `raybert.train.finetuning` makes it."""
    from functools import partial

    from raybert.tasks.known import model_side
    from raybert.train.example_stream import nothing
    from raybert.train.ranking_objective import RankingObjective

    model, settings = model_side(task).Model, SETTINGS[task]
    share = partial(model.share, settings)
    empty = nothing(examples_of(task))
    return RankingObjective(model.sums_type(settings), model.targets, empty, share=share, cache=cache)


def gradients(task: str, cache: Any, pieces: int, zero: int | None = None) -> tuple[dict[str, float], Any]:
    """The figures of one step, and its gradients by the name of the parameter, added up over the ranks.

    zero: by DeepSpeed's engine of this stage; the gradient is read off an update by plain descent.
    """
    import torch
    import torch.distributed as dist

    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    model, objective = model_of(task), objective_of(task, cache)
    micros = micros_of(task, rank, world, pieces)
    if zero is not None:
        return _through_engine(model, objective, micros, zero)
    counts = objective.count([(0, m) for _, m in micros_of(task, 0, 1, pieces)])
    model.train()
    totals = objective.accumulate(model, micros, counts, seed=SEED, step=STEP)
    found = {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in model.named_parameters()}
    if world > 1:
        for value in (totals, *found.values()):
            dist.all_reduce(value)
    figures = objective.figures(objective.sums(*totals.tolist()), counts)
    return figures.as_dict(), found


def _through_engine(model: Any, objective: Any, micros: list[Any], zero: int) -> tuple[dict[str, float], Any]:
    """One step of plain descent; the gradient is what the weights moved by."""
    from unittest.mock import patch

    import torch

    from raybert.train import engine as module
    from raybert.train.gather import _whole

    lr, config = 0.1, module._config

    class Descent(module.Engine):
        def _optimizer(self, groups):
            return torch.optim.SGD(groups, lr=lr)

    def cut_all(*given: Any) -> dict[str, Any]:
        found = config(*given) | {"zero_allow_untested_optimizer": True}
        found["zero_optimization"]["stage3_param_persistence_threshold"] = (
            0  # so small a model would stay whole
        )
        return found

    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with patch.object(module, "_config", cut_all):
        engine = Descent(
            model, module.EngineSettings(zero=zero, clip=None, weight_decay=0.0), objective=objective
        )
    figures = engine.train(micros, lr=lr, seed=SEED, step=STEP).as_dict()
    after = {name: _whole(engine, p, None).detach().clone() for name, p in model.named_parameters()}
    engine.close()
    return figures, {name: (before[name] - after[name]) / lr for name in before}


def ranking(folder: Path, rank: int) -> dict[str, Any]:
    """What two ranks find, by the name of the case; gradients lie in files."""
    import torch

    out: dict[str, Any] = {}
    for task in SETTINGS:
        for name, cache, pieces, zero in [
            ("graphs", False, 4, None),
            ("cached", "auto", 4, None),
            *((f"zero{zero}", "auto", 4, zero) for zero in (0, 1, 2, 3)),
            ("zero2-one", "auto", 2, 2),
            ("zero3-graphs", False, 4, 3),
        ]:
            figures, found = gradients(task, cache, pieces, zero)
            out[f"{task}-{name}"] = figures
            if rank == 0:
                torch.save(found, folder / f"{task}-{name}.pt")
    return out
