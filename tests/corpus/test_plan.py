"""What is new, what changed, what is left, by files on disk; no Ray."""

from itertools import pairwise

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybert.config import EmbedConfig
from raybert.corpus.ledger import Ledger
from raybert.corpus.plan import make_plan, type_from, type_text


def write(path, rows, start=0):
    pq.write_table(
        pa.table({"text": [f"text {i}" for i in range(start, start + rows)], "n": list(range(rows))}), path
    )


@pytest.fixture
def ledger(tmp_path):
    made = Ledger(str(tmp_path / "out"))
    made.create_job({})
    (tmp_path / "in").mkdir()
    return made


def plan(ledger, tmp_path, job=None, **settings):
    keys = {key.replace("__", "."): value for key, value in settings.items()}
    config = EmbedConfig(**{"data.path": str(tmp_path / "in"), "output.rows_per_shard": 10, **keys})
    return make_plan(config.data, config.output, ledger, job)


def keep(ledger, made):
    ledger.replace(made.void)
    ledger.extend(list(made.added))
    return made


def test_shards_cover_every_row_once(ledger, tmp_path):
    write(tmp_path / "in/a.parquet", 25)
    write(tmp_path / "in/b.parquet", 7)
    made = plan(ledger, tmp_path)
    assert made.rows == 32
    ranges = [(source.uri[-9:], s.start, s.end) for source, s in made.shards().values()]
    assert ranges == [("a.parquet", 0, 10), ("a.parquet", 10, 20), ("a.parquet", 20, 25), ("b.parquet", 0, 7)]


def test_growth_adds_only_the_new_file(ledger, tmp_path):
    write(tmp_path / "in/b.parquet", 7)
    before = keep(ledger, plan(ledger, tmp_path))
    write(tmp_path / "in/a.parquet", 5)
    after = plan(ledger, tmp_path)
    assert [source.uri[-9:] for source in after.added] == ["a.parquet"]
    assert before.shards().keys() < after.shards().keys()


def test_the_same_files_by_another_route_are_the_same(ledger, tmp_path, monkeypatch):
    write(tmp_path / "in/a.parquet", 5)
    keep(ledger, plan(ledger, tmp_path))
    monkeypatch.chdir(tmp_path)
    again = plan(ledger, tmp_path, data__path=["in/*.parquet", "in/a.parquet"])
    assert again.added == ()


@pytest.mark.parametrize("what", ["changed", "vanished"])
def test_a_changed_or_vanished_file_is_refused_or_replaced(ledger, tmp_path, what):
    for name in "ab":
        write(tmp_path / f"in/{name}.parquet", 5)
    first = keep(ledger, plan(ledger, tmp_path))
    if what == "changed":
        write(tmp_path / "in/a.parquet", 5, start=100)
    else:
        (tmp_path / "in/a.parquet").unlink()
    with pytest.raises(ValueError, match=rf"1 input file\(s\) {what} .*a.parquet.*on_change=replace"):
        plan(ledger, tmp_path)
    made = keep(ledger, plan(ledger, tmp_path, output__on_change="replace"))
    assert made.void == tuple(s.id for s in first.sources if s.uri.endswith("a.parquet"))
    assert made.rows == (10 if what == "changed" else 5)
    assert plan(ledger, tmp_path).added == ()


def test_touching_a_file_is_no_change(ledger, tmp_path):
    import os

    write(tmp_path / "in/a.parquet", 5)
    keep(ledger, plan(ledger, tmp_path))
    os.utime(tmp_path / "in/a.parquet", (1, 1))
    assert plan(ledger, tmp_path).added == ()


def test_limit_takes_the_first_rows(ledger, tmp_path):
    for name in "ab":
        write(tmp_path / f"in/{name}.parquet", 15)
    made = plan(ledger, tmp_path, data__limit=17)
    assert [s.end - s.start for _, s in made.shards().values()] == [10, 5, 2]


def test_a_missing_column_names_those_that_exist(ledger, tmp_path):
    write(tmp_path / "in/a.parquet", 5)
    with pytest.raises(ValueError, match=r"'body' is not in .*a.parquet; it has: text, n"):
        plan(ledger, tmp_path, data__text="body")
    with pytest.raises(ValueError, match="'title'"):
        plan(ledger, tmp_path, data__template="{title} {text}")


