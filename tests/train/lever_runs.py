"""Short runs with every lever by itself, each whole and gone on with from its middle; a job of `tests.train.ranks`."""

import shutil
from pathlib import Path
from typing import Any

STEPS, HALF = 12, 6

LEVERS: dict[str, dict[str, Any]] = {
    "plain": {},
    "multi": {"task.kind": "multi"},
    "regression": {"task.kind": "regression"},
    "class_weights": {"task.class_weights": "balanced"},
    "freeze_layers": {"freeze.layers": 1},
    "freeze_embeddings": {"freeze.embeddings": True},
    "freeze_all": {"freeze.layers": "all", "train.lr": 0.05, "train.steps": 120},  # it learns slowly
    "gradual": {"freeze.gradual": True, "train.batch_size": 100, "train.lr": 0.02},
    "layer_decay": {"train.layer_decay": 0.8},
    "weight_decay": {"train.weight_decay": 0.1},
    "dropout": {"model.dropout": 0.3},
    "label_smoothing": {"regularize.label_smoothing": 0.1},
    "r_drop": {"regularize.r_drop": 1.0},
    "fgm": {"adversarial.name": "fgm"},
    "pgd": {"adversarial.name": "pgd"},
    "freelb": {"adversarial.name": "freelb"},
    "smart": {"adversarial.name": "smart"},
    "lora": {"adapter.name": "lora", "adapter.rank": 4},
    "adalora": {"adapter.name": "adalora", "adapter.rank": 4, "adapter.target_rank": 2},
    "prefix": {"adapter.name": "prefix", "adapter.tokens": 3},
    "bottleneck": {"adapter.name": "bottleneck", "adapter.width": 4},
    "bitfit": {"adapter.name": "bitfit"},
    "ewc": {"regularize.ewc": 1.0},
    "patience": {"train.evaluate.every": 2, "train.evaluate.patience": 1, "train.lr": 1e-9},
}
"""A setting (or its group's name) switches each on."""

RESUMED = ("r_drop", "smart", "adalora", "prefix", "bottleneck", "bitfit", "ewc")
"""What draws random numbers of its own or keeps a state; the others go on as plain runs do (see test_task_loop)."""


def tables(folder: Path) -> dict[str, dict[str, str]]:
    """Rows whose labels are lists, or numbers; for elastic weights the labels exchanged, and the model of `plain`."""
    import pyarrow.parquet as pq

    from tests.train.task_tables import write

    table = pq.read_table(folder / "train.parquet").to_pylist()
    other = {"place": "being", "being": "place"}
    paths = {
        "multi": write(folder / "multi.parquet", [row | {"label": ["x", row["label"]]} for row in table]),
        "regression": write(
            folder / "numbers.parquet", [row | {"label": len(row["text"]) / 40} for row in table]
        ),
        "ewc": write(folder / "exchanged.parquet", [row | {"label": other[row["label"]]} for row in table]),
    }
    found = {name: {"data.path": path, "data.validation": path} for name, path in paths.items()}
    found["ewc"] |= {"regularize.ewc_data": str(folder / "train.parquet"), "regularize.ewc_rows": "40"}
    found["ewc"] |= {"model.name": str(folder / "plain" / "model")}
    return found


def levers(folder: Path, rank: int) -> dict[str, Any]:
    """Figures, losses and files of every run, and the figures of what goes on from its middle."""
    from raybert.train.checkpoint import Checkpoints
    from tests.train.ranks import task_run
    from tests.train.task_tables import task_settings

    del rank
    task_settings(folder, folder)
    more, out = tables(folder), {}
    common = {"train.steps": STEPS, "train.evaluate.every": HALF, "train.checkpoint.steps": HALF}
    common |= {"model.dropout": 0.1, "train.log_every": 1, "train.lr": 0.01}
    for name, changes in LEVERS.items():
        changes = {**common, **changes, **more.get(name, {})}
        run, lines = task_run(folder, name, changes)
        out[name] = {"figures": run.go(), "lines": lines}
        out[name]["losses"] = [loss for _, loss in run.records.history.values["train/loss"]]
        out[name]["files"] = sorted(file.name for file in (folder / name / "model").iterdir())
        if name not in RESUMED:
            continue
        shutil.copytree(folder / name, folder / f"{name}-again")
        shutil.rmtree(folder / f"{name}-again" / "model")
        Checkpoints(folder / f"{name}-again" / "checkpoints").drop_after(HALF)
        out[name]["again"] = task_run(folder, f"{name}-again", changes)[0].go()
    return out
