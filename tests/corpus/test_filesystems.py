"""Paths and URIs: what opens them, and that their public names hold no secret."""

import os
from pathlib import Path

import fsspec
import pyarrow.fs as pafs
import pytest

from raybert.corpus.filesystems import is_local, public_uri, resolve


def test_local_paths_are_absolute_wherever_one_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    expected = str(tmp_path / "a b.txt")
    for path in (
        "a b.txt",
        "./x/../a b.txt",
        "~/a b.txt",
        expected,
        f"file://{tmp_path}/a%20b.txt",
        Path("a b.txt"),
    ):
        fs, inner = resolve(path)
        assert is_local(fs)
        assert inner == expected == public_uri(path)


def test_memory_goes_through_fsspec() -> None:
    fsspec.filesystem("memory").pipe("/shelf/book.txt", b"hello")
    fs, inner = resolve("memory://shelf/book.txt")
    assert not is_local(fs)
    with fs.open_input_file(inner) as source:
        assert source.read() == b"hello"
    assert (
        public_uri("memory:///shelf/book.txt")
        == public_uri("memory://shelf/book.txt")
        == "memory://shelf/book.txt"
    )


@pytest.mark.parametrize(
    ("path", "public"),
    [
        ("s3://key:secret@bucket/a/b.txt?region=eu-west-1", "s3://bucket/a/b.txt"),
        ("s3://bucket/part-?.txt", "s3://bucket/part-?.txt"),
        ("s3a://bucket/a//b/", "s3://bucket/a//b"),
        ("gcs://anonymous@bucket/x", "gs://bucket/x"),
        ("https://me:secret@host/x.parquet?X-Amz-Signature=secret&y=1", "https://host/x.parquet"),
        ("abfs://box:secret@account.dfs.core.windows.net/x", "abfs://box@account.dfs.core.windows.net/x"),
        ("abfs://box@account.dfs.core.windows.net/x", "abfs://box@account.dfs.core.windows.net/x"),
        ("abfs://:secret@account.dfs.core.windows.net/x", "abfs://account.dfs.core.windows.net/x"),
        ("hf://datasets/user/name@main/x.parquet", "hf://datasets/user/name@main/x.parquet"),
        ("sftp://me:secret@host:22/x", "sftp://host:22/x"),
    ],
)
def test_a_public_uri_holds_no_credentials(path: str, public: str) -> None:
    assert public_uri(path) == public


def test_s3_takes_options_from_query_and_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:1")
    fs, inner = resolve("s3://key:secret@bucket/a b%20c.txt?region=eu-west-1")
    assert isinstance(fs, pafs.S3FileSystem)
    assert fs.region == "eu-west-1"
    assert inner == "bucket/a b%20c.txt"


@pytest.mark.parametrize(
    "path", ["nosuch://me:secret@host/x", "nosuch://host/x", "s3:///x", "a::s3://k:secret@b/c"]
)
def test_what_cannot_be_opened_is_one_line_without_secrets(path: str) -> None:
    with pytest.raises(ValueError, match=r"no file system|no bucket|not a URI") as caught:
        resolve(path)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_wrong_option_is_one_line_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://localhost:1")
    with pytest.raises(ValueError, match="s3://bucket") as caught:
        resolve("s3://key:secret@bucket/x?nosuch=1")
    assert "secret" not in str(caught.value)
    assert os.linesep not in str(caught.value)