def test_the_output_may_not_lie_in_the_input(ledger, tmp_path):
    write(tmp_path / "in/a.parquet", 5)
    (tmp_path / "out/data").mkdir(parents=True)
    write(tmp_path / "out/data/x.parquet", 5)
    with pytest.raises(ValueError, match=r"lies in data\.path"):
        plan(ledger, tmp_path, data__path=[str(tmp_path / "in"), str(tmp_path / "out/data")])


def test_all_columns_can_be_kept(ledger, tmp_path):
    write(tmp_path / "in/a.parquet", 5)
    made = plan(ledger, tmp_path, data__columns=["*"])
    assert made.kept == ("text", "n")
    assert made.types["n"] == pa.int64()


@pytest.mark.parametrize(
    "kind",
    [pa.int64(), pa.list_(pa.float32(), 3), pa.timestamp("us", "UTC"), pa.struct([("a", pa.string())])],
)
def test_types_survive_as_text(kind):
    assert type_from(type_text(kind)) == kind


@pytest.mark.parametrize(
    ("columns", "id_column", "kept"),
    [(["*"], "id", ("text", "n")), (["id", "n"], "id", ("n",)), (["n"], "n", ("n",))],
)
def test_the_id_column_is_not_kept_twice(ledger, tmp_path, columns, id_column, kept):
    pq.write_table(pa.table({"id": ["a"], "text": ["b"], "n": [1]}), tmp_path / "in/a.parquet")
    assert plan(ledger, tmp_path, data__columns=columns, data__id=id_column).kept == kept


@pytest.mark.parametrize("name", ["id", "embedding", "truncated", "chunk", "_row"])
def test_a_kept_column_may_not_hide_one_of_the_output(ledger, tmp_path, name):
    pq.write_table(pa.table({"text": ["b"], name: [1]}), tmp_path / "in/a.parquet")
    with pytest.raises(ValueError, match=f"data.columns: '{name}' is a column of ours"):
        plan(ledger, tmp_path, data__columns=["*"])


def test_the_output_may_lie_beside_a_glob_but_not_in_a_folder_of_the_input(ledger, tmp_path):
    write(tmp_path / "in/a.parquet", 5)
    inside = Ledger(str(tmp_path / "in/vectors"))
    assert plan(inside, tmp_path, data__path=str(tmp_path / "in/*.parquet")).rows == 5
    (tmp_path / "link").symlink_to(tmp_path / "in")
    for path in (tmp_path / "in", tmp_path / "in/**/*.parquet", tmp_path / "link"):
        with pytest.raises(ValueError, match="put it outside"):
            plan(inside, tmp_path, data__path=str(path))


def test_the_first_file_begins_small_and_a_small_corpus_is_cut_fine(ledger, tmp_path):
    for name in "ab":
        texts = [f"{i:06} " + "x" * 1017 for i in range(1000)]  # 1 KiB each
        pq.write_table(pa.table({"text": texts}), tmp_path / f"in/{name}.parquet", use_dictionary=False)
    made = plan(ledger, tmp_path, output__rows_per_shard=4096)
    first, other = ([s.end - s.start for s in source.shards] for source in made.sources)
    assert first[0] < 33
    assert all(a <= b <= 2 * a + 1 for a, b in pairwise(first[:3]))
    assert max(first) == max(other) < 129
    assert sum(first) == sum(other) == 1000
    fewer = plan(ledger, tmp_path, output__rows_per_shard=20)
    assert {s.end - s.start for source in fewer.sources for s in source.shards} == {20}


def test_a_file_is_cut_by_the_job_whatever_else_a_driver_sees(ledger, tmp_path):
    texts = ["x" * 1024] * 1000
    pq.write_table(pa.table({"text": texts}), tmp_path / "in/b.parquet", use_dictionary=False)
    made = plan(ledger, tmp_path, output__rows_per_shard=4096)
    job = {"cut": made.cut, "types": {}, "kept": [], "carried": {}}
    pq.write_table(pa.table({"text": texts * 9}), tmp_path / "in/a.parquet", use_dictionary=False)
    again = plan(ledger, tmp_path, job, output__rows_per_shard=4096)
    assert made.sources[0] in again.sources
    # a folder of before had no such thing
    old = plan(ledger, tmp_path, {**job, "cut": {}}, output__rows_per_shard=4096)
    assert [len(source.shards) for source in old.sources] == [3, 1]
