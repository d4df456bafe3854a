"""The folder's promises, without Ray: atomic files, plan, commits, replacement, late writers."""

import os

import pyarrow as pa
import pytest

from raybert.corpus.ledger import Ledger, Replaced, Source, source_id
from raybert.corpus.readers import Shard
from raybert.corpus.store import Store

COUNTS = {"rows": 5, "embedded": 5, "rejected": 0, "vectors": 5, "truncated": 0, "tokens": 9}


def a_source(uri: str = "/in/a.parquet", digest: str = "d", void=()) -> Source:
    identity = source_id(uri, 10, digest, void)
    return Source(identity, uri, 10, digest, "parquet", (Shard(0, 5, 4, 99), Shard(5, 9, 4, 99)))


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    made = Ledger(str(tmp_path / "out"), owner="me")
    made.create_job({"a": 1})
    return made


def commit(ledger: Ledger, name: str, content: bytes = b"vectors") -> None:
    ledger.commit(name, pa.py_buffer(content), None, COUNTS)


def test_plan_reads_back_and_adding_twice_changes_nothing(ledger):
    source = a_source()
    ledger.extend([source])
    ledger.extend([source])
    ledger.extend([source, a_source("/in/b.parquet")])
    assert ledger.sources() == {s.id: s for s in (source, a_source("/in/b.parquet"))}
    assert source.rows == 9


def test_a_shard_counts_once_it_has_record_and_file(ledger):
    first, second = (a_source().name(shard) for shard in a_source().shards)
    commit(ledger, first)
    assert ledger.done() == {first}
    assert ledger.find(second) is None
    assert ledger.commits([first])[first].tokens == 9
    ledger.store.delete(f"data/{first}.parquet")
    assert ledger.done() == set()
    assert ledger.find(first) is None


def test_names_follow_from_content_and_rows_not_from_position():
    first, second = a_source().shards
    assert a_source().name(first) != a_source().name(second)
    assert a_source().name(first) != a_source(digest="other").name(first)
    assert a_source().name(first) == a_source().name(Shard(0, 5))


def test_a_replaced_file_loses_its_output_and_a_late_writer_leaves_nothing(ledger):
    old = a_source()
    name, late = (old.name(shard) for shard in old.shards)
    ledger.extend([old])
    commit(ledger, name)
    ledger.replace([old.id])
    ledger.drop_void()
    assert ledger.sources() == {}
    assert ledger.done() == set()
    with pytest.raises(Replaced):
        commit(ledger, late)
    assert ledger.store.sizes("data") == {}
    assert ledger.store.sizes("_raybert/commits") == {}


def test_a_writer_overtaken_between_its_write_and_its_record_leaves_nothing(ledger, monkeypatch):
    source = a_source()
    name = source.name(source.shards[0])
    real = Ledger.find

    def replaced_meanwhile(self, wanted):
        self.replace([source.id])
        self.drop_void()
        return real(self, wanted)

    monkeypatch.setattr(Ledger, "find", replaced_meanwhile)
    with pytest.raises(Replaced):
        commit(ledger, name)
    assert ledger.store.sizes("data") == {}


def test_a_late_writer_into_a_deleted_folder_leaves_nothing(ledger, tmp_path):
    import shutil

    shutil.rmtree(tmp_path / "out")
    with pytest.raises(Replaced):
        commit(ledger, a_source().name(Shard(0, 5)))
    assert ledger.store.sizes("data") == {}


def test_content_that_comes_back_gets_a_new_identity():
    first = a_source()
    assert a_source(void={first.id}).id not in (first.id, a_source(digest="x").id)


def test_two_starters_with_different_settings_the_second_steps_back(ledger, tmp_path):
    with pytest.raises(ValueError, match="another run with different settings"):
        Ledger(str(tmp_path / "out")).create_job({"a": 2})
    assert ledger.job() == {"a": 1}
    Ledger(str(tmp_path / "out")).create_job({"a": 1})  # the same settings converge


def test_other_bytes_for_a_committed_shard_end_with_record_and_file_agreeing(ledger):
    import hashlib

    name = a_source().name(Shard(0, 5))
    commit(ledger, name, b"one")
    commit(ledger, name, b"two")
    file = ledger.store.read(f"data/{name}.parquet")
    assert hashlib.sha256(file).hexdigest() == ledger.find(name).sha256


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch):
    store = Store(str(tmp_path))
    store.write("data/x", b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        store.write("data/x", b"new and longer")
    assert store.read("data/x") == b"old"
    assert store.sizes("_raybert/tmp") == {}


def test_sweep_takes_only_the_owners_files(tmp_path):
    store = Store(str(tmp_path))
    (tmp_path / "_raybert/tmp").mkdir(parents=True)
    for name in ("me-1", "you-1"):
        (tmp_path / "_raybert/tmp" / name).touch()
    store.sweep("me")
    assert set(store.sizes("_raybert/tmp")) == {"you-1"}
    store.sweep()
    assert store.sizes("_raybert/tmp") == {}


def test_memory_file_system_keeps_the_same_promises():
    ledger = Ledger("memory://ledger-test/out")
    ledger.create_job({"a": 1})
    name = a_source().name(Shard(0, 5))
    commit(ledger, name)
    assert ledger.done() == {name}
    assert ledger.store.sizes("_raybert/tmp") == {}


def test_a_late_writer_of_an_erased_job_does_not_touch_the_new_one(ledger, tmp_path):
    import shutil

    name = a_source().name(Shard(0, 5))
    shutil.rmtree(tmp_path / "out")
    new = Ledger(ledger.path)
    new.create_job({"another": "model"})
    commit(new, name, b"of the new job")
    with pytest.raises(Replaced):
        commit(ledger, name, b"of the old job")
    assert ledger.store.read(f"data/{name}.parquet") == b"of the new job"
    assert new.done() == {name}


def test_of_two_plans_of_one_file_one_counts_and_every_driver_picks_the_same(ledger):
    old, new = a_source(digest="old"), a_source(digest="new")
    group = [Source(source_id(u, 1, "d"), u, 1, "d", "documents", (Shard(0, n),), m) for u, n, m in
             (("0+1 more", 2, ("0", "1")), ("0+2 more", 3, ("0", "1", "2")))]  # fmt: skip
    ledger.extend([old, group[0]])
    ledger.extend([new, group[1]])
    assert ledger.settle()
    assert set(ledger.sources()) == {min(old.id, new.id), min(g.id for g in group)}
    assert not ledger.settle()


def test_a_folder_with_other_peoples_files_is_refused(tmp_path):
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(ValueError, match=r"holds 'README.md' and no job of raybert"):
        Ledger(str(tmp_path)).refuse_foreign_folder()
    Ledger(str(tmp_path / "new")).refuse_foreign_folder()
