"""Labelled tables that a tiny model learns at once, and settings of small runs on them."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tests.encoder.tiny import tiny_model

_FRUIT, _BEAST = ("river", "city", "world", "music"), ("fox", "dog", "people", "machine")
_REST = ("the", "and", "of", "many", "little", "long", "other", "time", "quick", "lazy")


def rows(n: int, seed: int) -> list[dict[str, str]]:
    """Texts of common words and two that tell the label: `place` or `being`."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(n):
        place = bool(rng.random() < 0.5)
        words = [*rng.choice(_REST, rng.integers(2, 9)), *rng.choice(_FRUIT if place else _BEAST, 2)]
        found.append({"text": " ".join(rng.permutation(words)), "label": "place" if place else "being"})
    return found


def word_pairs(n: int, seed: int) -> list[dict[str, str]]:
    """Two or three words, and the same with the last one first."""
    rng, found = np.random.default_rng(seed), []
    for _ in range(n):
        words = rng.choice([*_FRUIT, *_BEAST], rng.integers(2, 4)).tolist()
        found.append({"source": " ".join(words), "target": " ".join([words[-1], *words[:-1]])})
    return found


def write(path: Path, table: list[dict[str, Any]]) -> str:
    """A Parquet file of rows."""
    pq.write_table(pa.Table.from_pylist(table), path)
    return str(path)


def task_settings(folder: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """Of a small run; the table and the model are made in `folder`."""
    if not (folder / "train.parquet").exists():
        tiny_model(folder / "model", st=True)
        write(folder / "validation.parquet", rows(60, 1))
        write(folder / "train.parquet", rows(400, 0))
    train = {
        "steps": 24,
        "batch_size": 32,
        "lr": 6e-3,
        "log_every": 4,
        "warmup": 2,
        "clip": 1.0,
        "precision": "float32",
    }
    train |= {"evaluate.every": 8, "checkpoint.steps": 4, "checkpoint.keep": 9}
    return {
        "model.name": str(folder / "model"),
        "data.path": str(folder / "train.parquet"),
        "data.validation": str(folder / "validation.parquet"),
        "output.path": str(output),
        "batch_tokens": 192,
        "track": [],
        **{f"train.{key}": value for key, value in train.items()},
        **changes,
    }


def right_share(folder: Path, model: Path) -> float:
    """The accuracy of a finished model on the validation rows of `folder`, by transformers' own pipeline."""
    from transformers import pipeline

    table = pq.read_table(folder / "validation.parquet").to_pylist()
    found = pipeline("text-classification", model=str(model))([row["text"] for row in table])
    return sum(f["label"] == row["label"] for f, row in zip(found, table, strict=True)) / len(table)
