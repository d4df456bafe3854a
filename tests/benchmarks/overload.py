"""More requests than the service can answer: from a client that does not wait for answers, at several times what was
measured.

    python tests/benchmarks/overload.py [times=4] [seconds=60] [deadline=5] [ingress=haproxy] [measure=8] [output=FILE.json]

One replica of `raybert serve` with serve.deadline, texts of 160 to 240 tokens. First its capacity: requests/s with 64
clients that wait for their answers, and the latency of one. Then requests at random times (Poisson) for `seconds`. Each
must be answered within the deadline or refused with 429 and Retry-After. Last, one client that waits: is it as quick as
before, and after how many seconds? Prints the figures, then one JSON line. Returns 1 where the service did not keep to
that: the 99th percentile of the accepted at or over the deadline, an answer besides 200 and 429, no Retry-After, memory
of the replica that grew by more than 10 % and 50 MB, or still slow after 10 seconds.
"""

import json
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import models
import numpy as np
import roof
import serving_sides
import texts
from serve import client
from serving_sides import Server

DEFAULTS = {
    "times": "4",
    "seconds": "60",
    "deadline": "5",
    "ingress": "haproxy",
    "measure": "8",
    "output": "",
}
TEXTS, LEAST, MOST = 256, 160, 240
BACK_SECONDS = 10.0


def main(argv: Sequence[str]) -> int:
    """Measure, overload, measure again. Returns 0, 1 for a service that failed, or 2 for a word not understood."""
    given = dict(word.partition("=")[::2] for word in argv)
    unknown = [key for key in given if key not in DEFAULTS]
    if unknown:
        print(
            f"overload: cannot use {', '.join(unknown)}; the settings are {', '.join(DEFAULTS)}",
            file=sys.stderr,
        )
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped
    settings = {**DEFAULTS, **given}
    with tempfile.TemporaryDirectory() as folder:
        report = run(Path(folder), settings)
    report["failures"] = failures(report)
    show(report)
    if settings["output"]:
        Path(settings["output"]).write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report))
    return 1 if report["failures"] else 0


def run(folder: Path, settings: dict[str, str]) -> dict[str, Any]:
    """What the JSON says."""
    model = models.make_model("minilm", 256, folder / "model", [])
    tokens = write_bodies(folder, texts.load_tokenizer(model))
    port = serving_sides.free_port()
    words = [sys.executable, "-m", "raybert", "serve", f"model.name={model}", "serve.name=model"]
    words += [
        f"serve.port={port}",
        f"serve.ingress={settings['ingress']}",
        f"serve.deadline={settings['deadline']}",
    ]
    server = Server(words, folder / "log", roof.machine()["cores"])
    common = [f"port={port}", "path=/v1/embeddings", f"bodies={folder / 'bodies.json'}"]
    try:
        server.wait(port, "/v1/embeddings")
        busy = client(*common, "clients=64", f"seconds={settings['measure']}", "warmup=2")
        alone = client(*common, "clients=1", f"seconds={settings['measure']}", "warmup=1")
        capacity = busy["counts"].get("200", 0) / busy["seconds"]
        rate, before = float(settings["times"]) * capacity, server.rss()
        load = client(*common, f"rate={rate}", f"seconds={settings['seconds']}")
        late = load["seconds"] - float(
            settings["seconds"]
        )  # the last answer came so long after the last request
        back = recovery(common, 2 * median(alone))
        after = server.rss()
    finally:
        server.stop()
    return {
        "machine": roof.machine(),
        "settings": settings,
        "tokens_per_request": tokens,
        "capacity_per_second": capacity,
        "rate": rate,
        "alone_p50_ms": median(alone),
        "counts": load["counts"],
        "errors": load["errors"],
        "retry_after": load["retry_after"],
        "seconds": load["seconds"],
        "latency_ms": {status: percentiles(found) for status, found in load["latencies"].items()},
        # what was accepted last is answered after the last request has left
        "goodput_of_capacity": load["counts"].get("200", 0) / load["seconds"] / capacity,
        "client_cpu_share": load["cpu_seconds"] / load["seconds"],
        "rss_before": before,
        "rss_after": after,
        "normal_after_seconds": None if back is None else late + back,
    }


