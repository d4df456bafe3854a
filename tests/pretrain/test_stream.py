"""The stream of batches: the same for any number of ranks and from any place, every instance once an epoch."""

import json
from collections import Counter
from dataclasses import asdict, fields, replace
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybert.pretrain import stream as module
from raybert.pretrain.masking import Masking
from raybert.pretrain.stream import BatchStream, Cursor, split
from raybert.pretrain.windows import MicroBatch, digest

VOCABULARY, CLS, SEP, MASK = 5000, 1, 2, 3
INFO = {"vocabulary": VOCABULARY, "mask_id": MASK, "special_ids": [0, CLS, SEP, MASK], "max_length": 40}


def write(
    path: Path, rows: list[int], *, seed: int = 0, static: bool = False, longest: int = 40, **info
) -> Path:
    """A folder with shards of so many rows. The second token of every row is its own: 10, 11, ... in the folder."""
    rng = np.random.default_rng(seed)
    (path / "data").mkdir(parents=True)
    number = 10
    for shard, count in enumerate(rows):
        columns = {name: [] for name in ("ids", "starts", "boundary", "label", "document")}
        masks = {"masked_positions": [], "masked_labels": []}
        for _ in range(count):
            length = int(rng.integers(8, longest + 1))
            middle = int(rng.integers(4, length - 2))
            ids = rng.integers(1000, VOCABULARY, length)
            ids[[0, 1, middle, -1]] = CLS, number, SEP, SEP
            columns["ids"].append(ids)
            columns["starts"].append(rng.random(length) < 0.7)
            columns["label"].append(int(rng.integers(-1, 2)))
            columns["boundary"].append(length if columns["label"][-1] < 0 else middle + 1)
            columns["document"].append(f"document {number}")
            masks["masked_positions"].append([2, length - 2])
            masks["masked_labels"].append([number + 1, number + 2])
            number += 1
        types = [pa.list_(pa.uint16()), pa.list_(pa.bool_()), pa.int32(), pa.int8(), pa.string()]
        columns |= masks if static else {}
        types += [pa.list_(pa.int32()), pa.list_(pa.uint16())] if static else []
        schema = pa.schema(zip(columns, types, strict=True), {"raybert": json.dumps({**INFO, **info})})
        table = pa.table(
            [pa.array(column, t) for column, t in zip(columns.values(), types, strict=True)], schema
        )
        pq.write_table(table, path / "data" / f"part-{shard:05d}.parquet", row_group_size=7)
    return path


def open_stream(path: Path, **settings) -> BatchStream:
    defaults = {"seed": 3, "global_batch_tokens": 400, "batch_tokens": 100, "masking": Masking()}
    return BatchStream(str(path), **{**defaults, **settings})


def take(stream: BatchStream, batches: int, cursor: Cursor | None = None, world: int = 1):
    """Digests of so many global batches, each with all its ranks' bins in order; and the micro batches."""
    digests, micro = [], []
    cursor = cursor or Cursor()
    for _ in range(batches):
        parts = [stream.read(cursor, rank, world) for rank in range(world)]
        assert len({part.cursor for part in parts}) == 1
        for rank, part in enumerate(parts):
            assert [number for number, _ in part.micro] == list(range(rank, part.bins, world))
        union = sorted((pair for part in parts for pair in part.micro), key=lambda pair: pair[0])
        assert [number for number, _ in union] == list(range(parts[0].bins))
        digests.append([batch.digest for _, batch in union])
        micro += [batch for _, batch in union]
        cursor = parts[0].cursor
    return digests, micro


def first_words(batch: MicroBatch) -> list[int]:
    """The number of every row (it may be masked: then it is among the labels)."""
    ids = batch.ids.copy()
    ids[batch.positions] = batch.labels
    return ids[np.cumsum(batch.lengths) - batch.lengths + 1].tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("tokens"), [31, 17, 1, 0, 40])  # 89 rows, a prime


@pytest.fixture(autouse=True)
def _small_windows(monkeypatch):
    monkeypatch.setattr(module, "WINDOW_INSTANCES", 40)


