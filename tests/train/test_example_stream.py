"""The order of examples follows from the seed alone; every one comes once an epoch, whatever the number of workers."""

import numpy as np
import pytest

from raybert.tasks.examples import IGNORED, Examples, Lists
from raybert.train.example_stream import Cursor, ExampleStream, cut, digests, in_order, nothing
from tests.train.task_fakes import examples_of

SETTINGS = {"seed": 3, "batch_size": 8, "batch_tokens": 40, "parts": 2}


def rows_of(batches):
    return [row for batch in batches for _, micro in batch.micro for row in micro.examples.row.tolist()]


def read(stream, steps, world=1):
    """The parts of all ranks of the first steps."""
    cursor, found = Cursor(), []
    for _ in range(steps):
        parts = [stream.read(cursor, rank=rank, world=world) for rank in range(world)]
        found.append(parts)
        cursor = parts[0].cursor
        assert all(part.cursor == cursor for part in parts)
    return found, cursor


@pytest.mark.parametrize("world", [1, 2, 3])
def test_every_example_comes_once_an_epoch(world):
    stream = ExampleStream(examples_of(0, 45), **SETTINGS)
    assert stream.steps_per_epoch == 6
    found, cursor = read(stream, 6, world)
    assert cursor == Cursor(1, 0)
    assert sorted(rows_of([part for parts in found for part in parts])) == list(range(45))
    sizes = [len(rows_of(parts)) for parts in found]
    assert sizes == [8, 8, 8, 8, 8, 5]
    alone, _ = read(stream, 6)
    for parts, (whole,) in zip(found, alone, strict=True):
        bins = dict(entry for part in parts for entry in part.micro)
        assert {n: m.digest for n, m in bins.items()} == {n: m.digest for n, m in whole.micro}
        assert all(len(m.ids) <= 40 for m in bins.values())
        assert len(bins) % 2 == 0 == whole.bins % 2


def test_epochs_and_seeds_have_orders_of_their_own():
    stream = ExampleStream(examples_of(0, 45), **SETTINGS)
    first = rows_of([stream.read(Cursor(0, 0))])
    assert first != rows_of([stream.read(Cursor(1, 0))])
    assert first == rows_of([ExampleStream(examples_of(0, 45), **SETTINGS).read(Cursor(0, 0))])
    other = ExampleStream(examples_of(0, 45), **{**SETTINGS, "seed": 4})
    assert first != rows_of([other.read(Cursor(0, 0))])
    assert sorted(first) != sorted(rows_of([other.read(Cursor(0, 0))]))


def test_a_batch_has_the_targets_of_its_examples():
    examples = examples_of(1, 20)
    for _, micro in ExampleStream(examples, **SETTINGS).read(Cursor(0, 1)).micro:
        rows = micro.examples.row
        assert micro.per_sequence["labels"].tolist() == examples.targets["labels"][rows].tolist()
        assert micro.lengths.tolist() == sorted(examples.ids.lengths[rows])
        for i, (row, start) in enumerate(zip(rows, np.cumsum(micro.lengths) - micro.lengths, strict=True)):
            types = micro.types[start : start + micro.lengths[i]]
            assert types.sum() == micro.lengths[i] - examples.boundary[row]
            assert (np.diff(types) >= 0).all()


def test_bins_are_of_about_one_size():
    rng = np.random.default_rng(0)
    for parts in (1, 2, 4):
        lengths = rng.integers(3, 60, 64)
        bins = cut(lengths, 512, parts)
        sums = [lengths[rows].sum() for rows in bins]
        assert sorted(np.concatenate(bins).tolist()) == list(range(64))
        assert len(bins) % parts == 0
        assert max(sums) <= 512
        assert max(sums) - min(sums) <= 60
    padded = cut(lengths, 512, 2, padded=True)
    assert sorted(np.concatenate(padded).tolist()) == list(range(64))
    assert all(len(rows) * lengths[rows].max() <= 512 for rows in padded)
    assert len(cut(np.array([5]), 512, 4)) == 1


