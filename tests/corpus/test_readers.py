"""Files in, tables out: every row once and in order, and a reason for each that cannot be read."""

import bz2
import csv
import gzip
import io
import json
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raybert.corpus.readers import REASON, Scan, Shard, check_columns, read, scan, spans
from raybert.corpus.sources import File, discover

COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def put(folder: Path, name: str, data: bytes) -> File:
    (folder / name).write_bytes(data)
    return discover(str(folder / name))[0]


def load(
    file: File,
    columns: list[str],
    *,
    text: str = "text",
    types: dict | None = None,
    max_chars: int = 1000,
    **cut: int,
) -> list[tuple]:
    """All rows through scan, spans and read; the last item of each is its reason."""
    found = scan(file, **{"rows_per_shard": 3, **cut}, text_columns=[text], max_chars=max_chars)
    assert_complete(found)
    rows = []
    for run in spans(file, found.shards, found.shards):
        rows += rows_of(file, run, found, columns, text=text, types=types, max_chars=max_chars)
    assert len(rows) == found.rows
    return rows


def rows_of(
    file: File,
    shards: list[Shard],
    found: Scan,
    columns: list[str],
    *,
    text: str = "text",
    types: dict | None = None,
    max_chars: int = 1000,
) -> list[tuple]:
    rows = []
    tables = read(
        file,
        shards,
        columns,
        types={**found.types, **(types or {})},
        text_columns=[text],
        max_chars=max_chars,
    )
    for shard, table in zip(shards, tables, strict=True):
        table.validate(full=True)
        assert table.num_rows == shard.end - shard.start
        assert table.column_names == [*columns, REASON]
        assert table.schema.field(REASON).type == pa.string()
        if text in columns:
            assert table.schema.field(text).type == pa.large_string()
        rows += list(zip(*(table[name].to_pylist() for name in table.column_names), strict=True))
    return rows


def assert_complete(found: Scan) -> None:
    """Shards cover all rows without gap or overlap."""
    at = 0
    for shard in found.shards:
        assert shard.start == at < shard.end
        assert shard.begin <= shard.stop
        at = shard.end
    assert at == found.rows


@pytest.mark.parametrize("suffix", COMPRESS)
def test_text(tmp_path: Path, suffix: str) -> None:
    data = b"\xef\xbb\xbfone\r\n\ntwo \xc3\xa4\nbad \xff\n" + b"x" * 2_000_000 + b"\nnul \0\n\rlast"
    rows = load(put(tmp_path, "a.txt" + suffix, COMPRESS[suffix](data)), ["text"], max_chars=1)
    assert rows == [
        ("one", None),
        ("", None),
        ("two ä", None),
        (None, "invalid UTF-8"),
        (None, "line longer than 1048584 bytes"),
        ("nul \0", None),
        ("\rlast", None),
    ]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_jsonl(tmp_path: Path, suffix: str) -> None:
    good = [
        b'\xef\xbb\xbf{"text": "one", "id": 1, "score": 1, "ok": true, "tags": ["a"], "mixed": 1}',
        b'{"text": "tw\\u00f6", "id": 2, "score": 0.5, "ok": false, "tags": null, "mixed": "x"}\r',
        b'{"text": null, "score": NaN}',
        b"",
        b"  ",
        b"{broken",
        b'["a"]',
        b'{"text": "\xff"}',
        b'{"text": "\\ud800", "id": 8}',
        b'{"text": 5, "id": 9}',
        b'{"text": {"a": 1}, "id": 10}',
        b'{"text": "a\\u0000b", "id": 11}',
        b"[" * 200_000,
    ]
    late = [
        b'{"text": "late", "id": "twelve"}',
        b'{"text": "late", "id": 99999999999999999999}',
        b'{"text": "late", "id": 1.5}',
        b'{"text": "late", "id": 7.0, "ok": 1}',
        b'{"text": "last", "id": true}',
    ]
    filler = [b'{"text": "x", "id": 0}'] * 1000
    file = put(tmp_path, "a.jsonl" + suffix, COMPRESS[suffix](b"\n".join(good + filler + late)))
    found = scan(file, rows_per_shard=100, text_columns=["text"])
    assert found.columns == ("text", "id", "score", "ok", "tags", "mixed")
    kinds = [pa.string(), pa.int64(), pa.float64(), pa.bool_(), pa.string(), pa.string()]
    assert found.types == {**dict(zip(found.columns, kinds, strict=True)), "text": pa.string()}
    rows = load(file, list(found.columns), rows_per_shard=100, types=found.types, max_chars=10_000)
    assert rows[0] == ("one", 1, 1.0, True, '["a"]', "1", None)
    assert rows[1] == ("twö", 2, 0.5, False, None, "x", None)
    assert rows[2][0] is None
    assert np.isnan(rows[2][2])
    assert [row[-1] for row in rows[2:5]] == [None, "empty line", "empty line"]
    assert rows[5][-1].startswith("invalid JSON: Expecting property name")
    assert [row[-1] for row in rows[6:12]] == [
        "not a JSON object",
        "invalid UTF-8",
        "invalid UTF-8",
        "not text: int",
        "not text: dict",
        None,
    ]
    assert rows[9][:2] == (None, 9)
    assert rows[11][0] == "a\0b"
    assert rows[12][-1] == "line longer than 1128576 bytes" or rows[12][-1].startswith("invalid JSON: ")
    assert [row[-1] for row in rows[-5:]] == [
        "column 'id': 'twelve' is not int64",
        "column 'id': 99999999999999999999 is not int64",
        "column 'id': 1.5 is not int64",
        "column 'ok': 1 is not bool",
        "column 'id': True is not int64",
    ]
    assert rows[-2][1] == 7