def one_epoch(stream: BatchStream, epoch: int = 0) -> list[MicroBatch]:
    """All bins of an epoch; the stream must have one bin a global batch."""
    assert stream.bins == 1
    cursor, found = Cursor(epoch), []
    while cursor.epoch == epoch:
        batch = stream.read(cursor)
        found.append(batch.micro[0][1])
        cursor = batch.cursor
    assert cursor == Cursor(epoch + 1)
    return found


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("world", [2, 3, 7])
def test_ranks_share_out_the_same_batches(folder, world, padded):
    stream = open_stream(folder, padded=padded)
    assert take(stream, 12, world=world)[0] == take(open_stream(folder, padded=padded), 12)[0]


def test_ranks_beyond_the_bins_get_nothing(folder):
    part = open_stream(folder).read(Cursor(), 5, 6)
    assert (part.micro, part.bins) == ([], 4)
    for rank, world in ((-1, 2), (2, 2)):
        with pytest.raises(ValueError, match="rank"):
            open_stream(folder).read(Cursor(), rank, world)


@pytest.mark.parametrize("padded", [False, True])
def test_an_epoch_visits_every_instance_once(folder, padded):
    stream = open_stream(folder, global_batch_tokens=100, padded=padded)
    orders = []
    for epoch in range(2):
        bins = one_epoch(stream, epoch)
        orders.append([number for batch in bins for number in first_words(batch)])
        assert sorted(orders[-1]) == list(range(10, 99))
        for batch in bins:
            longest = batch.lengths.max() if padded else 1
            assert longest * (len(batch.lengths) if padded else batch.lengths.sum()) <= 100
    assert orders[0] != orders[1]


def test_two_epochs_in_global_batches_that_run_over_their_ends(folder):
    one = open_stream(folder, global_batch_tokens=100)
    bins = sum(len(one_epoch(one, epoch)) for epoch in range(2))
    stream = open_stream(folder, global_batch_tokens=100 * bins)
    batch = stream.read(Cursor())
    assert batch.cursor == Cursor(2)
    seen = Counter(number for _, micro in batch.micro for number in first_words(micro))
    assert set(seen.values()) == {2}
    assert len(seen) == 89


@pytest.mark.parametrize("rows", [[1], [3], [13], [1, 1, 1, 0]])
def test_folders_smaller_than_a_global_batch(tmp_path, rows):
    write(tmp_path / "small", rows)
    stream = open_stream(tmp_path / "small", global_batch_tokens=3000)
    digests, micro = take(stream, 3)
    assert len(micro) == 90
    assert take(stream, 3, world=2)[0] == digests
    seen = Counter(number for batch in micro for number in first_words(batch))
    assert len(seen) == sum(rows)
    assert max(seen.values()) - min(seen.values()) <= 1
    assert stream.steps_per_epoch == 1


def test_resuming_from_any_place_gives_the_same(folder):
    stream = open_stream(folder)
    digests = take(stream, 30)[0]
    cursor, cursors = Cursor(), []
    for _ in range(30):
        cursors.append(Cursor(**json.loads(json.dumps(asdict(cursor)))))
        cursor = stream.read(cursor).cursor
    assert cursor.epoch > 1
    assert len({c.window for c in cursors}) > 1
    for place in (29, 3, 17, 0, 11):
        fresh = open_stream(folder)
        assert take(fresh, 2, cursors[place])[0] == (digests + take(stream, 1, cursor)[0])[place : place + 2]
    # jumping about in one stream
    assert [take(stream, 1, cursors[place])[0][0] for place in (20, 2, 21, 3)] == [
        digests[place] for place in (20, 2, 21, 3)
    ]


def test_the_seed_decides(folder):
    digests, micro = take(open_stream(folder), 5)
    assert take(open_stream(folder), 5)[0] == digests
    others = take(open_stream(folder, seed=4), 5)[1]
    assert not {batch.digest for batch in micro} & {batch.digest for batch in others}


def test_epochs_go_through_the_shards_in_other_orders(folder):
    stream = open_stream(folder, global_batch_tokens=100)
    windows = set()
    for epoch in range(8):
        cursor, rows = Cursor(epoch), set()
        while (cursor.epoch, cursor.window) == (epoch, 0):
            batch = stream.read(cursor)
            rows |= set(first_words(batch.micro[0][1]))
            cursor = batch.cursor
        windows.add(frozenset(rows))
    assert len(windows) > 2


