"""Memory of the whole process tree does not grow with the corpus."""

import random
import threading
import time
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.cluster.processes import Job
from tests.conftest import WORDS


def write_short_texts(folder: Path, rows: int) -> None:
    """Distinct texts of three words and a number, in files of 250,000 rows."""
    folder.mkdir(parents=True)
    rng = random.Random(0)
    for first in range(0, rows, 250_000):
        texts = [f"{i} {' '.join(rng.choices(WORDS, k=3))}" for i in range(first, min(rows, first + 250_000))]
        ids = pa.array(range(first, first + len(texts)))
        pq.write_table(
            pa.table({"id": ids, "text": texts}), folder / f"{first:08d}.parquet", row_group_size=50_000
        )


def resident(root: int) -> tuple[float, dict[str, float]]:
    """MB of proportional memory (PSS) of a process and all below it, whole and by kind of process."""
    kinds: dict[str, float] = {}
    for process in [psutil.Process(root), *psutil.Process(root).children(recursive=True)]:
        try:
            name = process.cmdline()[0].rpartition("/")[2][:30]
            kinds[name] = kinds.get(name, 0) + process.memory_full_info().pss / 1e6
        except (psutil.Error, IndexError):
            continue
    return sum(kinds.values()), kinds


def peak_while_running(job: Job) -> float:
    """Run to the end; the largest sum seen, sampled every second."""
    process = job.start("workers.count=2")
    peak, stop = [0.0], threading.Event()

    def watch() -> None:
        while not stop.is_set():
            try:
                peak[0] = max(peak[0], resident(process.pid)[0])
            except psutil.Error:
                return
            time.sleep(1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    out, err = process.communicate()
    stop.set()
    watcher.join()
    assert process.returncode == 0, out + err
    return peak[0]


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_million_rows_need_no_more_than_a_quarter_of_them(tiny, tmp_path):
    peaks = {}
    for rows in (250_000, 1_000_000):
        write_short_texts(tmp_path / f"in{rows}", rows)
        job = Job(tiny, str(tmp_path / f"in{rows}"), str(tmp_path / f"out{rows}"), rows_per_shard=10_000)
        started = time.monotonic()
        peaks[rows] = peak_while_running(job)
        print(
            f"{rows:,} rows: peak {peaks[rows]:,.0f} MB of the process tree, {time.monotonic() - started:.0f} s"
        )
        found = sum(pq.ParquetFile(f).metadata.num_rows for f in Path(job.output, "data").iterdir())
        assert found == rows
    assert peaks[1_000_000] < peaks[250_000] * 1.15 + 50
