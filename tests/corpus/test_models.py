"""A model in an object store comes to a node once, whoever asks, and however many at once."""

import multiprocessing

import pytest
from pyarrow import fs as pafs

from raybert.corpus.filesystems import resolve
from raybert.corpus.models import fetch_model
from tests.s3 import s3_server


@pytest.fixture
def bucket(monkeypatch, tmp_path, tiny):
    """A model in an S3-compatible server, and the log of GETs for its weights."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with s3_server("models"):
        fs, root = resolve("s3://models/tiny")
        pafs.copy_files(tiny, root, source_filesystem=pafs.LocalFileSystem(), destination_filesystem=fs)
        yield "s3://models/tiny"


def test_processes_of_a_node_share_one_copy(bucket, tmp_path, tiny, caplog):
    import logging

    caplog.set_level(logging.INFO, logger="werkzeug")
    with multiprocessing.get_context("spawn").Pool(4) as pool:
        folders = set(pool.map(fetch_model, [bucket] * 4))
    assert len(folders) == 1
    folder = folders.pop()
    assert folder.startswith(str(tmp_path / "cache"))
    gets = [m for m in caplog.messages if "GET /models/tiny/model.safetensors" in m]
    assert len(gets) == 1
    with open(f"{folder}/model.safetensors", "rb") as copy, open(f"{tiny}/model.safetensors", "rb") as source:
        assert copy.read() == source.read()


def test_a_changed_model_is_fetched_again(bucket, tiny):
    first = fetch_model(bucket)
    fs, root = resolve(bucket)
    with fs.open_output_stream(f"{root}/extra.json") as out:
        out.write(b"{}")
    assert fetch_model(bucket) != first


def test_nothing_there_is_one_line(bucket):
    with pytest.raises(ValueError, match=r"s3://models/none (holds no files|cannot be read)"):
        fetch_model("s3://models/none")


def test_local_folders_and_hub_names_pass_through(tiny):
    assert fetch_model(tiny) == tiny
    assert fetch_model("org/name") == "org/name"
