"""The order of labelled examples: a function of the seed and the epoch, the same for any number of workers."""

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from raybert.encoder.batching import plan_batches
from raybert.pretrain.counter import bits, permutation
from raybert.tasks.examples import IGNORED, Examples, Lists

_DIGEST_RANGE = 2**62

Groups = Literal["none", "batch", "bin"]


@dataclass(frozen=True)
class Cursor:
    """A place in the stream: epoch, global batch in the epoch. JSON: `dataclasses.asdict`."""

    epoch: int = 0
    batch: int = 0


@dataclass(frozen=True)
class ExampleMicro:
    """One packed forward pass over some `examples`; see `raybert.train.packed.Micro`.

    `member` is the task that it is of, where there are several.
    """

    examples: Examples
    digest: int = 0
    member: str = ""

    @property
    def ids(self) -> np.ndarray:
        """[tokens]."""
        return self.examples.ids.values

    @property
    def lengths(self) -> np.ndarray:
        """[n]."""
        return self.examples.ids.lengths

    @property
    def types(self) -> np.ndarray:
        """[tokens], 1 behind the boundary."""
        ids, boundary = self.examples.ids, self.examples.boundary
        place = np.arange(len(ids.values)) - np.repeat(ids.offsets[:-1], ids.lengths)
        return (place >= np.repeat(boundary, ids.lengths)).astype(np.int64)

    @property
    def positions(self) -> np.ndarray:
        """None: tasks ask of sequences and of all tokens."""
        return np.zeros(0, np.int64)

    @property
    def per_sequence(self) -> Mapping[str, np.ndarray]:
        """Targets [n] and [n, k]."""
        return {name: t for name, t in self.examples.targets.items() if not isinstance(t, Lists)}

    @property
    def per_token(self) -> Mapping[str, np.ndarray]:
        """Targets of tokens."""
        return {name: t.values for name, t in self.examples.targets.items() if isinstance(t, Lists)}

    @property
    def per_position(self) -> Mapping[str, np.ndarray]:
        """None."""
        return {}


@dataclass(frozen=True)
class GlobalBatch:
    """See `raybert.train.trained.GlobalBatch`."""

    micro: list[tuple[int, ExampleMicro]]
    bins: int
    cursor: Cursor


