"""Outputs of sequences and tokens: some of them, whole rows, and examples as a column of a table."""

import numpy as np
import pyarrow as pa
import pytest

from raybert.tasks.examples import Examples, Lists
from raybert.tasks.outputs import blocks, finite_rows, take
from raybert.tasks.storage import from_column, to_column

LENGTHS = np.array([2, 1, 3, 2, 4])
ROWS = np.array([1, 1, 3, 4, 4])


def examples(**more) -> Examples:
    offsets = np.concatenate([[0], np.cumsum(LENGTHS)])
    ids = Lists(np.arange(12, dtype=np.int32), offsets)
    return Examples(ids, LENGTHS.astype(np.int32), ROWS, {"place": Lists(np.arange(12), offsets)}, **more)


def test_some_sequences_and_their_tokens():
    some = np.array([4, 0])
    assert take(np.arange(5), LENGTHS, some).tolist() == [4, 0]
    of_tokens = np.stack([np.arange(12), -np.arange(12)], 1)
    assert take(of_tokens, LENGTHS, some)[:, 0].tolist() == [8, 9, 10, 11, 0, 1]
    assert take(of_tokens, LENGTHS, np.zeros(0, int)).shape == (0, 2)


def test_a_row_is_finite_where_all_of_its_sequences_are():
    of_tokens = np.zeros((12, 3))
    of_tokens[9, 1] = np.nan
    of_sequences = np.zeros(5)
    assert finite_rows({"a": of_tokens, "b": of_sequences}, examples()).tolist() == [True] * 3 + [False] * 2
    of_sequences[1] = np.inf
    assert finite_rows({"a": of_tokens, "b": of_sequences}, examples()).tolist() == [
        False,
        False,
        True,
        False,
        False,
    ]
    nothing = examples().take(np.zeros(0, int))
    assert finite_rows({"a": np.zeros((0, 3))}, nothing).tolist() == []


@pytest.mark.parametrize(
    ("size", "expected"), [(1, [[0, 1], [2], [3, 4]]), (3, [[0, 1, 2], [3, 4]]), (9, [[0, 1, 2, 3, 4]])]
)
def test_blocks_never_cut_a_row(size, expected):
    assert [block.tolist() for block in blocks(examples(), size)] == expected
    assert list(blocks(examples().take(np.zeros(0, int)), size)) == []


def test_examples_travel_as_a_column_of_their_rows():
    truth = {"text": np.array(["a", "", "b", "c", ""], object)}
    made = examples(truth=truth, cut=np.array([True, False, False, False, True]))
    column = pa.chunked_array([to_column(made, 6)])
    assert pa.compute.list_value_length(column).to_pylist() == [0, 2, 0, 1, 2, 0]
    back = from_column(column)
    for one, other in ((back.ids, made.ids), (back.targets["place"], made.targets["place"])):
        assert one.values.tolist() == other.values.tolist()
        assert one.offsets.tolist() == other.offsets.tolist()
    assert (back.row.tolist(), back.cut.tolist()) == (ROWS.tolist(), made.cut.tolist())
    assert back.truth["text"].tolist() == truth["text"].tolist()
    some = from_column(column.take([4, 2, 1]))
    assert some.row.tolist() == [0, 0, 2, 2]
    assert some.ids.values.tolist() == [6, 7, 8, 9, 10, 11, 0, 1, 2]
    assert len(from_column(pa.chunked_array([to_column(made.take(np.zeros(0, int)), 0)]))) == 0
    assert from_column(pa.chunked_array([to_column(examples(), 6)])).cut is None