def test_epochs_go_through_a_single_shard_in_other_orders(folder):
    stream = open_stream(folder, global_batch_tokens=100, shards=["part-00004.parquet"])
    orders = [[first_words(batch) for batch in one_epoch(stream, epoch)] for epoch in range(3)]
    assert orders[0] != orders[1] != orders[2] != orders[0]
    bins = [{frozenset(rows) for rows in order} for order in orders]
    assert len(bins[0] & bins[1]) < len(bins[0]) / 2


def test_masks_of_an_instance_change_with_the_epoch_only(folder):
    def masks(stream, epoch):
        found = {}
        for batch in one_epoch(stream, epoch):
            ends = np.cumsum(batch.lengths)
            for number, begin, end in zip(first_words(batch), ends - batch.lengths, ends, strict=True):
                inside = (batch.positions >= begin) & (batch.positions < end)
                found[number] = (batch.ids[begin:end].tolist(), (batch.positions[inside] - begin).tolist())
        return found

    stream = open_stream(folder, global_batch_tokens=100)
    wider = open_stream(folder, global_batch_tokens=300, batch_tokens=300)
    first, second = masks(stream, 0), masks(stream, 1)
    assert first == masks(wider, 0)
    # every row has masks of its own
    for place in range(4, 7):
        assert 0.03 < np.mean([place in positions for _, positions in first.values()]) < 0.3
    assert np.mean([first[number] == second[number] for number in first]) < 0.1
    fixed = open_stream(folder, global_batch_tokens=100, fixed_masks=True)
    assert masks(fixed, 0) == masks(fixed, 1) == first
    only = open_stream(folder, global_batch_tokens=100, shards=["part-00001.parquet"])
    assert masks(only, 0) == {number: first[number] for number in range(41, 58)}


def test_what_a_micro_batch_holds(folder):
    rows = {row["ids"][1]: row for row in pq.read_table(folder / "data").to_pylist()}
    for batch in take(open_stream(folder), 10)[1]:
        numbers, ids = first_words(batch), batch.ids.copy()
        ids[batch.positions] = batch.labels
        assert ids.tolist() == [token for number in numbers for token in rows[number]["ids"]]
        assert batch.lengths.tolist() == [len(rows[number]["ids"]) for number in numbers]
        labels = [rows[number]["label"] for number in numbers]
        assert batch.pair_labels.tolist() == [-100 if label < 0 else label for label in labels]
        types = [
            int(place >= rows[number]["boundary"])
            for number in numbers
            for place in range(len(rows[number]["ids"]))
        ]
        assert batch.types.tolist() == types
        assert all(getattr(batch, field.name).dtype == np.int64 for field in fields(batch)[:-1])
        assert not np.isin(batch.labels, INFO["special_ids"]).any()


def test_static_masks_are_taken_as_they_are(tmp_path):
    write(tmp_path / "static", [20, 20], static=True)
    rows = {row["ids"][1]: row for row in pq.read_table(tmp_path / "static" / "data").to_pylist()}
    for batch in take(open_stream(tmp_path / "static"), 10)[1]:
        begins = np.cumsum(batch.lengths) - batch.lengths
        numbers = batch.ids[begins + 1].tolist()
        assert batch.ids.tolist() == [token for number in numbers for token in rows[number]["ids"]]
        assert batch.positions.tolist() == [
            int(begin) + place
            for begin, number in zip(begins, numbers, strict=True)
            for place in rows[number]["masked_positions"]
        ]
        assert batch.labels.tolist() == [
            label for number in numbers for label in rows[number]["masked_labels"]
        ]


@pytest.mark.parametrize("name", ["ids", "lengths", "types", "positions", "labels", "pair_labels"])
def test_any_content_changes_the_digest(folder, name):
    batch = take(open_stream(folder), 1)[1][0]
    assert digest(batch) == batch.digest
    assert 0 <= batch.digest < 2**63
    for change in (lambda part: part[:-1], lambda part: np.append(part[:-1], part[-1] + 1)):
        assert digest(replace(batch, **{name: change(getattr(batch, name))})) != batch.digest


def test_content_does_not_pass_from_one_part_to_the_next_unnoticed(folder):
    batch = take(open_stream(folder), 1)[1][0]
    moved = replace(batch, ids=batch.ids[:-1], lengths=np.append(batch.ids[-1:], batch.lengths))
    assert digest(moved) != batch.digest