def test_the_sequences_of_a_row_are_evaluated_together():
    lengths = np.full(30, 10)
    examples = Examples(
        Lists(np.zeros(300, np.int32), np.arange(0, 301, 10)),
        lengths,
        np.repeat(np.arange(10), 3),
        {"labels": np.zeros(30, np.int64)},
    )
    seen = []
    for rank in range(3):
        own, bins = in_order(examples, batch_tokens=25, parts=3, padded=False, rank=rank, world=3)
        assert len(own) <= -(-bins // 3)
        for _, micro in own:
            rows, counts = np.unique(micro.examples.row, return_counts=True)
            assert (counts == 3).all()
            seen += rows.tolist()
    assert sorted(seen) == list(range(10))


def rows_of_sequences(lengths, counts):
    row = np.repeat(np.arange(len(counts)), counts)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = Lists(np.arange(offsets[-1]).astype(np.int32), offsets)
    return Examples(ids, np.asarray(lengths), row, {"labels": np.zeros(len(row), np.int64)})


@pytest.mark.parametrize("groups", ["batch", "bin"])
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("world", [1, 2])
def test_the_sequences_of_a_row_are_trained_on_together(groups, padded, world):
    rng = np.random.default_rng(0)
    counts = np.full(23, 3) if padded else rng.integers(1, 5, 23)
    examples = rows_of_sequences(rng.integers(3, 10, counts.sum()), counts)
    options = {**SETTINGS, "batch_size": 5, "groups": groups, "padded": padded}
    stream = ExampleStream(examples, **options)
    assert stream.steps_per_epoch == 5
    found, cursor = read(stream, 5, world)
    assert cursor == Cursor(1, 0)
    seen, cut_up = [], 0
    for parts in found:
        bins = [micro.examples for part in parts for _, micro in part.micro]
        rows = np.concatenate([bin.row for bin in bins])
        own, number = np.unique(rows, return_counts=True)
        assert number.tolist() == counts[own].tolist()
        seen += own.tolist()
        cut_up += sum(len(np.unique(bin.row)) for bin in bins) - len(own)
        for bin in bins:
            longest = bin.ids.lengths.max()
            assert (len(bin) * longest if padded else bin.ids.lengths.sum()) <= 40
            if groups == "bin":  # in their order, one after the other
                assert bin.first.sum() == len(np.unique(bin.row))
                starts = bin.ids.values[bin.ids.offsets[:-1]]
                assert all((np.diff(starts[bin.row == row]) > 0).all() for row in np.unique(bin.row))
    assert sorted(seen) == list(range(23))
    assert (cut_up == 0) == (groups == "bin")
    order = [set(rows_of(parts)) for parts in found]
    alone = [set(rows_of(parts)) for parts in read(ExampleStream(examples, **options), 5)[0]]
    assert order == alone


def test_a_row_that_stays_together_must_fit():
    examples = rows_of_sequences([10, 4, 10, 10], [2, 2])
    ExampleStream(examples, **{**SETTINGS, "batch_tokens": 10}, groups="batch")
    with pytest.raises(ValueError, match=r"batch_tokens=19 is smaller than the longest row \(20 tokens\)"):
        ExampleStream(examples, **{**SETTINGS, "batch_tokens": 19}, groups="bin")


def test_digests_tell_examples_apart():
    one = examples_of(2, 6)
    assert (digests(one) == digests(examples_of(2, 6))).all()
    changed = examples_of(2, 6)
    changed.targets["labels"][3] += 1
    assert np.flatnonzero(digests(one) != digests(changed)).tolist() == [3]
    changed = examples_of(2, 6)
    changed.ids.values[-1] += 1
    assert np.flatnonzero(digests(one) != digests(changed)).tolist() == [5]
    assert len({*digests(one).tolist()}) == 6
    assert all(0 <= value < 2**62 for value in digests(one).tolist())


def test_nothing_has_the_names_of_all_targets():
    tokens = Lists(np.arange(12), np.array([0, 5, 12]))
    examples = Examples(tokens, np.zeros(2), np.arange(2), {"a": np.zeros((2, 3), np.float32), "b": tokens})
    empty = nothing(examples)
    assert empty.per_sequence["a"].tolist() == [[IGNORED] * 3]
    assert empty.per_token["b"].tolist() == [IGNORED]
    assert len(empty.ids) == 1


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"batch_tokens=5 is smaller than the longest row \(\d+ tokens\)"):
        ExampleStream(examples_of(0), **{**SETTINGS, "batch_tokens": 5})
    with pytest.raises(ValueError, match="no rows to train on"):
        ExampleStream(examples_of(0).take(np.zeros(0, int)), **SETTINGS)
