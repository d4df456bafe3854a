"""Which files make up a corpus, on disks and in object stores, and when their identity changes."""

import gzip
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import datasets
import fsspec
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest

from raybert.corpus.filesystems import resolve
from raybert.corpus.readers import read, scan
from raybert.corpus.sources import File, digest, discover, member_uris
from tests.s3 import s3_server


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A folder with files of many formats and some that are none."""
    for name in (
        "a.txt",
        "b.jsonl.gz",
        "_hidden.txt",
        ".crc.txt",
        "README.md",
        "sub/c.csv",
        "sub/d.txt",
        "_temporary/e.txt",
        "sub/deep/f[1].txt",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(gzip.compress(b"{}\n") if name.endswith("gz") else b"x\n")
    return tmp_path


def names(files: list[File], root: Path) -> list[str]:
    return [os.path.relpath(file.uri, root) for file in files]


def test_a_folder_is_searched_for_known_suffixes(tree: Path) -> None:
    files = discover(str(tree))
    assert names(files, tree) == ["a.txt", "b.jsonl.gz", "sub/c.csv", "sub/d.txt", "sub/deep/f[1].txt"]
    assert [file.format for file in files] == ["text", "jsonl", "csv", "text", "text"]
    assert files[0].size == 2


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.txt", ["a.txt"]),
        ("*", ["a.txt", "b.jsonl.gz", "sub/c.csv", "sub/d.txt", "sub/deep/f[1].txt"]),
        ("_*.txt", ["_hidden.txt"]),
        (".*.txt", [".crc.txt"]),
        ("_hidden.txt", ["_hidden.txt"]),
        ("s*/?.txt", ["sub/d.txt"]),
        ("sub/[a-c].*", ["sub/c.csv"]),
        ("**/*.txt", ["a.txt", "sub/d.txt", "sub/deep/f[1].txt"]),
        ("sub/**", ["sub/c.csv", "sub/d.txt", "sub/deep/f[1].txt"]),
        ("**/deep/*", ["sub/deep/f[1].txt"]),
        ("sub/deep/f[1].txt", ["sub/deep/f[1].txt"]),
        ("*/deep", ["sub/deep/f[1].txt"]),
    ],
)
def test_globs(tree: Path, pattern: str, expected: list[str]) -> None:
    assert names(discover(f"{tree}/{pattern}"), tree) == expected


def test_lists_are_sorted_and_free_of_duplicates(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tree)
    files = discover(["sub", "a.txt", f"{tree}/*.txt", f"file://{tree}/a.txt"])
    assert names(files, tree) == ["a.txt", "sub/c.csv", "sub/d.txt", "sub/deep/f[1].txt"]


def test_a_named_format_prefers_its_own_suffixes(tree: Path) -> None:
    assert names(discover(str(tree), "csv"), tree) == ["sub/c.csv"]
    (tree / "odd").mkdir()
    (tree / "odd" / "part-0").write_bytes(b"x\n")
    assert [file.format for file in discover(f"{tree}/odd", "text")] == ["text"]
    assert [file.format for file in discover(f"{tree}/README.md", "text")] == ["text"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nothing", "nothing is at"),
        ("*.nothing", "nothing is at"),
        ("nothing/**/*.txt", "nothing is at"),
        ("nothing/*.txt", "nothing is at"),
        ("README.md", r"README.md: no file of a known format .*data.format"),
        ("*.md", "no file of a known format"),
    ],
)
def test_mistakes_are_named(tree: Path, path: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        discover(f"{tree}/{path}")


def test_links_are_followed_once(tree: Path) -> None:
    (tree / "sub" / "up").symlink_to(tree)
    (tree / "other").symlink_to(tree / "sub" / "deep")
    assert names(discover(f"{tree}/**/*.txt"), tree) == [
        "a.txt",
        "other/f[1].txt",
        "sub/d.txt",
        "sub/deep/f[1].txt",
    ]
    (tree / "broken.txt").symlink_to(tree / "nothing")
    for path in (tree, f"{tree}/**", f"{tree}/b*"):
        with pytest.raises(ValueError, match=r"broken.txt: a link to a file that is not there"):
            discover(str(path))


def test_an_empty_path_and_a_wrong_format_are_refused(tree: Path) -> None:
    with pytest.raises(ValueError, match=r"data.path is empty"):
        discover("")
    with pytest.raises(ValueError, match="must be one of"):
        discover(str(tree), "xml")
    with pytest.raises(ValueError, match="save_to_disk"):
        discover(str(tree), "datasets")


def test_saved_datasets(tmp_path: Path) -> None:
    one = datasets.Dataset.from_dict({"text": [f"row {i}" for i in range(30)]})
    datasets.DatasetDict({"train": one, "test": one.select(range(5))}).save_to_disk(
        tmp_path / "both", num_shards={"train": 3, "test": 1}
    )
    (tmp_path / "both" / "train" / "cache-1.arrow").write_bytes(b"not part of it")
    for format in ("auto", "datasets", "arrow"):
        files = discover(str(tmp_path / "both"), format)
        assert [file.format for file in files] == ["arrow"] * 4
        assert names(files, tmp_path / "both")[0] == "test/data-00000-of-00001.arrow"
    rows = []
    for file in files:
        found = scan(file, rows_per_shard=4, text_columns=["text"])
        for table in read(file, list(found.shards), ["text"], types=found.types, text_columns=["text"]):
            rows += table["text"].to_pylist()
    assert rows == one["text"][:5] + one["text"][:]


def test_documents_are_grouped_and_groups_never_change(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"{i}.md").write_text(f"document {i}")
    first = discover(str(tmp_path), "documents", group=2)
    assert [os.path.basename(file.uri) for file in first] == ["0.md+1 more", "2.md+1 more", "4.md"]
    assert [len(file.members) for file in first] == [2, 2, 1]
    assert first[0].size == 20
    for name in ("00", "3b", "9"):
        (tmp_path / f"{name}.md").write_text("new")
    grown = discover(str(tmp_path), "documents", group=2, known=[member_uris(file) for file in first])
    assert grown[:3] == first
    assert [digest(file) for file in grown[:3]] == [digest(file) for file in first]
    assert [[os.path.basename(uri) for uri in member_uris(file)] for file in grown[3:]] == [
        ["00.md", "3b.md"],
        ["9.md"],
    ]
    (tmp_path / "1.md").unlink()
    shrunk = discover(str(tmp_path), "documents", group=2, known=[member_uris(file) for file in first])
    assert os.path.basename(shrunk[0].uri) == "0.md"


def test_a_digest_follows_content_and_not_time(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"abc")
    before = digest(discover(str(path))[0])
    assert len(before) == 32
    os.utime(path, (1, 1))
    assert digest(discover(str(path))[0]) == before
    path.write_bytes(b"abd")
    assert digest(discover(str(path))[0]) != before


@pytest.mark.parametrize("position", [0, 3 << 20, (3 << 20) // 7 * 2 + 100, (3 << 20) - 1])
def test_a_digest_of_a_large_file_samples_it(tmp_path: Path, position: int) -> None:
    path = tmp_path / "a.txt"
    data = bytearray(b"x" * (3 << 20))
    path.write_bytes(data)
    before = digest(discover(str(path))[0])
    data[position:position] = b"y"
    path.write_bytes(data)
    assert digest(discover(str(path))[0]) != before


def test_a_digest_covers_a_long_parquet_footer(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"

    def write(note: str) -> None:
        table = pa.table({"x": range(300_000)})
        table = table.replace_schema_metadata({"note": note, "padding": "p" * 300_000})
        pq.write_table(table, path)

    digests = set()
    for note in ("a", "b"):
        write(note)
        digests.add(digest(discover(str(path))[0]))
    assert path.stat().st_size > 1 << 20
    assert len(digests) == 2


def test_memory_file_system() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe({"/corpus/a.txt": b"1\n2\n", "/corpus/sub/b.txt": b"3\n", "/corpus/_c.txt": b"4\n"})
    for path in ("memory://corpus", "memory:///corpus/", "memory://corpus/**/*.txt", "memory://corp*"):
        files = discover(path)
        assert [file.uri for file in files] == ["memory://corpus/a.txt", "memory://corpus/sub/b.txt"]
        assert [resolve(file.path)[1] for file in files] == ["/corpus/a.txt", "/corpus/sub/b.txt"]


@pytest.fixture(scope="module")
def s3() -> Iterator[pafs.FileSystem]:
    """A bucket `shelf` on a server of this process, found through the environment alone."""
    with s3_server("shelf"):
        yield resolve("s3://shelf")[0]


def test_s3(s3: pafs.FileSystem) -> None:
    contents = {
        "a.txt": b"1\n2\n",
        "sub dir/b=1/c%20.txt": b"3\n",
        "_x.txt": b"4\n",
        "d.txt.gz": gzip.compress(b"5\n"),
    }
    for name, data in contents.items():
        with s3.open_output_stream(f"shelf/{name}", compression=None) as out:
            out.write(data)
    uris = ["s3://shelf/a.txt", "s3://shelf/d.txt.gz", "s3://shelf/sub dir/b=1/c%20.txt"]
    for path in (
        "s3://shelf",
        "s3://shelf/",
        "s3://shelf/**/*.txt*",
        "s3://me:secret@shelf?region=us-east-1",
    ):
        files = discover(path)
        assert [file.uri for file in files] == uris
    files = pickle.loads(pickle.dumps(discover("s3://shelf/*/*/*?region=us-east-1") + files))
    rows = []
    for file in files:
        assert "secret" not in file.uri
        assert len(digest(file)) == 32
        found = scan(file, rows_per_shard=1, text_columns=["text"])
        for table in read(file, list(found.shards), ["text"], types={}, text_columns=["text"]):
            rows += table["text"].to_pylist()
    assert rows == ["3", "1", "2", "5", "3"]
    with pytest.raises(ValueError, match="wildcard"):
        discover("s3://sh*/a.txt")
    with pytest.raises(ValueError, match="nothing is at s3://shelf/nothing"):
        discover("s3://me:secret@shelf/nothing?region=us-east-1")