class ExampleStream:
    """Global batches of examples, without end: the next `batch_size` of permutation(n, seed, epoch).

    The last batch of an epoch is smaller where `batch_size` does not divide. A batch is cut into bins of at most
    `batch_tokens` (with `padded`, rows x longest are at most that), a multiple of `parts` of about equal size where
    there are so many examples; bin i is rank (i % world)'s. So the content depends on the arguments here and the cursor
    alone.

    Args:
        parts: the number of workers that a run was started with; all of them have something to do then.
        groups: none: every sequence is one by itself, also those of a row. batch: `batch_size` counts rows, and the sequences
            of a row, which must lie together, come in one global batch. bin: in one bin, too.

    Raises ValueError where there are no examples, or one (of a bin: a row) is longer than `batch_tokens`.
    """

    def __init__(
        self,
        examples: Examples,
        *,
        seed: int,
        batch_size: int,
        batch_tokens: int,
        parts: int = 1,
        padded: bool = False,
        groups: Groups = "none",
    ) -> None:
        if not len(examples):
            raise ValueError("there are no rows to train on")
        refuse_longer(examples, batch_tokens, groups, padded=padded)
        self._rows, self._together = rows_of(examples, groups), groups == "bin"
        self._examples, self._seed, self._size = examples, seed, batch_size
        self._budget, self._parts, self._padded = batch_tokens, parts, padded
        self._digests, self._sizes = digests(examples), examples.sizes
        self._order: tuple[int, np.ndarray] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch."""
        return -(-len(self._rows) // self._size)

    def cursor(self, **place: int) -> Cursor:
        """The place of these fields; without any the beginning."""
        return Cursor(**place)

    def read(self, cursor: Cursor, rank: int = 0, world: int = 1) -> GlobalBatch:
        """The part of one of `world` ranks of the global batch that begins at `cursor`."""
        chosen = self._epoch(cursor.epoch)[cursor.batch * self._size : (cursor.batch + 1) * self._size]
        units = self._rows.take(chosen)  # what is not cut: rows, or sequences
        if not self._together:
            units = Lists(units.values, np.arange(len(units.values) + 1))
        lengths = sizes_of(self._sizes, units, padded=self._padded)
        bins = cut(lengths, self._budget, self._parts, padded=self._padded)
        micro = [
            (number, self._micro(units.take(bins[number]).values)) for number in range(rank, len(bins), world)
        ]
        last = cursor.batch + 1 == self.steps_per_epoch
        following = Cursor(cursor.epoch + 1) if last else Cursor(cursor.epoch, cursor.batch + 1)
        return GlobalBatch(micro, len(bins), following)

    def _micro(self, rows: np.ndarray) -> ExampleMicro:
        digest = sum(self._digests[rows].tolist()) % _DIGEST_RANGE
        return ExampleMicro(self._examples.take(rows), digest)

    def _epoch(self, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, permutation(len(self._rows), self._seed, epoch)
        return self._order[1]


def rows_of(examples: Examples, groups: Groups) -> Lists:
    """What is drawn in a random order: lists of sequences, those of a row, or each by itself."""
    count = len(examples)
    starts = np.arange(count) if groups == "none" else np.flatnonzero(examples.first)
    return Lists(np.arange(count), np.append(starts, count))


def sizes_of(sizes: np.ndarray, rows: Lists, *, padded: bool = False) -> np.ndarray:
    """int64, tokens of every list of sequences, by the `sizes` of these; with `padded` as if all were as long as its longest."""
    lengths = sizes[rows.values]
    if padded:
        return np.maximum.reduceat(lengths, rows.offsets[:-1]) * rows.lengths
    return np.add.reduceat(lengths, rows.offsets[:-1])


def in_order(
    examples: Examples, *, batch_tokens: int, parts: int, padded: bool, rank: int, world: int
) -> tuple[list[tuple[int, ExampleMicro]], int]:
    """A rank's bins of all examples, once through, and their number over all ranks: to evaluate on.

    The sequences of a row lie in one bin, in their order.
    """
    rows, of = np.unique(examples.row, return_inverse=True)
    lengths = np.bincount(of, examples.sizes, len(rows)).astype(np.int64)
    # a row of many windows may be longer: without gradients there is room
    budget = max(batch_tokens, int(lengths.max(initial=1)))
    bins = [np.flatnonzero(np.isin(of, chosen)) for chosen in cut(lengths, budget, parts, padded=padded)]
    own = [(number, ExampleMicro(examples.take(bins[number]))) for number in range(rank, len(bins), world)]
    return own, len(bins)


def nothing(examples: Examples) -> ExampleMicro:
    """One token whose targets are all IGNORED, with the same names as these examples."""

    def ignored(target: np.ndarray | Lists) -> np.ndarray | Lists:
        if isinstance(target, Lists):
            return Lists(np.full(1, IGNORED, target.values.dtype), np.array([0, 1], np.int64))
        return np.full((1, *target.shape[1:]), IGNORED, target.dtype)

    return ExampleMicro(
        Examples(
            ids=Lists(np.zeros(1, np.int32), np.array([0, 1], np.int64)),
            boundary=np.ones(1, np.int32),
            row=np.zeros(1, np.int64),
            targets={name: ignored(target) for name, target in examples.targets.items()},
        )
    )


def cut(lengths: np.ndarray, budget: int, parts: int, *, padded: bool = False) -> list[np.ndarray]:
    """Bins of about equal size, each sorted by length: numbers of sequences of at most `budget` tokens together.

    There are a multiple of `parts` of them where there are as many sequences. The longest sequence goes to the bin that
    has least (Graham 1969, SIAM J. Appl. Math. 17). With `padded`, neighbours in length go together.
    """
    if padded:
        share = -(-int(lengths.sum()) // parts)
        bins = plan_batches(lengths, min(budget, max(share, int(lengths.max()))), padded=True)
        return [rows[::-1] for rows in bins]
    longest_first = np.argsort(lengths, kind="stable")[::-1]
    count = parts * max(1, -(-int(lengths.sum()) // (budget * parts)))
    while True:
        bins = _deal(lengths, longest_first, min(count, len(lengths)))
        if all(int(lengths[rows].sum()) <= budget for rows in bins):
            return [np.array(rows[::-1]) for rows in bins]
        count += parts


def _deal(lengths: np.ndarray, longest_first: np.ndarray, count: int) -> list[list[int]]:
    heap, bins = [(0, number) for number in range(count)], [[] for _ in range(count)]
    for row in longest_first.tolist():
        tokens, number = heap[0]
        bins[number].append(row)
        heapq.heapreplace(heap, (tokens + int(lengths[row]), number))
    return bins


def digests(examples: Examples) -> np.ndarray:
    """int64 [n]: 62 bits of a hash of the row, the ids and the targets of each example."""
    found = bits(examples.row) + _of_lists(examples.ids)
    for name in sorted(examples.targets):
        target = examples.targets[name]
        found = found * np.uint64(3) + (_of_lists(target) if isinstance(target, Lists) else _of_rows(target))
    return (bits(found) % np.uint64(_DIGEST_RANGE)).astype(np.int64)


def _of_lists(lists: Lists) -> np.ndarray:
    place = np.arange(len(lists.values)) - np.repeat(lists.offsets[:-1], lists.lengths)
    sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(bits(_whole(lists.values), place))])
    return sums[lists.offsets[1:]] - sums[lists.offsets[:-1]]  # modulo 2^64


def _of_rows(values: np.ndarray) -> np.ndarray:
    wide = _whole(values).reshape(len(values), -1)
    return bits(wide, np.arange(wide.shape[1])[None]).sum(axis=1, dtype=np.uint64)


def _whole(values: np.ndarray) -> np.ndarray:
    """The bits of floats as integers."""
    if np.issubdtype(values.dtype, np.floating):
        return values.astype(np.float64).view(np.int64)
    return values.astype(np.int64)


def refuse_longer(
    examples: Examples, batch_tokens: int, groups: Groups = "none", *, padded: bool = False
) -> None:
    """Raise ValueError for an example, or where they stay together a row, longer than a batch may be."""
    rows = rows_of(examples, "bin" if groups == "bin" else "none")
    longest = int(sizes_of(examples.sizes, rows, padded=padded).max())
    if longest > batch_tokens:
        raise ValueError(
            f"batch_tokens={batch_tokens} is smaller than the longest row ({longest} tokens); raise it, or lower "
            "model.max_length"
        )
