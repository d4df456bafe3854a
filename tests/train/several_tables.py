"""Tables of several tasks that a tiny model learns, and settings of small runs on them."""

from pathlib import Path
from typing import Any

from raybert.config import load
from raybert.config.finetune import FinetuneConfig
from raybert.corpus.store import Store
from raybert.train.several import SeveralTasks
from raybert.train.task_job import Prepared, complete_job, prepare_job
from tests.train.task_tables import rows, task_settings, write

_BEINGS = ("fox", "dog", "people", "machine")
KINDS = ("intents", "entities", "numbers", "relations", "answers")


def tables(folder: Path, n: int = 120) -> None:
    """A table to train on and one to evaluate on for each of `KINDS`, of different sizes; and the tiny model."""
    task_settings(folder, folder)
    for part, seed, count in (("train", 0, n), ("validation", 1, 30)):
        texts = rows(count, seed)
        made: dict[str, list[dict[str, Any]]] = {name: [] for name in KINDS}
        for i, row in enumerate(texts):
            words = row["text"].split()
            tags = ["B-being" if word in _BEINGS else "O" for word in words]
            made["intents"].append(row)
            made["entities"].append({"tokens": words, "tags": tags})
            made["numbers"].append({"text": row["text"], "label": sum(tag != "O" for tag in tags) / 2})
            label = "In(e1,e2)" if i % 2 else "Other"
            made["relations"].append(
                {"text": f"<e1>{words[0]}</e1> the <e2>{words[i % 2]}</e2>", "label": label}
            )
            made["answers"].append(
                {"question": "who", "context": row["text"], "answer": words[0], "answer_start": 0}
            )
        sizes = {
            "intents": count,
            "entities": count // 2,
            "numbers": count // 3,
            "relations": 20,
            "answers": 20,
        }
        for name, size in sizes.items():
            write(folder / f"{name}-{part}.parquet", made[name][:size])


def several_settings(folder: Path, output: Path, names: tuple[str, ...] = KINDS[:3], **changes: Any) -> dict:
    """Of a small run on some of the `tables`."""
    given = task_settings(folder, output)
    found = {key: value for key, value in given.items() if not key.startswith("data.")}
    tasks = {"intents": "classification", "numbers": "classification"}
    for name in names:
        prefix = f"task.tasks.{name}"
        found[f"{prefix}.task.name"] = tasks.get(name, name)
        found[f"{prefix}.data.path"] = str(folder / f"{name}-train.parquet")
        found[f"{prefix}.data.validation"] = str(folder / f"{name}-validation.parquet")
    if "numbers" in names:
        found["task.tasks.numbers.task.kind"] = "regression"
    return {**found, "task.name": "several", "train.batch_size": 16, "train.warmup": 1, **changes}


def several_of(
    folder: Path, name: str, *, write_files: bool = True, **changes: Any
) -> tuple[FinetuneConfig, Prepared, SeveralTasks]:
    """What the loop runs, its files written."""
    config, prepared = prepared_of(folder, name, write_files=write_files, **changes)
    return config, prepared, SeveralTasks(config, prepared.job)


def prepared_of(
    folder: Path, name: str, *, write_files: bool = True, **changes: Any
) -> tuple[FinetuneConfig, Prepared]:
    """Settings and job, its files written."""
    config = load(FinetuneConfig, settings=several_settings(folder, folder / name, **changes))
    prepared = prepare_job(config)
    complete_job(prepared, config, gpu=False, workers=2)
    for file, content in prepared.files.items() if write_files else ():
        Store(config.output.path).write(file, content)
    return config, prepared