def test_jsonl_takes_the_types_of_another_file(tmp_path: Path) -> None:
    file = put(
        tmp_path, "a.json", b'{"text": "x", "day": "2024-02-29"}\n{"text": "y", "day": "2023-02-29"}\n'
    )
    assert load(file, ["text", "day"], types={"day": pa.date32()})[1] == (
        "y",
        None,
        "column 'day': '2023-02-29' is not date32[day]",
    )


def test_a_csv_of_all_kinds_of_rows(tmp_path: Path) -> None:
    data = (
        b'\xef\xbb\xbfid,text\r\n1,"two\nlines, ""quoted"""\r\n\r\n2\n3,x,y\n4,bad \xff\n5,\n6,5" pipe\n7,"a"b\n'
        b"8,nul\0\n9," + b"x" * 2_000_000 + b'\n10,"open\n11,x\n12,last'
    )
    rows = load(put(tmp_path, "a.csv", data), ["text", "id"], max_chars=1)
    assert rows == [
        ('two\nlines, "quoted"', "1", None),
        (None, None, "wrong number of fields: 1, expected 2"),
        (None, None, "wrong number of fields: 3, expected 2"),
        (None, "4", "invalid UTF-8"),
        ("", "5", None),
        ('5" pipe', "6", None),
        (None, None, "invalid CSV: ',' expected after '\"'"),
        ("nul\0", "8", None),
        (None, None, "line longer than 1048584 bytes"),
        (None, None, "a quote is never closed"),
        ("x", "11", None),
        ("last", "12", None),
    ]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_tsv(tmp_path: Path, suffix: str) -> None:
    data = b'id\ttext\n1\t"a\tb"\n2\t"Yes" he said\r\n3\t"open\n4\tx\n'
    rows = load(
        put(tmp_path, "a.tsv" + suffix, COMPRESS[suffix](data)), ["id", "text"], types={"id": pa.int32()}
    )
    assert rows == [(1, "a\tb", None), (2, '"Yes" he said', None), (3, '"open', None), (4, "x", None)]


def test_a_csv_column_that_is_a_number_elsewhere(tmp_path: Path) -> None:
    file = put(tmp_path, "a.csv", b"id,text\n1,a\nx,b\n")
    assert load(file, ["id"], types={"id": pa.int64()}) == [
        (1, None),
        (None, "column 'id': 'x' is not int64"),
    ]


def test_a_quadratic_csv_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raybert.corpus.delimited._GIVEN_BACK", 1 << 20)
    file = put(tmp_path, "a.csv", b"id,text\n" + b'a",",\n' * 10_000)
    with pytest.raises(ValueError, match=r"a.csv: too many quotes that are never closed"):
        scan(file, rows_per_shard=10, text_columns=["text"])


