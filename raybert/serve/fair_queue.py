"""Which rows go through the model next: fair between requests, so that a long one does not hold short ones back."""

import heapq
from collections import deque
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np


@dataclass(eq=False)
class Job:
    """Rows of one request.

    Attributes:
        lengths: int64 [n], tokens of every row.
        payload: what the model needs, for whoever takes the rows.
        bulk: it may wait behind interactive ones.
        next: the first row that still waits.
        cancelled: nobody wants the rest.
    """

    lengths: np.ndarray
    payload: Any = None
    bulk: bool = False
    next: int = 0
    cancelled: bool = False

    @property
    def waiting(self) -> int:
        """Tokens of the rows that wait."""
        return 0 if self.cancelled else int(self.lengths[self.next :].sum())


@dataclass(eq=False)
class _Flow:
    """Jobs that share one turn: a request of its own, or all of the bulk traffic."""

    tag: float = 0.0
    jobs: deque[Job] = field(default_factory=deque)


class FairQueue:
    """Rows in the order of start-time fair queueing (Goyal, Vin, Cheng 1996, SIGCOMM): every flow gets the same tokens.

    A row has the start tag max(virtual time, end of the flow's row before it), its end is its start and its tokens, the row
    with the least start goes first, and the virtual time is the start of the row that went last. So a request of one short
    row waits for one row of each of the others, however many rows they have. All bulk jobs are one flow, one after the
    other: together they get no more than one interactive request does, and everything where there is none.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, _Flow]] = []
        self._bulk = _Flow()
        self._time = 0.0
        self._number = count()
        self._tokens = {False: 0, True: 0}

    def __len__(self) -> int:
        """Flows that wait, cancelled ones that were not met yet included."""
        return len(self._heap)

    def tokens(self, *, bulk: bool) -> int:
        """Tokens that wait, of interactive requests or of bulk ones."""
        return self._tokens[bulk]

    def push(self, job: Job, *, first: bool = False) -> None:
        """Add a job of one row or more; with `first` it goes before all others."""
        flow = self._bulk if job.bulk else _Flow()
        flow.jobs.append(job)
        self._tokens[job.bulk] += job.waiting
        if len(flow.jobs) == 1:  # else it is in the heap
            start = float("-inf") if first else max(self._time, flow.tag)
            heapq.heappush(self._heap, (start, next(self._number), flow))

    def cancel(self, job: Job) -> None:
        """Forget the rows of a job that still wait."""
        self._tokens[job.bulk] -= job.waiting
        job.cancelled = True

    def take(self, budget: int) -> list[tuple[Job, int, int]]:
        """The next rows, at most `budget` tokens unless the first alone is longer: (job, first row, end), a job once."""
        taken: dict[Job, int] = {}
        total = 0
        while self._heap:
            start, _, flow = self._heap[0]
            while flow.jobs and (flow.jobs[0].cancelled or flow.jobs[0].next == len(flow.jobs[0].lengths)):
                flow.jobs.popleft()
            if not flow.jobs:
                heapq.heappop(self._heap)
                continue
            job = flow.jobs[0]
            tokens = int(job.lengths[job.next])
            if taken and total + tokens > budget:
                break
            taken.setdefault(job, job.next)
            job.next += 1
            total += tokens
            self._tokens[job.bulk] -= tokens
            self._time = max(self._time, start)
            flow.tag = max(self._time, start) + tokens
            # a flow without a next row leaves when it is met again
            heapq.heapreplace(self._heap, (flow.tag, next(self._number), flow))
        return [(job, first, job.next) for job, first in taken.items()]
