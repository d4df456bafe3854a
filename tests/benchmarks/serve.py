"""Embedding one text a request over HTTP on loopback: raybert's service against others, in alternating rounds.

    python tests/benchmarks/serve.py [sides=raybert haproxy,raybert proxy,...] [texts=short,mixed] [clients=1,8,64]
                                     [seconds=5] [rounds=3] [format=base64] [output=FILE.json]
                                     [infinity=.venv/infinity/bin/python]

In every round each side (serving_sides.py) is started, asked for `seconds` by so many clients that ask again as soon as
they are answered, and stopped, so that only one runs at a time; each round begins with another side. The load client
(load.py) has a process of its own on the same cores. Texts (texts.py) have at most 256 tokens, so no side has to cut. A
table and one JSON: requests/s and latencies (medians of the rounds), how many times as many requests the first side
answers (median of the ratios within a round), CPU seconds of all processes of the server for 1,000 requests, and the
least cosine of a sample of its answers to Encoder in float32. infinity is left out, with a line that says so, where its
packages (peers_serve.txt, `make bench-serve` installs them) are not there.
"""

import base64
import json
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
import roof
import serving_sides
import texts
from serving_sides import SIDES, Server

REPO = Path(__file__).parent.parent.parent
HERE = Path(__file__).parent
DEFAULTS = {
    "sides": ",".join(SIDES),
    "texts": "short,mixed",
    "clients": "1,8,64",
    "seconds": "5",
    "rounds": "3",
    "format": "base64",
    "output": "",
    "infinity": str(REPO / ".venv/infinity/bin/python"),
}
TEXTS, SAMPLE, WARM_SECONDS, LEAST_COSINE = 1024, 32, 1.0, 0.99


def main(argv: Sequence[str]) -> int:
    """Run all rounds; print the table, then everything as JSON. Returns 0, or 2 for a word not understood."""
    given = dict(word.partition("=")[::2] for word in argv)
    settings = {**DEFAULTS, **given}
    names = settings["sides"].split(",")
    unknown = [key for key in given if key not in DEFAULTS] + [name for name in names if name not in SIDES]
    if unknown:
        print(
            f"serve: cannot use {', '.join(unknown)}; the settings are {', '.join(DEFAULTS)}", file=sys.stderr
        )
        return 2
    if not Path(settings["infinity"]).exists() and any("infinity" in name for name in names):
        print(f"infinity is left out: there is no {settings['infinity']}")
        names = [name for name in names if "infinity" not in name]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the servers are stopped
    rounds: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), settings)
        for i in range(int(settings["rounds"])):
            found = {}
            for j in range(len(names)):
                name = names[(i + j) % len(names)]
                found[name] = bench.measure(name)
            rounds.append(found)
    report = {
        "machine": roof.machine(),
        "settings": {key: settings[key] for key in ("seconds", "rounds", "format")},
        "cells": summary(rounds, names),
    }
    print(table(report, names))
    if settings["output"]:
        Path(settings["output"]).write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))
    return 0


