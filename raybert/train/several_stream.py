"""The batches of several tasks: each global batch is of one task, drawn from the seed and the batch's number."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from raybert.pretrain.counter import uniform
from raybert.train.example_stream import Cursor, ExampleMicro, ExampleStream

_TURN = 1 << 32  # name of the random numbers that choose the task; epochs have smaller ones


@dataclass(frozen=True)
class SeveralCursor:
    """A place in the stream: the global batch, and the places in the tasks' own streams. JSON: `dataclasses.asdict`."""

    batch: int = 0
    places: Mapping[str, Cursor] = field(default_factory=dict)


@dataclass(frozen=True)
class SeveralBatch:
    """See `raybert.train.trained.GlobalBatch`."""

    micro: list[tuple[int, ExampleMicro]]
    bins: int
    cursor: SeveralCursor


@dataclass(frozen=True)
class Member:
    """One task of a stream: its own stream, a batch without targets, and the examples that decide how often it comes."""

    stream: ExampleStream
    empty: ExampleMicro
    examples: int


class SeveralStream:
    """Global batches of several tasks, without end. Each is of one task (MT-DNN, arXiv 1901.11504, algorithm 1).

    A task has its turn with the probability of `shares`, independently of what came before: the draw of batch i is a
    function of the seed and i. Within a task the order is its own stream's, which goes on where it stopped.

    Args:
        members: by task.
        temperature: see `shares`.
    """

    def __init__(self, members: Mapping[str, Member], *, temperature: float, seed: int) -> None:
        self._members, self._seed = members, seed
        self._names = list(members)
        self._bounds = np.cumsum(shares([own.examples for own in members.values()], temperature))

    @property
    def steps_per_epoch(self) -> int:
        """Global batches that hold as many examples of each task as there are."""
        return sum(own.stream.steps_per_epoch for own in self._members.values())

    def cursor(self, batch: int = 0, places: Mapping[str, Mapping[str, int]] | None = None) -> SeveralCursor:
        """The place of these fields; without any the beginning."""
        given = places or {}
        own = {name: one.stream.cursor(**given.get(name, {})) for name, one in self._members.items()}
        return SeveralCursor(batch, own)

    def read(self, cursor: SeveralCursor, rank: int = 0, world: int = 1) -> SeveralBatch:
        """The part of one of `world` ranks of the global batch that begins at `cursor`.

        As many micro batches as the busiest rank has, with empty ones of the task: all ranks go through its head.
        """
        name = self.turn(cursor.batch)
        own = self._members[name]
        part = own.stream.read(cursor.places[name], rank, world)
        micro = [(number, replace(one, member=name)) for number, one in part.micro]
        micro += [(0, own.empty)] * (-(-part.bins // world) - len(micro))
        following = SeveralCursor(cursor.batch + 1, {**cursor.places, name: part.cursor})
        return SeveralBatch(micro, part.bins, following)

    def turn(self, batch: int) -> str:
        """The task of a global batch."""
        drawn = np.searchsorted(self._bounds, uniform(self._seed, _TURN, batch)[0], side="right")
        return self._names[min(int(drawn), len(self._names) - 1)]  # sums end a little below 1


def shares(examples: list[int], temperature: float) -> np.ndarray:
    """float64 [tasks], adding up to 1: examples^(1 / temperature) over their sum (Raffel et al. 2020, arXiv 1910.10683,
    section 3.5.2, temperature-scaled mixing). 1 is in proportion to the examples; the larger, the more alike."""
    scaled = np.asarray(examples, np.float64) ** (1 / temperature)
    return scaled / scaled.sum()