@pytest.mark.parametrize(
    ("header", "message"), [(b"a,a\n", "'a' twice"), (b"\xff,a\n1,2\n", "UTF-8"), (b'a,"b', "never closed")]
)
def test_a_csv_without_usable_header_is_refused(tmp_path: Path, header: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=rf"a.csv: .*{message}"):
        scan(put(tmp_path, "a.csv", header), rows_per_shard=10, text_columns=["text"])


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.tsv", "a.arrow", "a.txt.gz"])
def test_an_empty_file_has_no_shards(tmp_path: Path, name: str) -> None:
    file = put(tmp_path, name, b"")
    found = scan(file, rows_per_shard=10, text_columns=["text"])
    assert (found.rows, found.shards) == (0, ())
    check_columns(file, found, ["text"])
    assert spans(file, found.shards, []) == []


@pytest.mark.parametrize("suffix", [".gz", ".bz2", ".zst"])
@pytest.mark.parametrize("stem", ["a.txt", "a.jsonl", "a.csv"])
def test_a_compressed_file_that_breaks_off_is_named(tmp_path: Path, stem: str, suffix: str) -> None:
    whole = COMPRESS[suffix](b"text\n" + np.random.default_rng(0).bytes(100_000).hex().encode())
    file = put(tmp_path, stem + suffix, whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=rf"{stem}{suffix}: cannot be read as"):
        scan(file, rows_per_shard=10, text_columns=["text"])


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather"])
@pytest.mark.parametrize(
    "data", [b"nonsense, but long enough", b"PAR1", b"ARROW1\0\0" + b"x" * 50, b"FEA1" * 20]
)
def test_a_broken_columnar_file_is_named(tmp_path: Path, name: str, data: bytes) -> None:
    with pytest.raises(ValueError, match=rf"{name}: cannot be read as"):
        scan(put(tmp_path, name, data), rows_per_shard=10, text_columns=["text"])


def write_arrow(path: Path, table: pa.Table, *, rows: int = 7) -> None:
    make = pa.ipc.new_stream if path.suffix == ".ipc" else pa.ipc.new_file
    with pa.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.ipc"])
def test_columnar_rows_and_types(tmp_path: Path, name: str) -> None:
    raw = pa.array([b"good", b"bad \xff", None, b"", "ä".encode()] * 5, pa.binary())
    broken = pa.Array.from_buffers(pa.string(), 25, raw.buffers(), null_count=raw.null_count)
    texts = ["good", None, None, "", "ä"] * 5
    table = pa.table(
        {
            "broken": broken,
            "bytes": raw,
            "words": pa.array(texts).dictionary_encode(),
            "large": pa.array(texts, pa.large_string()),
            "number": pa.array([1, None, 2**40, 3, 4] * 5),
            "list": pa.array([["x"], None, [], ["y"], ["z"]] * 5),
        }
    )
    path = tmp_path / name
    pq.write_table(table, path, row_group_size=7) if name == "a.parquet" else write_arrow(path, table)
    file = discover(str(path))[0]
    found = scan(file, rows_per_shard=4, text_columns=["words"])
    assert found.types["words"] == pa.string()
    bad = ["invalid UTF-8" if value == b"bad \xff" else None for value in raw.to_pylist()]
    for column in ("broken", "bytes"):
        assert load(file, [column], text=column) == list(zip(texts, bad, strict=True))
    assert (
        load(file, ["words"], text="words")
        == load(file, ["large"], text="large")
        == [(t, None) for t in texts]
    )
    assert load(file, ["number"], text="number")[:2] == [(None, "not text: int64"), (None, None)]
    assert (
        load(file, ["list"], text="list")[0] == (None, "not text: list<element: string>")
        or name != "a.parquet"
    )
    rows = load(
        file, ["large", "broken", "number", "list", "words"], text="large", types={"number": pa.int32()}
    )
    assert rows[:4] == [
        ("good", "good", 1, ["x"], "good", None),
        (None, None, None, None, None, "invalid UTF-8"),
        (None, None, None, [], None, "column 'number': 1099511627776 is not int32"),
        ("", "", 3, ["y"], "", None),
    ]


def test_a_file_of_views_and_extensions(tmp_path: Path) -> None:
    table = pa.table(
        {"text": pa.array(["a", None], pa.string_view()), "meta": pa.array(['{"a":1}', None], pa.json_())}
    )
    write_arrow(tmp_path / "a.arrow", table)
    file = discover(str(tmp_path / "a.arrow"))[0]
    assert load(file, ["text", "meta"]) == [("a", '{"a":1}', None), (None, None, None)]
    assert load(file, ["meta"], text="meta") == [('{"a":1}', None), (None, None)]


