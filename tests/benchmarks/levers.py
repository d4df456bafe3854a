"""The levers of fine-tuning side by side: parameters that are trained, seconds, and what is reached on the test rows.

    python tests/benchmarks/levers.py [task=sst2] [seeds=0,1,2] [only=full,lora] [epochs=] [rows=0] [precision=auto]
        [workers=1] [threads=] [data=../shared/data] [output=levers.json]

Every lever is the task's recipe (recipes.py) with the settings below: full fine-tuning, and one thing different. The
learning rate is a lever's own, because few new weights need a higher one; it was chosen by short tries, not by a search.
The last model is taken and scored once on the test rows. seconds are those of all updates; the levers run one after the
other. A result that is in the output file already is not computed again: end it and call it again as you like. Prints a
Markdown table.
"""

import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import recipes
import roof

# name -> settings of raybert.finetune that differ from the recipe's
LEVERS: dict[str, dict[str, Any]] = {
    "full": {},
    "head only": {"freeze": {"layers": "all"}, "train": {"lr": 2e-3}},
    "lowest 3 frozen": {"freeze": {"layers": 3}, "train": {"lr": 2e-4}},
    "gradual unfreezing": {"freeze": {"gradual": True}, "train": {"lr": 3e-4}},
    "layer-wise decay 0.8": {"train": {"layer_decay": 0.8, "lr": 2e-4}},
    "LoRA 8": {"adapter": {"name": "lora", "rank": 8}, "train": {"lr": 2e-3}},
    "AdaLoRA 8 to 4": {"adapter": {"name": "adalora", "rank": 8, "target_rank": 4}, "train": {"lr": 3e-3}},
    "prefix 20": {"adapter": {"name": "prefix", "tokens": 20}, "train": {"lr": 5e-3}},
    "bottleneck 64": {"adapter": {"name": "bottleneck", "width": 64}, "train": {"lr": 1e-3}},
    "BitFit": {"adapter": {"name": "bitfit"}, "train": {"lr": 3e-3}},
    "FGM": {"adversarial": {"name": "fgm", "epsilon": 0.2}},
    "PGD 3": {"adversarial": {"name": "pgd", "epsilon": 0.2, "alpha": 0.1, "steps": 3}},
    "FreeLB 2": {"adversarial": {"name": "freelb", "epsilon": 0.0, "alpha": 0.1, "init": 0.6, "steps": 2}},
    "SMART": {"adversarial": {"name": "smart"}},
    "R-Drop 1": {"regularize": {"r_drop": 1.0}},
    "label smoothing 0.1": {"regularize": {"label_smoothing": 0.1}},
}
DEFAULTS = {
    "task": "sst2",
    "seeds": "0,1,2",
    "only": "",
    "epochs": "",
    "rows": "0",
    "precision": "auto",
    "workers": "1",
    "threads": "",
    "data": str(recipes.DATA),
    "output": "levers.json",
}
NEVER = 10**9  # steps between evaluations; there is one at the end all the same
Result = dict[str, Any]


def main(words: list[str]) -> int:
    """Run what is missing; print the table. Returns 0."""
    settings = recipes.read_arguments(words, DEFAULTS)
    chosen = settings["only"].split(",") if settings["only"] else list(LEVERS)
    if unknown := set(chosen) - set(LEVERS):
        raise SystemExit(f"only={','.join(sorted(unknown))} is not known; there are: {', '.join(LEVERS)}")
    recipe = recipes.RECIPES[settings["task"]]
    if settings["epochs"]:
        recipe = dataclasses.replace(recipe, epochs=int(settings["epochs"]))
    shared = {
        "task": settings["task"],
        "recipe": dataclasses.asdict(recipe),
        "rows": int(settings["rows"]),
        "precision": recipes.pick_precision(settings["precision"]),
        "workers": int(settings["workers"]),
        "threads": int(settings["threads"] or recipes.cores()),
    }
    output = Path(settings["output"])
    results: list[Result] = json.loads(output.read_text())["results"] if output.exists() else []
    # a seed of all levers first: the table is whole early
    jobs = [
        {**shared, "lever": lever, "settings": LEVERS[lever], "seed": int(seed)}
        for seed in settings["seeds"].split(",")
        for lever in chosen
    ]
    _run_missing(jobs, results, recipe, settings["data"], output)
    print(table(jobs, results))
    return 0


def _run_missing(
    jobs: Sequence[Result], results: list[Result], recipe: recipes.Recipe, data: str, output: Path
) -> None:
    from raybert.corpus.session import ray_session

    os.environ["HF_HUB_OFFLINE"] = "1"
    missing = [job for job in jobs if not recipes.kept(job, results)]
    if not missing:
        return
    with tempfile.TemporaryDirectory() as made, ray_session():
        tables = recipes.cut_tables(recipe, data, missing[0]["rows"], Path(made))
        for job in missing:
            with tempfile.TemporaryDirectory() as folder:
                results.append({**job, **_run(job, recipe, tables, Path(folder))})
            one = results[-1]
            print(
                f"seed {one['seed']}  {one['lever']:22} {one['value']:.4f}  {one['seconds']:.1f} s",
                file=sys.stderr,
            )
            report = {"machine": roof.machine(), "results": results}
            output.write_text(json.dumps(report, indent=1) + "\n")


def _run(job: Result, recipe: recipes.Recipe, tables: Path, folder: Path) -> Result:
    """One lever and seed."""
    from raybert import finetune

    options = {name: job[name] for name in ("seed", "precision", "workers", "threads")}
    settings = recipes.finetune_settings(recipe, tables, folder / "run", **options)
    for group, values in job["settings"].items():
        settings[group] = {**settings.get(group, {}), **values}
    settings["data"]["validation"] = str(tables / "test.parquet")
    settings["train"]["evaluate"]["every"] = NEVER
    started = time.perf_counter()
    report = finetune(settings)
    wall = time.perf_counter() - started
    seconds, tokens = recipes.time_of(json.loads((folder / "run/_raybert/history.json").read_text()))
    figures = {key.removeprefix("held_out_"): value for key, value in report.figures.items()}
    return {
        "value": figures[recipe.figure],
        "figures": figures,
        "trained": report.figures["trained_parameters"],
        "parameters": report.figures["parameters"],
        "seconds": seconds,
        "wall": wall,
        "tokens": tokens,
    }


def table(jobs: Sequence[Result], results: Sequence[Result]) -> str:
    """For people: mean and sample deviation over the seeds of every lever; Markdown."""
    figure = jobs[0]["recipe"]["figure"]
    lines = [
        f"| {jobs[0]['task']} | learning rate | trained parameters | of all | seconds | x full | {figure} | deviation | seeds |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    by_lever: dict[str, list[Result]] = {}
    for job in jobs:
        if one := recipes.kept(job, results):
            by_lever.setdefault(job["lever"], []).append(one)
    full = [one["seconds"] for one in by_lever.get("full", [])]
    for lever, found in by_lever.items():
        values, seconds = ([one[name] for one in found] for name in ("value", "seconds"))
        cells = [
            lever,
            f"{found[0]['settings'].get('train', {}).get('lr', found[0]['recipe']['lr']):g}",
            f"{found[0]['trained']:,}",
            f"{found[0]['trained'] / found[0]['parameters']:.2%}",
            f"{statistics.fmean(seconds):.1f}",
            f"{statistics.fmean(seconds) / statistics.fmean(full):.2f}" if full else "",
            f"{statistics.fmean(values):.4f}",
            f"{statistics.stdev(values):.4f}" if len(values) > 1 else "",
            str(len(values)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