def test_an_object_store_holds_the_same(folder):
    store = fsspec.filesystem("memory")
    for path in (folder / "data").iterdir():
        store.pipe_file(f"/test_stream/data/{path.name}", path.read_bytes())
    assert take(open_stream("memory://test_stream"), 3)[0] == take(open_stream(folder), 3)[0]


def test_totals(folder):
    stream = open_stream(folder)
    lengths = [len(ids) for ids in pq.read_table(folder / "data")["ids"].to_pylist()]
    assert (stream.instances, stream.tokens) == (89, sum(lengths))
    assert stream.steps_per_epoch == round(sum(lengths) / 400)
    bins = len(one_epoch(open_stream(folder, global_batch_tokens=100)))
    assert abs(bins / 4 - stream.steps_per_epoch) <= 0.1 * bins / 4 + 1


def test_splits_are_disjoint_and_whole(folder):
    names = sorted(path.name for path in (folder / "data").iterdir())
    for share, held in ((0.01, 1), (0.4, 2), (0.99, 4)):
        train, out = split(str(folder), share, seed=1)
        assert len(out) == held
        assert sorted(train + out) == names
    assert split(str(folder), 0, seed=1) == (names, [])
    assert len({tuple(split(str(folder), 0.2, seed=seed)[1]) for seed in range(20)}) > 1
    assert split(str(folder), 0.4, seed=1) == split(str(folder), 0.4, seed=1)


def test_held_out_shards_are_not_trained_on(folder):
    seen = []
    for names in split(str(folder), 0.4, seed=2):
        bins = one_epoch(open_stream(folder, global_batch_tokens=100, shards=names))
        seen.append({number for batch in bins for number in first_words(batch)})
    assert not seen[0] & seen[1]
    assert seen[0] | seen[1] == set(range(10, 99))


def test_mistakes(folder, tmp_path):
    with pytest.raises(ValueError, match=r"batch_tokens=20 is smaller than the longest sequence \(\d\d\)"):
        open_stream(folder, batch_tokens=20).read(Cursor())
    with pytest.raises(ValueError, match="batch_tokens is 0"):
        open_stream(folder, batch_tokens=0)
    with pytest.raises(ValueError, match=r"no token shard x\.parquet"):
        open_stream(folder, shards=["x.parquet"])
    with pytest.raises(ValueError, match="empty"):
        open_stream(folder, shards=[])
    with pytest.raises(ValueError, match="no window 9"):
        open_stream(folder).read(Cursor(0, 9, 0))
    with pytest.raises(ValueError, match="no token shards"):
        open_stream(tmp_path)
    with pytest.raises(ValueError, match="no rows"):
        open_stream(write(tmp_path / "empty", [0, 0]))
    with pytest.raises(ValueError, match="held-out share is 1"):
        split(str(folder), 1, seed=0)
    with pytest.raises(ValueError, match="one token shard"):
        split(str(write(tmp_path / "one", [5])), 0.1, seed=0)


def test_shards_that_do_not_belong_together(tmp_path):
    write(tmp_path / "a", [5])
    write(tmp_path / "b", [5], mask_id=4)
    other = (tmp_path / "b" / "data" / "part-00000.parquet").read_bytes()
    (tmp_path / "a" / "data" / "part-00001.parquet").write_bytes(other)
    with pytest.raises(ValueError, match=r"part-00000.parquet and part-00001.parquet"):
        open_stream(tmp_path / "a")
    pq.write_table(pa.table({"ids": [[1]]}), tmp_path / "a" / "data" / "part-00001.parquet")
    with pytest.raises(ValueError, match=r"part-00001.parquet is not a token shard"):
        open_stream(tmp_path / "a")


def test_an_error_of_reading_passes(folder, monkeypatch):
    stream = open_stream(folder)
    expected = take(open_stream(folder), 1)[0]
    read = stream._store.read
    monkeypatch.setattr(stream._store, "read", lambda name: (_ for _ in ()).throw(OSError("gone")))
    with pytest.raises(OSError, match="gone"):
        stream.read(Cursor())
    monkeypatch.setattr(stream._store, "read", read)
    assert take(stream, 1)[0] == expected