def test_a_huge_row_group_is_read_once_in_small_batches(tmp_path: Path) -> None:
    rows = 60_000
    table = pa.table(
        {"text": [f"{i} " * 100 for i in range(rows)], "other": np.random.default_rng(0).random(rows)}
    )
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=rows - 10)
    file = discover(str(tmp_path / "a.parquet"))[0]
    found = scan(file, rows_per_shard=500, text_columns=["text"])
    runs = spans(file, found.shards, found.shards)
    assert [len(run) for run in runs] == [120]
    before = pa.total_allocated_bytes()
    at, most = 0, 0
    some = [shard for shard in found.shards if shard.start % 1000 == 0]
    for shard, got in zip(some, read(file, some, ["text"], types={}, text_columns=["text"]), strict=True):
        assert got["text"].to_pylist() == table["text"][shard.start : shard.end].to_pylist()
        most, at = max(most, pa.total_allocated_bytes() - before), shard.end
    assert at == rows - 500
    assert most < table["text"].nbytes / 2


def test_parquet_spans_follow_row_groups(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["x"] * 100}), tmp_path / "a.parquet", row_group_size=25)
    file = discover(str(tmp_path / "a.parquet"))[0]
    shards = scan(file, rows_per_shard=10, text_columns=["text"]).shards
    starts = [[shard.start for shard in run] for run in spans(file, shards, shards)]
    assert starts == [[0, 10, 20], [30, 40], [50, 60, 70], [80, 90]]
    assert spans(file, shards, [shards[4], shards[3]]) == [[shards[3], shards[4]]]


def test_spans_of_lines(tmp_path: Path) -> None:
    plain = put(tmp_path, "a.txt", b"x\n" * 20)
    shards = scan(plain, rows_per_shard=1, text_columns=["text"]).shards
    assert [len(run) for run in spans(plain, shards, shards)] == [8, 8, 4]
    some = [shards[0], shards[1], shards[5]]
    assert spans(plain, shards, some) == [some[:2], some[2:]]
    packed = put(tmp_path, "b.txt.gz", gzip.compress(b"x\n" * 20))
    shards = scan(packed, rows_per_shard=1, text_columns=["text"]).shards
    assert spans(packed, shards, shards[::2]) == [list(shards[::2])]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.parquet", "a.arrow", "a.ipc"])
def test_shards_hold_a_bounded_amount_of_text(tmp_path: Path, name: str) -> None:
    texts = ["x" * 1000] * 50 + ["y" * 20_000] + ["z"] * 200
    path = tmp_path / name
    table = pa.table({"text": texts})
    if name == "a.parquet":
        pq.write_table(table, path, row_group_size=10, use_dictionary=False)
    elif name in ("a.arrow", "a.ipc"):
        write_arrow(path, table, rows=10)
    elif name == "a.jsonl":
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    else:
        path.write_text("\n".join(["text"] * (name == "a.csv") + texts))
    file = discover(str(path))[0]
    found = scan(file, rows_per_shard=100, max_bytes=10_500, text_columns=["text"])
    assert_complete(found)
    sizes = [sum(map(len, texts[shard.start : shard.end])) for shard in found.shards]
    assert all(
        size <= 10_500 or shard.end - shard.start <= 10
        for size, shard in zip(sizes, found.shards, strict=True)
    )
    assert max(shard.end - shard.start for shard in found.shards) == 100
    assert [row[0] for row in rows_of(file, list(found.shards), found, ["text"])] == texts


def test_documents(tmp_path: Path) -> None:
    for name, data in {
        "a.md": b"\xef\xbb\xbfone\r\ntwo\n",
        "b.txt.gz": gzip.compress(b"packed"),
        "c.txt": b"\xff",
        "d.txt.gz": gzip.compress(b"packed")[:12],
        "e": b"x" * 2_000_000,
        "f": b"",
    }.items():
        (tmp_path / name).write_bytes(data)
    (file,) = discover(str(tmp_path), "documents")
    rows = load(file, ["path", "text"], max_chars=1)
    assert [Path(row[0]).name for row in rows] == ["a.md", "b.txt.gz", "c.txt", "d.txt.gz", "e", "f"]
    assert [row[1:] for row in rows[:3]] == [
        ("one\r\ntwo\n", None),
        ("packed", None),
        (None, "invalid UTF-8"),
    ]
    assert "cannot be read" in rows[3][2]
    assert rows[4][1:] == (None, "document longer than 1048584 bytes")
    assert rows[5][1:] == ("", None)


