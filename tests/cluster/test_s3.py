"""The same promises on an object store, against a real S3-compatible server."""

import os
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybert.corpus.filesystems import resolve
from raybert.corpus.ledger import Ledger, Replaced
from tests.cluster.processes import Job, kill_tree, wait_for
from tests.conftest import raybert, sentences
from tests.s3 import s3_server

pytestmark = pytest.mark.timeout(600)

ROWS, PER_SHARD = 1500, 50
SHARDS = 2 * 15


@pytest.fixture(scope="module")
def s3():
    """A bucket holding two input files."""
    with s3_server("bucket"):
        texts = sentences(ROWS)
        fs, root = resolve("s3://bucket/in")
        for i in range(2):
            ids = [f"{i}-{j}" for j in range(ROWS // 2)]
            table = pa.table({"id": ids, "text": texts[i::2]})
            pq.write_table(table, f"{root}/part{i}.parquet", filesystem=fs)
        yield "s3://bucket"


def hashes(url: str) -> dict[str, str]:
    import hashlib

    store = Ledger(url).store
    names = sorted(store.sizes("data"))
    return {name: hashlib.sha256(store.read(f"data/{name}")).hexdigest() for name in names}


@pytest.fixture(scope="module")
def undisturbed(s3, tiny):
    """Hashes of a run that nothing happened to, with the model in the bucket as well."""
    from pyarrow import fs as pafs

    fs, root = resolve(f"{s3}/model")
    pafs.copy_files(tiny, root, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=fs)
    job = Job(f"{s3}/model", f"{s3}/in", f"{s3}/undisturbed", PER_SHARD, **os.environ)
    assert "1,500 embedded + 0 rejected" in job.run()
    assert len(hashes(f"{s3}/undisturbed")) == SHARDS
    return hashes(f"{s3}/undisturbed")


def test_the_folder_verifies(s3, undisturbed):
    assert raybert("verify", f"{s3}/undisturbed").returncode == 0


@pytest.mark.slow
def test_driver_killed_and_resumed(s3, undisturbed):
    url = f"{s3}/killed"
    job = Job(f"{s3}/model", f"{s3}/in", url, PER_SHARD, **os.environ)
    for commits in (3, 12):
        process = job.start()
        assert wait_for(lambda at=commits: len(Ledger(url).done()) >= at, process)
        kill_tree(process)
        assert len(Ledger(url).done()) < SHARDS
    job.run()
    assert hashes(url) == undisturbed


@pytest.mark.slow
def test_credentials_in_urls_are_stored_nowhere(s3, undisturbed):
    def secret(url: str) -> str:
        return url.replace("s3://", "s3://KEYID:SECRETKEY@")

    url = f"{s3}/secret"
    job = Job(secret(f"{s3}/model"), secret(f"{s3}/in"), secret(url), PER_SHARD, **os.environ)
    printed = job.run()
    assert "SECRETKEY" not in printed
    fs, root = resolve(url)
    from pyarrow.fs import FileSelector

    files = [f.path for f in fs.get_file_info(FileSelector(root, recursive=True)) if f.is_file]
    assert len(files) > 2 * SHARDS
    for path in files:
        with fs.open_input_file(path) as file:
            assert b"SECRETKEY" not in file.read(), path


@pytest.mark.slow
def test_two_drivers_converge(s3, undisturbed):
    url = f"{s3}/two"
    job = Job(f"{s3}/model", f"{s3}/in", url, PER_SHARD, **os.environ)
    for process in [job.start(), job.start()]:
        out, err = process.communicate(timeout=250)
        assert process.returncode == 0, out + err
    assert hashes(url) == undisturbed


def test_a_late_writer_of_a_replaced_file_leaves_nothing(s3, undisturbed):
    """A worker cut off from its driver wakes up when its input has long been replaced."""
    ledger = Ledger(f"{s3}/undisturbed")
    source = next(iter(ledger.sources().values()))
    name = source.name(source.shards[0])
    data = pa.py_buffer(ledger.store.read(f"data/{name}.parquet"))
    counts = {k: v for k, v in vars(ledger.find(name)).items() if k not in ("bytes", "sha256")}
    ledger.commit(name, data, None, counts)  # late, but nothing changed: the same bytes once more
    assert hashes(f"{s3}/undisturbed") == undisturbed
    late = Ledger(f"{s3}/late")
    late.create_job({"any": "job"})
    late.extend([source])
    late.replace([source.id])
    late.drop_void()
    with pytest.raises(Replaced):
        late.commit(name, data, None, counts)
    time.sleep(0.1)
    assert hashes(f"{s3}/late") == {}
    assert late.done() == set()
