"""Dynamic batching across requests: whatever waits when the model is free goes through it together, bounded in tokens.

Nothing waits for a batch to fill: an idle model takes a lone request at once, a busy one finds more waiting.
"""

import asyncio
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from raybert.serve.errors import ApiError
from raybert.serve.fair_queue import FairQueue, Job

_SMOOTHING = 0.1  # of the measured tokens a second: some ten steps decide


_WARM_UP_SECONDS, _WARM_UP_STEPS = 1.0, 10


class Payload(Protocol):
    """The rows of a request, ready for the model."""

    @property
    def lengths(self) -> np.ndarray:
        """int64 [n], tokens of every row."""


Part = tuple[Any, int, int]
"""A payload, and its rows from the first to before the last."""

Run = Callable[[Hashable, Sequence[Part]], list[Sequence[Any]]]
"""What the model says of parts that are to be computed in one way: for each a result a row. Called in a thread."""


def measured_rate(run: Run, way: Hashable, payload: Payload) -> float:
    """Tokens a second of steps over all rows of a payload, after the first has paid for everything that is made once."""
    part = (payload, 0, len(payload.lengths))
    run(way, [part])
    started, steps = time.perf_counter(), 0
    while not steps or (time.perf_counter() - started < _WARM_UP_SECONDS and steps < _WARM_UP_STEPS):
        run(way, [part])
        steps += 1
    return steps * float(payload.lengths.sum()) / (time.perf_counter() - started)


@dataclass(eq=False)
class _Call:
    """A request in the batcher."""

    payload: Any
    way: Hashable
    results: list[Any]
    missing: int
    done: asyncio.Future[None]
    started: float = 0.0


class Batcher:
    """Rows of many requests through one model, a step at a time in a thread of its own.

    Args:
        run: see `Run`.
        step_tokens: of a step, at most, but for a row that is longer.
        rate: tokens a second that the model computes, as first measured; what follows is learnt from full steps.
        queue_tokens: that may wait; None: what is computed in `patience` seconds.
        patience: see there.
        on_step: told the tokens int64 [n] of the rows of every step, and its seconds.

    Attributes: `rate`; `seconds` in which the model has computed.

    Interactive requests and bulk ones may each have so many tokens waiting.
    """

    def __init__(
        self,
        run: Run,
        *,
        step_tokens: int,
        rate: float,
        queue_tokens: int | None,
        patience: float,
        on_step: Callable[[np.ndarray, float], None] = lambda lengths, seconds: None,
    ) -> None:
        self._run, self._step_tokens, self._on_step = run, step_tokens, on_step
        self.rate = rate
        self.seconds = 0.0
        self._limit, self._patience = queue_tokens, patience
        self._queue = FairQueue()
        self._coming = {False: 0, True: 0}  # tokens that were admitted and are not in the queue yet, by bulk
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="model")
        self._work: asyncio.Task[None] | None = None

    @property
    def waiting(self) -> int:
        """Tokens that wait."""
        return self._queue.tokens(bulk=False) + self._queue.tokens(bulk=True)

    def admit(self, tokens: int, *, bulk: bool = False) -> None:
        """Raise ApiError 429 where so many tokens more would wait too long, with the time until they would not."""
        limit = self._limit or max(self._step_tokens, int(self.rate * self._patience))
        waiting = self._queue.tokens(bulk=bulk) + self._coming[bulk]
        if waiting and waiting + tokens > limit:
            raise ApiError(
                429,
                f"{waiting} tokens wait already; try again later",
                code="overloaded",
                retry_after=(waiting + tokens - limit) / self.rate,
            )

    @contextmanager
    def admitted(self, tokens: int, *, bulk: bool = False) -> Iterator[None]:
        """`admit`, and while this lasts the tokens count as waiting: for what is done before they are."""
        self.admit(tokens, bulk=bulk)
        self._coming[bulk] += tokens
        try:
            yield
        finally:
            self._coming[bulk] -= tokens

    async def __call__(
        self, payload: Payload, way: Hashable, *, bulk: bool = False, first: bool = False
    ) -> tuple[list[Any], float]:
        """A result for every row, and the seconds until the first of them went in.

        `way` tells apart what must not be computed together. `first` passes all that wait. Cancelled, what still waits
        is forgotten. Raises what `run` raises for these rows.
        """
        now = time.perf_counter()
        lengths = payload.lengths
        if not len(lengths):
            return [], 0.0
        done = asyncio.get_running_loop().create_future()
        call = _Call(payload, way, [None] * len(lengths), len(lengths), done)
        job = Job(lengths, call, bulk=bulk)
        self._queue.push(job, first=first)
        if self._work is None or self._work.done():
            self._work = asyncio.create_task(self._steps())
        try:
            await done
        except asyncio.CancelledError:
            self._queue.cancel(job)
            raise
        return call.results, call.started - now

    def close(self) -> None:
        """End the thread, once its step is done."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _steps(self) -> None:
        """Until nothing waits. A row that came while the last step was delivered is taken by the next one."""
        loop = asyncio.get_running_loop()
        while picked := self._queue.take(self._step_tokens):
            started = time.perf_counter()
            full = len(self._queue) > 0
            for job, first, _ in picked:
                if first == 0:
                    job.payload.started = started
            found = await loop.run_in_executor(self._thread, self._step, picked)
            seconds = time.perf_counter() - started
            lengths = np.concatenate([job.lengths[first:end] for job, first, end in picked])
            self.seconds += seconds
            if full and seconds > 0:
                self.rate += _SMOOTHING * (float(lengths.sum()) / seconds - self.rate)
            for (job, first, end), result in zip(picked, found, strict=True):
                _deliver(self._queue, job, first, end, result)
            self._on_step(lengths, seconds)

    def _step(self, picked: Sequence[tuple[Job, int, int]]) -> list[Sequence[Any] | Exception]:
        """In the thread: a result for every job, or what went wrong with it alone."""
        found: list[Any] = [None] * len(picked)
        ways: dict[Hashable, list[int]] = {}
        for place, (job, _, _) in enumerate(picked):
            ways.setdefault(job.payload.way, []).append(place)
        for way, places in ways.items():
            parts = [(picked[i][0].payload.payload, *picked[i][1:]) for i in places]
            for place, result in zip(places, self._together(way, parts), strict=True):
                found[place] = result
        return found

    def _together(self, way: Hashable, parts: Sequence[Part]) -> list[Any]:
        """If it fails, each part alone: one request must not spoil the others."""
        try:
            return list(self._run(way, parts))
        except Exception as error:
            if len(parts) == 1:
                return [error]
            return [self._together(way, [part])[0] for part in parts]


def _deliver(queue: FairQueue, job: Job, first: int, end: int, result: Any) -> None:
    call: _Call = job.payload
    if call.done.done():
        return
    if isinstance(result, Exception):
        queue.cancel(job)
        call.done.set_exception(result)
        return
    call.results[first:end] = list(result)
    call.missing -= end - first
    if not call.missing:
        call.done.set_result(None)
