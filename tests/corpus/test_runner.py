"""The runner with functions of our own instead of a model: what kills, fails or refuses, and what then happens."""

import os
import signal
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybert.config import EmbedConfig
from raybert.corpus.ledger import Ledger
from raybert.corpus.outcome import Outcome, Refused
from raybert.corpus.plan import make_plan
from raybert.corpus.pool import Pool
from raybert.corpus.runner import Work, run

POOL = Pool(low=1, high=1, cpus=1, gpus=0)


@dataclass(frozen=True)
class Prepare:
    """Hands texts on; a text may ask for trouble."""

    def __call__(self, table, source, shard):
        texts = table["text"].to_pylist()
        if "kill the reader" in texts:
            os.kill(os.getpid(), signal.SIGKILL)
        return table.select(["text"])


@dataclass(frozen=True)
class Lengths:
    """A worker that 'embeds' a text as its length."""

    refuse: bool = False

    def __call__(self):
        if self.refuse:
            raise Refused("other weights")
        return self.encode

    def encode(self, table):
        texts = table["text"].to_pylist()
        if "kill the worker" in texts:
            os.kill(os.getpid(), signal.SIGKILL)
        if "fail" in texts:
            raise MemoryError("this shard needs more memory than there is")
        data = pa.table({"text": texts, "length": [len(text) for text in texts]})
        counts = {"rows": len(texts), "embedded": len(texts), "rejected": 0, "vectors": len(texts)}
        return Outcome(data, None, {**counts, "truncated": 0, "tokens": 0})


def corpus(folder, texts, rows_per_shard=10):
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts}), folder / "a.parquet")
    config = EmbedConfig(**{"data.path": str(folder), "output.rows_per_shard": rows_per_shard})
    ledger = Ledger(str(folder.parent / "out"), owner="test")
    ledger.create_job({})
    made = make_plan(config.data, config.output, ledger, None)
    ledger.extend(list(made.added))
    return made, ledger


def go(made, ledger, worker=None, pool=POOL):
    work = Work(["text"], {"text": pa.string()}, ["text"], 1000, Prepare(), worker or Lengths())
    pending = {name: shard for name, shard in made.shards().items() if ledger.find(name) is None}
    return list(run(work, ledger, pending, made.files, pool))


@pytest.mark.usefixtures("ray_local")
class TestRunner:
    def test_one_file_a_shard_with_exactly_its_rows(self, tmp_path):
        texts = [f"text {i}" for i in range(95)]
        made, ledger = corpus(tmp_path / "in", texts)
        results = go(made, ledger)
        assert sorted(r.name for r in results) == sorted(made.shards()) == sorted(ledger.done())
        assert all(r.status == "done" for r in results)
        read = pq.read_table(tmp_path / "out/data")["text"].to_pylist()
        assert read == texts
        assert go(made, ledger) == []

    @pytest.mark.parametrize("poison", ["kill the worker", "kill the reader"])
    def test_a_shard_that_kills_its_process_is_set_aside_and_the_others_are_done(self, tmp_path, poison):
        texts = [f"text {i}" for i in range(30)]
        texts[15] = poison
        made, ledger = corpus(tmp_path / "in", texts)
        results = {r.name: r for r in go(made, ledger)}
        aside = [r for r in results.values() if r.status == "aside"]
        assert "3" in aside[0].why
        assert len(aside) == 1
        assert len(ledger.done()) == 2
        assert made.shards().keys() == results.keys()

    def test_a_shard_that_always_fails_is_set_aside_with_the_reason(self, tmp_path):
        texts = [f"text {i}" for i in range(30)]
        texts[5] = "fail"
        made, ledger = corpus(tmp_path / "in", texts)
        results = go(made, ledger)
        assert [r.why for r in results if r.status == "aside"] == [
            "this shard needs more memory than there is"
        ]
        assert len(ledger.done()) == 2

    def test_a_file_that_breaks_after_planning_is_named(self, tmp_path):
        made, ledger = corpus(tmp_path / "in", [f"text {i}" for i in range(30)])
        (tmp_path / "in/a.parquet").write_bytes(b"PAR1 no longer")
        results = go(made, ledger)
        assert {r.status for r in results} == {"aside"}
        assert all("a.parquet" in r.why for r in results)
        assert ledger.done() == set()

    def test_a_worker_that_cannot_honour_the_plan_refuses(self, tmp_path):
        made, ledger = corpus(tmp_path / "in", ["a"])
        (result,) = go(made, ledger, worker=Lengths(refuse=True))
        assert (result.status, result.why) == ("fatal", "other weights")

    def test_a_folder_that_cannot_be_written_is_said_so(self, tmp_path):
        made, ledger = corpus(tmp_path / "in", ["a"])
        (tmp_path / "out/data").write_text("a file where the folder should be")
        (result,) = go(made, ledger)
        assert result.status == "fatal"
        assert str(tmp_path / "out") in result.why
        assert "run the same command again" in result.why

    def test_more_workers_and_many_shards_of_one_row_group(self, tmp_path):
        texts = [f"text {i}" for i in range(1000)]
        made, ledger = corpus(tmp_path / "in", texts, rows_per_shard=7)
        results = go(made, ledger, pool=Pool(1, 2, 1, 0))
        assert len(results) == 143
        assert pq.read_table(tmp_path / "out/data")["text"].to_pylist() == texts
