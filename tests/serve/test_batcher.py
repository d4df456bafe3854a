"""Rows of many requests through one model."""

import asyncio
import threading
import time
from dataclasses import dataclass

import numpy as np
import pytest

from raybert.serve.batcher import Batcher
from raybert.serve.errors import ApiError
from tests.serve.conftest import run


@dataclass
class Rows:
    """A payload whose results are its values doubled."""

    values: list[int]
    tokens: int = 10

    @property
    def lengths(self):
        return np.full(len(self.values), self.tokens, np.int64)


class Model:
    """Doubles values; `hold` stops it, `seen` tells what came together. A value of -1 is poison."""

    def __init__(self):
        self.seen, self.hold = [], threading.Event()
        self.hold.set()

    def __call__(self, way, parts):
        self.hold.wait(10)
        rows = [payload.values[first:end] for payload, first, end in parts]
        self.seen.append((way, rows))
        if any(-1 in each for each in rows):
            raise ValueError("poison")
        return [[2 * value for value in each] for each in rows]


def batcher(model, **options):
    settings = {"step_tokens": 100, "rate": 1000.0, "queue_tokens": None, "patience": 1.0}
    return Batcher(model, **{**settings, **options})


def test_requests_that_wait_go_together_and_get_their_own_rows():
    async def go():
        model = Model()
        many = batcher(model)
        model.hold.clear()
        lone = asyncio.create_task(many(Rows([1]), "a"))
        await asyncio.sleep(0.05)
        rest = [asyncio.create_task(many(Rows([10 * i, 10 * i + 1]), "a")) for i in range(3)]
        await asyncio.sleep(0.05)
        model.hold.set()
        assert (await lone)[0] == [2]
        assert [(await each)[0] for each in rest] == [[0, 2], [20, 22], [40, 42]]
        assert [len(rows) for _, rows in model.seen] == [1, 3]

    run(go())


def test_a_long_request_goes_in_steps():
    async def go():
        model = Model()
        assert (await batcher(model)(Rows(list(range(25))), "a"))[0] == [2 * i for i in range(25)]
        assert [len(rows[0]) for _, rows in model.seen] == [10, 10, 5]

    run(go())


def test_ways_are_not_computed_together():
    async def go():
        model = Model()
        many = batcher(model)
        await asyncio.gather(many(Rows([1]), "a"), many(Rows([2]), "b"), many(Rows([3]), "a"))
        assert {way: sum(len(rows) for seen, rows in model.seen if seen == way) for way in "ab"} == {
            "a": 2,
            "b": 1,
        }

    run(go())


def test_one_bad_request_does_not_spoil_the_others():
    async def go():
        model = Model()
        many = batcher(model)
        model.hold.clear()
        tasks = [asyncio.create_task(many(Rows([value]), "a")) for value in (7, 1, -1, 2)]
        await asyncio.sleep(0.05)
        model.hold.set()
        found = await asyncio.gather(*tasks, return_exceptions=True)
        assert [each[0] for each in (found[0], found[1], found[3])] == [[14], [2], [4]]
        assert isinstance(found[2], ValueError)

    run(go())


def test_cancelled_requests_are_not_computed():
    async def go():
        model = Model()
        many = batcher(model)
        model.hold.clear()
        first = asyncio.create_task(many(Rows([1]), "a"))
        await asyncio.sleep(0.05)
        gone = asyncio.create_task(many(Rows([5] * 30), "a"))
        await asyncio.sleep(0.05)
        assert many.waiting == 300
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert many.waiting == 0
        model.hold.set()
        await first
        assert all([5] not in rows for _, rows in model.seen)

    run(go())


def test_too_much_waiting_is_refused_with_the_time_it_takes():
    async def go():
        model = Model()
        many = batcher(model, queue_tokens=150)
        model.hold.clear()
        tasks = [asyncio.create_task(many(Rows([1]), "a"))]
        await asyncio.sleep(0.05)
        many.admit(1000)  # nothing waits: whatever its size, it can be begun
        tasks.append(asyncio.create_task(many(Rows([1] * 12), "a")))
        await asyncio.sleep(0.05)
        many.admit(30)
        many.admit(150, bulk=True)  # counted apart
        with pytest.raises(ApiError) as refused:
            many.admit(1030)
        assert refused.value.status == 429
        assert refused.value.retry_after == pytest.approx(1.0)
        model.hold.set()
        await asyncio.gather(*tasks)
        many.admit(1030)

    run(go())


def test_what_is_being_tokenized_counts_as_waiting():
    async def go():
        many = batcher(Model(), queue_tokens=150)
        with many.admitted(100), many.admitted(50):
            many.admit(150, bulk=True)  # counted apart
            with pytest.raises(ApiError), many.admitted(1):
                raise AssertionError("not admitted")
        many.admit(150)
        with pytest.raises(KeyError), many.admitted(100):
            raise KeyError
        assert many.waiting == 0
        with many.admitted(150):
            pass

    run(go())


def test_the_rate_is_learnt_from_steps_that_leave_rows_waiting():
    async def go():
        def slow(way, parts):
            time.sleep(0.01)
            return [[0] * (end - first) for _, first, end in parts]

        many = batcher(slow, rate=1e6)
        await many(Rows([1]), "a")
        assert many.rate == 1e6
        await many(Rows([1] * 400), "a")
        assert 1e3 < many.rate < 1e5  # 100 tokens in some 10 ms

    run(go())


def test_what_is_first_does_not_wait():
    async def go():
        model = Model()
        many = batcher(model)
        model.hold.clear()
        tasks = [asyncio.create_task(many(Rows([1] * 50), "a"))]
        await asyncio.sleep(0.05)
        tasks.append(asyncio.create_task(many(Rows([9]), "probe", first=True)))
        await asyncio.sleep(0.05)
        model.hold.set()
        await asyncio.gather(*tasks)
        assert [way for way, _ in model.seen].index("probe") == 1

    run(go())
