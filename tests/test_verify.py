"""raybert verify: each kind of damage is found, and a sound folder passes."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybert.__main__ import main
from raybert.corpus.ledger import Commit, Ledger
from raybert.corpus.vectors import to_parquet
from raybert.verify import verify
from tests.vector_folders import make_folder, random_vectors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two input files, 250 + 40 rows in 4 shards, three rows rejected."""
    files = {"a": random_vectors(250), "b": random_vectors(40, seed=1)}
    make_folder(tmp_path / "out", files, rejected={"a": [0, 7], "b": [39]})
    return tmp_path / "out"


def shard(folder: Path, part: str = "a", number: int = 0) -> Path:
    return sorted((folder / "data").glob(f"{part}-*"))[number]


def record(folder: Path, data: Path) -> Path:
    return folder / "_raybert" / "commits" / f"{data.stem}.json"


def rewrite(folder: Path, data: Path, change) -> None:
    """Replace a data file by a changed one, with a record that fits its bytes: only the content can give it away."""
    old = Commit(**json.loads(record(folder, data).read_text()))
    table = change(pq.read_table(data))
    rejects = folder / "_rejects" / data.name
    counts = {key: value for key, value in vars(old).items() if key not in ("bytes", "sha256")}
    kept = pa.py_buffer(rejects.read_bytes()) if rejects.exists() else None
    Ledger(str(folder), "test").commit(data.stem, to_parquet(table), kept, counts)


def set_vector(table: pa.Table, row: int, vector: np.ndarray | None) -> pa.Table:
    at = table.schema.get_field_index("embedding")
    vectors = table.column("embedding").to_pylist()
    vectors[row] = vector if vector is None else vector.tolist()
    field = table.schema.field("embedding").with_nullable(True)
    return table.set_column(at, field, pa.array(vectors, field.type))


def set_ids(table: pa.Table, change) -> pa.Table:
    return table.set_column(0, table.schema.field("id"), pa.array(change(table["id"].to_pylist())))


def damage_record(data: Path, folder: Path, **changes) -> None:
    values = json.loads(record(folder, data).read_text())
    record(folder, data).write_text(json.dumps({**values, **changes}))


@pytest.mark.parametrize("dtype", ["float32", "float16", "int8", "binary"])
def test_a_sound_folder_passes(tmp_path, dtype, capsys):
    files = {"a": random_vectors(250), "b": random_vectors(40, seed=1), "none": random_vectors(0)}
    make_folder(tmp_path / "out", files, dtype=dtype, rejected={"a": [0, 7], "b": list(range(40))})
    verdict = verify(str(tmp_path / "out"))
    assert verdict.problems == []
    counts = (
        verdict.files,
        verdict.shards,
        verdict.planned,
        verdict.rows,
        verdict.embedded,
        verdict.rejected,
    )
    assert counts == (3, 4, 4, 290, 248, 42)
    assert verdict.vectors == 248
    assert main(["verify", str(tmp_path / "out")]) == 0
    assert "shards                4/4" in capsys.readouterr().out


def test_a_folder_of_windows_passes(tmp_path):
    make_folder(tmp_path / "out", {"a": random_vectors(150)}, windows=3, rejected={"a": [149]})
    verdict = verify(str(tmp_path / "out"))
    assert verdict.problems == []
    assert (verdict.embedded, verdict.vectors) == (149, 447)


def test_vectors_that_were_not_normalised_need_no_length_of_one(tmp_path):
    make_folder(tmp_path / "out", {"a": 3 * random_vectors(10)}, normalized=False)
    assert verify(str(tmp_path / "out")).good


def test_an_unfinished_folder_says_what_to_do(folder, capsys):
    data = shard(folder, number=1)
    record(folder, data).unlink()
    assert main(["verify", str(folder)]) == 1
    assert "1 of 4 shards are missing; run the same command again" in capsys.readouterr().out


def flip_a_byte(folder: Path) -> None:
    data = bytearray(shard(folder).read_bytes())
    data[200] ^= 1
    shard(folder).write_bytes(data)


def cut_off(folder: Path) -> None:
    shard(folder).write_bytes(shard(folder).read_bytes()[:-100])