def test_missing_columns_are_named(tmp_path: Path) -> None:
    file = put(tmp_path, "a.jsonl", b'{"a": 1}\n{"b": 2}\n')
    found = scan(file, rows_per_shard=10, text_columns=["txt"])
    check_columns(file, found, ["a", "b"])
    with pytest.raises(ValueError, match=r"data.text.*column 'txt' is not in .*a.jsonl; it has: a, b"):
        check_columns(file, found, ["txt"])


def test_a_plan_may_end_within_a_shard_and_a_file_may_not_shrink(tmp_path: Path) -> None:
    for name in ("a.txt", "a.csv", "a.txt.gz"):
        data = b"text\n" + b"x\n" * 9
        file = put(tmp_path, name, gzip.compress(data) if name.endswith("gz") else data)
        found = scan(file, rows_per_shard=4, text_columns=["text"])
        first = found.shards[0]
        assert len(rows_of(file, [Shard(0, 2, first.begin, first.stop)], found, ["text"])) == 2
        put(tmp_path, name, gzip.compress(data[:11]) if name.endswith("gz") else data[:11])
        with pytest.raises(ValueError, match="shorter than when it was planned"):
            rows_of(file, list(found.shards[1:]), found, ["text"])


def test_a_giant_line_is_not_held(tmp_path: Path) -> None:
    memory = fsspec.filesystem("memory")
    for name, head in (("g.jsonl", b""), ("g.csv", b"text\n")):
        memory.pipe(f"/giant/{name}", head + b"x" * (64 << 20) + b"\n{}\n")
        file = discover(f"memory://giant/{name}")[0]
        tracemalloc.start()
        found = scan(file, rows_per_shard=10, text_columns=["text"], max_chars=1)
        rows = rows_of(file, list(found.shards), found, ["text"], max_chars=1)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert rows[0] == (None, "line longer than 1048584 bytes")
        assert len(rows) == 2
        assert most < 40 << 20
    memory.rm("/giant", recursive=True)


PIECES = st.lists(
    st.sampled_from(["a", "ä", "\n", "\r\n", "\r", '"', ",", "\t", " ", "\0", "\\", "{}", "\u2028", "\x85"])
)
FEW = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def both_ways(folder: Path, name: str, data: bytes, rows_per_shard: int, max_bytes: int) -> list[Any]:
    """Rows by seeking to each shard alone, which must be those of one compressed stream."""
    plain = put(folder, name, data)
    packed = put(folder, name + ".gz", gzip.compress(data, 1))
    found = scan(
        plain, rows_per_shard=rows_per_shard, max_bytes=max_bytes, text_columns=["text"], max_chars=1000
    )
    assert_complete(found)
    assert found == scan(
        packed, rows_per_shard=rows_per_shard, max_bytes=max_bytes, text_columns=["text"], max_chars=1000
    )
    rows = [
        row for shard in reversed(found.shards) for row in rows_of(plain, [shard], found, ["text"])[::-1]
    ][::-1]
    assert rows == rows_of(packed, list(found.shards), found, ["text"])
    assert all(shard.end - shard.start <= rows_per_shard for shard in found.shards)
    return rows


@FEW
@given(PIECES, st.integers(1, 5), st.integers(1, 20), st.integers(1, 9))
def test_any_text_comes_back_row_for_row(
    tmp_path: Path, pieces: list[str], rows_per_shard: int, max_bytes: int, block: int
) -> None:
    text = "".join(pieces)
    with pytest.MonkeyPatch.context() as patch:
        for module in ("streams", "lines"):
            patch.setattr(f"raybert.corpus.{module}.BLOCK", block)
        rows = both_ways(tmp_path, "a.txt", text.encode(), rows_per_shard, max_bytes)
    expected = text.split("\n")
    expected = expected[:-1] if expected[-1] == "" else expected
    assert rows == [(line.removesuffix("\r"), None) for line in expected]