def write_bodies(folder: Path, tokenizer: Any) -> float:
    """bodies.json; the mean tokens of a text."""
    docstrings = texts.read_docstrings(folder / "docstrings", 6000)
    lengths = texts.lengths_of(docstrings, tokenizer)
    fits = (lengths >= LEAST) & (lengths <= MOST)
    chosen = [text for text, fit in zip(docstrings, fits, strict=True) if fit][:TEXTS]
    bodies = [{"model": "model", "input": text, "encoding_format": "base64"} for text in chosen]
    (folder / "bodies.json").write_text(json.dumps(bodies))
    return float(lengths[fits][:TEXTS].mean())


def recovery(common: Sequence[str], bound_ms: float) -> float | None:
    """Seconds until a lone client's requests of half a second have a median below the bound; None: not in time."""
    started = time.monotonic()
    while time.monotonic() - started < BACK_SECONDS:
        tried = time.monotonic() - started
        got = client(*common, "clients=1", "seconds=0.5")
        if set(got["counts"]) == {"200"} and median(got) < bound_ms:
            return tried
    return None


def median(got: dict[str, Any]) -> float:
    """Milliseconds of the answered."""
    return float(np.median(got["latencies"]["200"]))


def percentiles(found: Sequence[float]) -> dict[str, float]:
    """Of milliseconds."""
    p50, p99 = np.percentile(found, [50, 99])
    return {"p50": float(p50), "p99": float(p99), "most": float(max(found))}


def failures(report: dict[str, Any]) -> list[str]:
    """What the service did not keep to."""
    found = []
    others = {status: count for status, count in report["counts"].items() if status not in ("200", "429")}
    if others:
        found.append(f"answers besides 200 and 429: {others} {report['errors']}")
    if report["counts"].get("429") and report["retry_after"].get("429") is None:
        found.append("429 without Retry-After")
    if report["latency_ms"]["200"]["p99"] >= 1000 * float(report["settings"]["deadline"]):
        found.append("the 99th percentile of the accepted is at or over the deadline")
    if report["rss_after"] > max(1.1 * report["rss_before"], report["rss_before"] + 50e6):
        found.append("the replica's memory grew")
    if report["normal_after_seconds"] is None:
        found.append(f"still slow {BACK_SECONDS:g} s after the load")
    return found


def show(report: dict[str, Any]) -> None:
    """For people."""
    accepted = report["latency_ms"]["200"]
    print(f"{report['machine']['cpu']}, {report['machine']['cores']} cores; {report['settings']}")
    print(
        f"capacity {report['capacity_per_second']:.1f} requests/s of {report['tokens_per_request']:.0f} tokens; "
        f"asked for {report['rate']:.1f}/s during {report['seconds']:.0f} s"
    )
    print(f"answers {report['counts']}, Retry-After of at least {report['retry_after']} s")
    for status, found in report["latency_ms"].items():
        print(
            f"  {status}: p50 {found['p50']:,.0f} ms, p99 {found['p99']:,.0f} ms, most {found['most']:,.0f} ms"
        )
    print(
        f"goodput {report['goodput_of_capacity']:.0%} of capacity; accepted p99 {accepted['p99'] / 1000:.2f} s"
    )
    print(f"replica {report['rss_before'] / 1e6:,.0f} MB before, {report['rss_after'] / 1e6:,.0f} MB after")
    back = report["normal_after_seconds"]
    when = "not normal again" if back is None else f"normal again {back:.1f} s after the last request"
    print(f"one client: p50 {report['alone_p50_ms']:.0f} ms before; {when}")
    for each in report["failures"]:
        print(f"FAILED: {each}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
