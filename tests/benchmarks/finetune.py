"""Fine-tuning of real tasks: raybert.finetune against Hugging Face's Trainer, the same recipe, seed by seed.

    python tests/benchmarks/finetune.py [tasks=banking77,sst2] [seeds=0,1,2] [sides=raybert,trainer] [rows=0]
        [split=test] [precision=auto] [workers=1] [threads=] [epochs=] [lr=] [data=../shared/data] [output=FILE.json]

One process a side and seed, one after the other: the same weights to begin with (all-MiniLM-L6-v2), rows, labels, batch
size, learning rate (linear with warmup), weight decay, AdamW, dropout, clipping, epochs and precision; the last model is
taken. `trainer` pads each batch to its longest row, `grouped` draws rows of like length together (the Trainer's
train_sampling_strategy=group_by_length), which is faster and another order of the rows. All are given rows tokenized
before. Every finished model, whoever trained it, is read back by plain transformers and scored on the test rows by
scikit-learn, scipy, sacreBLEU and plain_scores.py, in float32.

seconds are those of all updates, without loading, tokenizing and saving; wall those of the whole process until the model
is saved (raybert's begins a Ray). tokens are real ones. threads, all cores unless told, are those of a side together. rows=N takes N rows of each table, for a try; split=dev
scores on dev.parquet, to choose a recipe. Results that are in
the output file already, of the same recipe, are not computed again. Prints a table and the file.
"""

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import recipes
import roof
from recipes import RECIPES, Recipe

HERE = Path(__file__).parent
SIDES = ("raybert", "trainer", "grouped")
DEFAULTS = {
    "tasks": "banking77,sst2",
    "seeds": "0,1,2",
    "sides": "raybert,trainer",
    "rows": "0",
    "split": "test",
    "precision": "auto",
    "workers": "1",
    "threads": "",
    "epochs": "",
    "lr": "",
    "data": str(recipes.DATA),
    "output": "finetune.json",
}
Result = dict[str, Any]


def main(words: list[str]) -> int:
    """Run what is missing; print the table. Returns 0."""
    settings = recipes.read_arguments(words, DEFAULTS)
    output = Path(settings["output"])
    tasks, sides = settings["tasks"].split(","), settings["sides"].split(",")
    for name, known in (("tasks", RECIPES), ("sides", SIDES)):
        if unknown := set(settings[name].split(",")) - set(known):
            raise SystemExit(
                f"{name}={','.join(sorted(unknown))} is not known; there are: {', '.join(known)}"
            )
    shared = {
        "precision": recipes.pick_precision(settings["precision"]),
        "rows": int(settings["rows"]),
        "split": settings["split"],
        "workers": int(settings["workers"]),
        "threads": int(settings["threads"] or recipes.cores()),
    }
    jobs = []
    for task in tasks:
        recipe = dataclasses.asdict(_changed(RECIPES[task], settings))
        for number, seed in enumerate(map(int, settings["seeds"].split(","))):
            jobs += [
                {**shared, "task": task, "side": side, "seed": seed, "recipe": recipe}
                for side in _order(sides, number)
            ]
    results: list[Result] = json.loads(output.read_text())["results"] if output.exists() else []
    with tempfile.TemporaryDirectory() as made:
        for job in jobs:
            if recipes.kept(job, results):
                continue
            tables = recipes.cut_tables(Recipe(**job["recipe"]), settings["data"], job["rows"], Path(made))
            results.append({**job, **_run(job, tables)})
            print(_line(results[-1]), flush=True)
            report = {"machine": roof.machine(), "results": results}
            output.write_text(json.dumps(report, indent=1) + "\n")
    print(table([found for job in jobs if (found := recipes.kept(job, results))]))
    return 0


def _changed(recipe: Recipe, settings: dict[str, str]) -> Recipe:
    changes: dict[str, Any] = {}
    if settings["epochs"]:
        changes["epochs"] = int(settings["epochs"])
    if settings["lr"]:
        changes["lr"] = float(settings["lr"])
    return dataclasses.replace(recipe, **changes)


def _order(sides: Sequence[str], number: int) -> Iterator[str]:
    """Each seed begins with another side."""
    for i in range(len(sides)):
        yield sides[(i + number) % len(sides)]