def change_metadata(folder: Path) -> None:
    def other(table: pa.Table) -> pa.Table:
        metadata = json.loads(table.schema.metadata[b"raybert"])
        return table.replace_schema_metadata({b"raybert": json.dumps({**metadata, "pooling": "cls"})})

    rewrite(folder, shard(folder), other)


def wrong_width(folder: Path) -> None:
    def narrow(table: pa.Table) -> pa.Table:
        vectors = np.array(table["embedding"].to_pylist(), np.float32)[:, :8]
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel()), 8)
        return table.set_column(1, pa.field("embedding", column.type, nullable=False), column)

    rewrite(folder, shard(folder), narrow)


def lose_rejects(folder: Path) -> None:
    (folder / "_rejects" / shard(folder).name).unlink()


def other_reasons(folder: Path) -> None:
    path = folder / "_rejects" / shard(folder).name
    table = pq.read_table(path)
    pq.write_table(
        table.set_column(3, table.schema.field("reason"), pa.array(["null"] * table.num_rows)), path
    )


def second_job(folder: Path) -> None:
    (folder / "_raybert" / "job-0123456789abcdef.json").write_text("{}")


def copy_below(folder: Path) -> None:
    (folder / "data" / "old").mkdir()
    (folder / "data" / "old" / "a.parquet").write_bytes(shard(folder).read_bytes())


def edit_plan(folder: Path, **changes) -> None:
    """Change the first input file of the plan."""
    (path,) = (folder / "_raybert" / "plan").iterdir()
    first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([json.dumps({**json.loads(first), **changes}), *rest]))