class Bench:
    """The model, the requests and the vectors to compare with, for every side alike."""

    def __init__(self, folder: Path, settings: dict[str, str]) -> None:
        self._folder, self._settings = folder, settings
        self._kinds = settings["texts"].split(",")
        self._model = models.make_model("minilm", 256, folder / "model", [])
        self._onnx: Path | None = None
        tokenizer = texts.load_tokenizer(self._model)
        docstrings = texts.read_docstrings(folder / "docstrings", 12_000)
        self._wanted = {}
        from raybert import Encoder

        encoder = Encoder.load(str(self._model), dtype="float32")
        for kind in self._kinds:
            made = texts.make_texts(kind, 2 * TEXTS, docstrings, tokenizer)
            fits = texts.lengths_of(made, tokenizer) <= 256
            given = [text for text, fit in zip(made, fits, strict=True) if fit][:TEXTS]
            form = settings["format"]
            bodies = [{"model": "model", "input": text, "encoding_format": form} for text in given]
            (folder / f"{kind}.json").write_text(json.dumps(bodies))
            self._wanted[kind] = encoder.encode(given[:SAMPLE])

    def measure(self, name: str) -> dict[str, Any]:
        """Start a side, load it in every way, stop it."""
        side, port = SIDES[name], serving_sides.free_port()
        places = {"python": sys.executable, "infinity": self._settings["infinity"], "model": self._model}
        if any("{onnx}" in word for word in side.words):
            places["onnx"] = self._exported()
        words = [word.format(port=port, **places) for word in side.words]
        server = Server(words, self._folder / "log", roof.machine()["cores"])
        found = {}
        try:
            server.wait(port, side.path)
            for kind in self._kinds:
                for clients in self._settings["clients"].split(","):
                    found[f"{kind} {clients}"] = self._cell(server, side, port, kind, clients)
                    print(f"  {name}: {kind} {clients}: {line(found[f'{kind} {clients}'])}", flush=True)
        finally:
            server.stop()
        return found

    def _cell(self, server: Server, side: Any, port: int, kind: str, clients: str) -> dict[str, Any]:
        words = [
            f"port={port}",
            f"path={side.path}",
            f"clients={clients}",
            f"bodies={self._folder / kind}.json",
        ]
        client(*words, f"seconds={WARM_SECONDS}")
        before = server.cpu_seconds()
        got = client(*words, f"seconds={self._settings['seconds']}", f"save={SAMPLE}")
        cpu = server.cpu_seconds() - before
        answered = got["counts"].get("200", 0)
        if set(got["counts"]) != {"200"}:
            raise RuntimeError(f"{side.name} answered {got['counts']} {got['errors']}")
        found = {int(number): vector_of(json.loads(text)) for number, text in got["saved"].items()}
        cosines = [cosine(vector, self._wanted[kind][number]) for number, vector in found.items()]
        if min(cosines) < LEAST_COSINE:
            raise RuntimeError(f"{side.name} is wrong: the cosine to Encoder is {min(cosines):.4f}")
        p50, p99 = np.percentile(got["latencies"]["200"], [50, 99])
        return {
            "requests_per_second": answered / got["seconds"],
            "p50_ms": float(p50),
            "p99_ms": float(p99),
            "cpu_seconds_per_1000": 1000 * cpu / answered,
            "client_cpu_seconds_per_1000": 1000 * got["cpu_seconds"] / answered,
            "least_cosine": min(cosines),
        }

    def _exported(self) -> Path:
        """The model with model.onnx, made by the packages of the side that reads it."""
        if self._onnx is None:
            self._onnx = models.make_model("minilm", 256, self._folder / "onnx", [])
            script = f"import models, pathlib; models.export_onnx(pathlib.Path({str(self._onnx)!r}))"
            subprocess.run(
                [self._settings["infinity"], "-c", script], check=True, cwd=HERE, stdout=subprocess.DEVNULL
            )
        return self._onnx


def client(*words: str) -> dict[str, Any]:
    """What load.py prints."""
    command = [sys.executable, str(HERE / "load.py"), *words]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def vector_of(answer: Any) -> np.ndarray:
    """The first vector of an answer, base64 or numbers."""
    found = answer["data"][0]["embedding"]
    if isinstance(found, str):
        return np.frombuffer(base64.b64decode(found), "<f4")
    return np.array(found, np.float32)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of two vectors."""
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def summary(rounds: Sequence[dict[str, Any]], names: Sequence[str]) -> dict[str, Any]:
    """Cell -> side -> medians over the rounds; ratios are the first side's requests/s over the side's, by round."""
    cells: dict[str, Any] = {}
    for cell in rounds[0][names[0]]:
        cells[cell] = {}
        for name in names:
            measured = [found[name][cell] for found in rounds]
            medians = {key: statistics.median(each[key] for each in measured) for key in measured[0]}
            speed = "requests_per_second"
            ratios = [found[names[0]][cell][speed] / found[name][cell][speed] for found in rounds]
            slower = [found[names[0]][cell]["p50_ms"] - found[name][cell]["p50_ms"] for found in rounds]
            cells[cell][name] = {
                **medians,
                "least_cosine": min(each["least_cosine"] for each in measured),
                "first_is_times": statistics.median(ratios),
                "ratios": ratios,
                "first_p50_is_later_ms": statistics.median(slower),
            }
    return cells


def line(cell: dict[str, float]) -> str:
    """One measurement."""
    return (
        f"{cell['requests_per_second']:8.1f}/s  p50 {cell['p50_ms']:7.1f} ms  p99 {cell['p99_ms']:7.1f} ms  "
        f"CPU {cell['cpu_seconds_per_1000']:6.2f} s/1000  cosine {cell['least_cosine']:.5f}"
    )


def table(report: dict[str, Any], names: Sequence[str]) -> str:
    """For people."""
    machine = report["machine"]
    lines = [
        f"{machine['cpu']}, {machine['cores']} cores, {' '.join(machine['flags'])}; {report['settings']}"
    ]
    for cell, sides in report["cells"].items():
        kind, clients = cell.split()
        lines += ["", f"{kind} texts, {clients} clients; times: {names[0]} over the side"]
        for name, side in sides.items():
            least, most = min(side["ratios"]), max(side["ratios"])
            times = f"{side['first_is_times']:.2f} x ({least:.2f} to {most:.2f})"
            lines.append(f"{name:28} {line(side)}  {times}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