def _run(job: Result, tables: Path) -> Result:
    """One side and seed, in a process of its own."""
    words = [sys.executable, str(HERE / "finetune.py"), "--side", json.dumps(job), str(tables)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "true"}
    done = subprocess.run(words, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise RuntimeError(f"{job['side']} ended:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def table(results: Sequence[Result]) -> str:
    """For people: mean and sample deviation over the seeds of every task and side; Markdown."""
    lines = [
        "| task | side | precision | figure | mean | deviation | seeds | seconds | tokens/s | wall s | raybert is |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], list[Result]] = {}
    for one in results:
        groups.setdefault((one["task"], one["side"]), []).append(one)
    for (task, name), found in groups.items():
        ours = {one["seed"]: one["seconds"] for one in groups.get((task, "raybert"), [])}
        ratios = [one["seconds"] / ours[one["seed"]] for one in found if one["seed"] in ours]
        times = f"{statistics.median(ratios):.2f} x as fast" if ratios and name != "raybert" else ""
        means = [
            statistics.fmean(one[key] for one in found) for key in ("seconds", "tokens_per_second", "wall")
        ]
        speed = [f"{means[0]:.1f}", f"{means[1]:,.0f}", f"{means[2]:.1f}", times]
        for figure in found[0]["figures"]:
            values = [one["figures"][figure] for one in found]
            spread = f"{statistics.stdev(values):.4f}" if len(values) > 1 else ""
            about = [task, name, found[0]["precision"], figure, f"{statistics.fmean(values):.4f}", spread]
            lines.append(f"| {' | '.join([*about, str(len(values)), *speed])} |")
            speed = [""] * 4
    return "\n".join(lines)


def _line(one: Result) -> str:
    figures = "  ".join(f"{name} {value:.4f}" for name, value in one["figures"].items())
    return (
        f"{one['task']:10} {one['side']:8} seed {one['seed']}  {figures}  {one['seconds']:.1f} s  "
        f"{one['tokens_per_second']:,.0f} tokens/s  (whole process {one['wall']:.1f} s)"
    )


def side(job: Result, tables: Path) -> Result:
    """Train here, then score the model that was saved."""
    started = time.perf_counter()
    recipe = Recipe(**job["recipe"])
    train = _train_raybert if job["side"] == "raybert" else _train_peer
    with tempfile.TemporaryDirectory() as folder:
        model, seconds, tokens = train(job, recipe, tables, Path(folder))
        wall = time.perf_counter() - started
        import plain_task
        import plain_tasks

        finished = plain_tasks.KINDS[recipe.kind](str(model), recipe.max_length)
        figures = plain_task.score(finished, _rows(tables / f"{job['split']}.parquet"))
    figures = {recipe.figure: figures[recipe.figure], **figures}
    speed = {"seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / seconds, "wall": wall}
    return {"figures": figures, **speed}


def _rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    return pq.read_table(path).to_pylist()


def _train_raybert(job: Result, recipe: Recipe, tables: Path, folder: Path) -> tuple[Path, float, int]:
    from raybert import finetune

    run = folder / "run"
    options = {name: job[name] for name in ("seed", "precision", "workers", "threads")}
    finetune(recipes.finetune_settings(recipe, tables, run, **options))
    history = json.loads((run / "_raybert/history.json").read_text())
    return run / "model", *recipes.time_of(history)


def _train_peer(job: Result, recipe: Recipe, tables: Path, folder: Path) -> tuple[Path, float, int]:
    import plain_tasks
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments, set_seed

    torch.set_num_threads(job["threads"])
    kind, rows = plain_tasks.KINDS[recipe.kind], _rows(tables / "train.parquet")
    task = kind.to_train(recipes.model_folder(), recipe.max_length, rows, tables)
    features = task.features(rows)
    updates = recipe.epochs * -(-len(rows) // recipe.batch_size)
    clock = {"seconds": 0.0}

    class Clock(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock["started"] = time.perf_counter()

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock["seconds"] = time.perf_counter() - clock["started"]

    arguments = TrainingArguments(
        output_dir=str(folder / "trainer"),
        per_device_train_batch_size=recipe.batch_size,
        num_train_epochs=recipe.epochs,
        learning_rate=recipe.lr,
        lr_scheduler_type="linear",
        warmup_steps=round(recipe.warmup * updates),
        weight_decay=recipe.weight_decay,
        adam_epsilon=1e-6,  # as raybert, after BERT
        max_grad_norm=1.0,
        label_smoothing_factor=recipe.smoothing,
        optim="adamw_torch_fused",
        bf16=job["precision"] == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        train_sampling_strategy="group_by_length" if job["side"] == "grouped" else "random",
        seed=job["seed"],
        logging_strategy="no",
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
    )
    set_seed(job["seed"])
    model = task.model()
    trainer = Trainer(
        model, arguments, train_dataset=features, data_collator=task.collate, callbacks=[Clock()]
    )
    trainer.train()
    task.save(model, folder / "model")
    return folder / "model", clock["seconds"], recipe.epochs * sum(len(one["input_ids"]) for one in features)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--side"]:
        print(json.dumps(side(json.loads(sys.argv[2]), Path(sys.argv[3]))))
        sys.exit(0)
    sys.exit(main(sys.argv[1:]))