DAMAGE = {
    "a byte flipped": (flip_a_byte, "sha256 differs"),
    "a file cut off": (cut_off, "bytes where"),
    "an empty file": (lambda f: shard(f).write_bytes(b""), "0 bytes where"),
    "a file deleted": (lambda f: shard(f).unlink(), "committed, but the file is gone"),
    "a record deleted": (lambda f: record(f, shard(f)).unlink(), "1 of 4 shards are missing"),
    "a record broken": (lambda f: record(f, shard(f)).write_text("{"), "commit record cannot be read"),
    "a foreign file": (
        lambda f: (f / "data" / "x.parquet").write_bytes(b"x"),
        "data/x.parquet: not of the plan",
    ),
    "a copy in a folder": (copy_below, "data/old/a.parquet: not of the plan"),
    "foreign rejects": (
        lambda f: (f / "_rejects" / "x.parquet").write_bytes(b"x"),
        "_rejects/x.parquet: not",
    ),
    "rejects deleted": (lose_rejects, "0 rows in its rejects file, 2 recorded"),
    "rejects broken": (
        lambda f: (f / "_rejects" / shard(f).name).write_bytes(b"x"),
        "rejects cannot be read",
    ),
    "other reasons": (other_reasons, "the reasons in its rejects file are not those recorded"),
    "a vector not a number": (
        lambda f: rewrite(f, shard(f), lambda t: set_vector(t, 5, np.full(16, np.nan))),
        "a vector that is not finite, first in row 5",
    ),
    "an infinite vector": (
        lambda f: rewrite(f, shard(f), lambda t: set_vector(t, 0, np.full(16, np.inf))),
        "a vector that is not finite, first in row 0",
    ),
    "a null vector": (
        lambda f: rewrite(f, shard(f), lambda t: set_vector(t, 3, None)),
        "a null vector, first in row 3",
    ),
    "a long vector": (
        lambda f: rewrite(f, shard(f), lambda t: set_vector(t, 9, np.full(16, 0.5))),
        "a vector of length 2 where all should have 1, first in row 9",
    ),
    "a zero vector": (
        lambda f: rewrite(f, shard(f), lambda t: set_vector(t, 9, np.zeros(16))),
        "a vector of length 0",
    ),
    "a row twice": (
        lambda f: rewrite(f, shard(f), lambda t: set_ids(t, lambda ids: [ids[1], *ids[1:]])),
        "occurs twice",
    ),
    "an id of another file": (
        lambda f: rewrite(f, shard(f), lambda t: set_ids(t, lambda ids: ["b:1", *ids[1:]])),
        "the id b:1 is not of this shard",
    ),
    "an embedded row that was rejected": (
        lambda f: rewrite(f, shard(f), lambda t: set_ids(t, lambda ids: [ids[0][:-1] + "0", *ids[1:]])),
        "1 rows are both embedded and rejected",
    ),
    "a row lost": (
        lambda f: rewrite(f, shard(f), lambda t: t.slice(1)),
        "97 vectors in the file, 98 recorded",
    ),
    "other metadata": (change_metadata, "its metadata differ from those of the other files"),
    "a narrow file": (wrong_width, "vectors are fixed_size_list"),
    "counts that do not add up": (
        lambda f: damage_record(shard(f), f, embedded=90),
        "90 embedded + 2 rejected are not the 100 rows recorded",
    ),
    "reasons that do not add up": (
        lambda f: damage_record(shard(f), f, reasons={"empty": 1}),
        "the reasons recorded do not add up to 2",
    ),
    "more rows than planned": (lambda f: damage_record(shard(f), f, rows=101), "101 rows recorded where 100"),
    "two jobs": (second_job, "2 job files where there must be one"),
    "a gap in the plan": (
        lambda f: edit_plan(f, shards=[[0, 100, 0, 0], [101, 250, 0, 0]]),
        "a shard is rows 101 to 250 where row 100 is next",
    ),
    "an overlap in the plan": (
        lambda f: edit_plan(f, shards=[[0, 100, 0, 0], [99, 250, 0, 0]]),
        "a shard is rows 99 to 250 where row 100 is next",
    ),
    "a file planned twice": (lambda f: edit_plan(f, uri="/in/b.parquet"), "/in/b.parquet is planned 2 times"),
    "an edited plan": (lambda f: edit_plan(f, size=1), "the content is not what it was written with"),
    "a broken plan": (
        lambda f: next((f / "_raybert" / "plan").iterdir()).write_text("{"),
        "cannot be read",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_is_found(folder, kind, capsys):
    damage, message = DAMAGE[kind]
    assert verify(str(folder)).good, "the fixture itself must be sound"
    damage(folder)
    assert main(["verify", str(folder)]) == 1
    assert message in capsys.readouterr().out


def test_float16_may_be_further_from_length_one(tmp_path):
    vectors = random_vectors(20)
    vectors[3] *= 1.005
    make_folder(tmp_path / "half", {"a": vectors}, dtype="float16")
    make_folder(tmp_path / "full", {"a": vectors})
    assert verify(str(tmp_path / "half")).good
    assert not verify(str(tmp_path / "full")).good


def test_leftovers_are_a_warning_only(folder, capsys):
    (folder / "_raybert" / "tmp").mkdir(exist_ok=True)
    (folder / "_raybert" / "tmp" / "x").write_bytes(b"x")
    assert main(["verify", str(folder)]) == 0
    assert "warning: 1 temporary file(s)" in capsys.readouterr().out


def test_ids_of_the_corpus_may_repeat(folder):
    (old,) = (folder / "_raybert").glob("job-*.json")
    job = json.loads(old.read_text())
    old.unlink()
    Ledger(str(folder)).create_job({**job, "requested": {"data": {"id": "name"}}})
    rewrite(folder, shard(folder), lambda table: set_ids(table, lambda ids: ["same"] * len(ids)))
    assert verify(str(folder)).good


def test_at_most_twenty_problems_are_named(tmp_path, capsys):
    make_folder(tmp_path / "out", {"a": random_vectors(30)}, rows_per_shard=1)
    for data in (tmp_path / "out" / "data").iterdir():
        data.write_bytes(b"")
    assert main(["verify", str(tmp_path / "out")]) == 1
    out = capsys.readouterr().out
    assert out.count("0 bytes where") <= 20
    assert "more problems" in out


@pytest.mark.parametrize("what", ["missing", "empty", "a file"])
def test_no_folder_of_raybert_is_one_line(tmp_path, what, capsys):
    path = tmp_path / "x"
    if what == "empty":
        path.mkdir()
    elif what == "a file":
        path.write_text("x")
    assert main(["verify", str(path)]) == 2
    assert "was not written by raybert:" in capsys.readouterr().err
    assert main(["verify"]) == 2
    assert "data.path is missing" in capsys.readouterr().err


def test_needs_neither_torch_nor_ray(folder):
    code = "import sys, raybert; raybert.verify(sys.argv[1]); print({'torch', 'ray'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"