@FEW
@given(
    st.lists(st.one_of(st.text(), st.binary(), st.none(), st.integers())),
    st.integers(1, 5),
    st.integers(1, 60),
)
def test_any_jsonl_comes_back_row_for_row(
    tmp_path: Path, values: list[Any], rows_per_shard: int, max_bytes: int
) -> None:
    lines = [
        value.replace(b"\n", b"") if isinstance(value, bytes) else json.dumps({"text": value}).encode()
        for value in values
    ]
    rows = both_ways(tmp_path, "a.jsonl", b"".join(line + b"\n" for line in lines), rows_per_shard, max_bytes)
    assert len(rows) == len(values)
    for value, (text, reason) in zip(values, rows, strict=True):
        if isinstance(value, str | None):
            assert (text, reason) == (value, None)
        else:
            assert text is None
            assert reason


@FEW
@given(st.lists(st.text(alphabet='aä", \n\0')), st.integers(1, 5), st.integers(1, 40))
def test_any_csv_comes_back_row_for_row(
    tmp_path: Path, values: list[str], rows_per_shard: int, max_bytes: int
) -> None:
    out = io.StringIO()
    csv.writer(out).writerows([["n", "text"], *([str(i), value] for i, value in enumerate(values))])
    rows = both_ways(tmp_path, "a.csv", out.getvalue().encode(), rows_per_shard, max_bytes)
    assert rows == [(value, None) for value in values]


@FEW
@given(PIECES, st.integers(1, 5), st.integers(1, 40))
def test_a_csv_of_garbage_is_read_the_same_way_twice(
    tmp_path: Path, pieces: list[str], rows_per_shard: int, max_bytes: int
) -> None:
    both_ways(tmp_path, "a.csv", b"n,text\n" + "".join(pieces).encode(), rows_per_shard, max_bytes)


@FEW
@given(
    st.lists(st.integers(0, 40), max_size=8),
    st.integers(1, 9),
    st.integers(1, 200),
    st.integers(1, 10),
    st.booleans(),
)
def test_any_batches_come_back_row_for_row(
    tmp_path: Path, groups: list[int], rows_per_shard: int, max_bytes: int, batch: int, parquet: bool
) -> None:
    table = pa.table(
        {"text": [f"row {i}" for i in range(sum(groups))]}, schema=pa.schema({"text": pa.string()})
    )
    path = tmp_path / ("a.parquet" if parquet else "a.arrow")
    writer = pq.ParquetWriter(path, table.schema) if parquet else pa.ipc.new_file(str(path), table.schema)
    with writer:
        at = 0
        for rows in groups:
            writer.write_table(table.slice(at, rows))
            at += rows
    file = discover(str(path))[0]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raybert.corpus.columnar._BATCH_ROWS", batch)
        found = scan(file, rows_per_shard=rows_per_shard, max_bytes=max_bytes, text_columns=["text"])
        assert_complete(found)
        rows = [
            row
            for run in spans(file, found.shards, found.shards)
            for row in rows_of(file, run, found, ["text"])
        ]
        assert rows == [(text, None) for text in table["text"].to_pylist()]
        some = list(found.shards)[1::2]
        if some:
            expected = [(f"row {i}", None) for shard in some for i in range(shard.start, shard.end)]
            assert rows_of(file, some, found, ["text"]) == expected


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv", "a.parquet"])
def test_the_first_shards_may_be_small_and_each_next_one_twice_as_large(tmp_path: Path, name: str) -> None:
    texts = [f"{i:04}" + "x" * 95 for i in range(500)]  # about 100 bytes a row in every format
    if name.endswith("parquet"):
        pq.write_table(pa.table({"text": texts}), tmp_path / name, use_dictionary=False, row_group_size=70)
        file = discover(str(tmp_path / name))[0]
    else:
        head = b"text\n" if name.endswith("csv") else b""
        lines = [json.dumps({"text": text}) if name.endswith("jsonl") else text for text in texts]
        file = put(tmp_path, name, head + "".join(f"{line}\n" for line in lines).encode())
    found = scan(file, rows_per_shard=300, max_bytes=16_000, first_bytes=1000, text_columns=["text"])
    sizes = [shard.end - shard.start for shard in found.shards]
    assert_complete(found)
    assert 5 <= sizes[0] <= 10
    assert all(1.5 * a < b < 2.5 * a for a, b in pairwise(sizes[:4]))
    assert 100 <= max(sizes) <= 160
    assert [text for text, _ in rows_of(file, list(found.shards), found, ["text"])] == texts
