"""The order in which rows go through the model."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from raybert.serve.fair_queue import FairQueue, Job


def job(*lengths: int, bulk: bool = False) -> Job:
    return Job(np.array(lengths, np.int64), bulk=bulk)


def drain(queue: FairQueue, budget: int) -> list[list[tuple[Job, int, int]]]:
    steps = []
    while step := queue.take(budget):
        steps.append(step)
    return steps


def test_a_short_request_passes_the_rows_of_a_long_one():
    queue = FairQueue()
    long, short = job(*[10] * 100), job(10)
    queue.push(long)
    assert queue.take(20) == [(long, 0, 2)]
    queue.push(short)
    assert (short, 0, 1) in queue.take(20)
    assert queue.take(30) == [(long, 3, 6)]


def test_two_long_requests_share_alike():
    queue = FairQueue()
    one, two = job(*[10] * 50), job(*[5] * 100)
    queue.push(one)
    queue.push(two)
    given = {one: 0, two: 0}
    for _ in range(10):
        for each, first, end in queue.take(40):
            given[each] += int(each.lengths[first:end].sum())
    assert abs(given[one] - given[two]) <= 40


def test_all_bulk_requests_together_get_no_more_than_one_other():
    queue = FairQueue()
    bulk = [job(*[10] * 20, bulk=True) for _ in range(50)]
    for each in bulk:
        queue.push(each)
    queue.take(100)
    mine = job(*[10] * 10)
    queue.push(mine)
    shares = [sum(end - first for each, first, end in step if each is mine) for step in drain(queue, 40)]
    assert sum(shares[:6]) == 10  # half of 40 tokens a step


def test_bulk_gets_all_that_nobody_else_wants():
    queue = FairQueue()
    one, two = job(5, 5, bulk=True), job(5, bulk=True)
    queue.push(one)
    queue.push(two)
    assert queue.take(100) == [(one, 0, 2), (two, 0, 1)]


def test_what_is_first_goes_before_all():
    queue = FairQueue()
    queue.push(job(5, 5))
    urgent = job(3)
    queue.push(urgent, first=True)
    assert queue.take(3) == [(urgent, 0, 1)]


def test_a_row_longer_than_the_budget_goes_alone():
    queue = FairQueue()
    long = job(500)
    queue.push(long)
    queue.push(job(5))
    assert queue.take(100) == [(long, 0, 1)]


def test_a_cancelled_job_is_forgotten():
    queue = FairQueue()
    gone, stays = job(10, 10, 10), job(7)
    queue.push(gone)
    queue.push(stays)
    queue.take(10)
    queue.cancel(gone)
    assert queue.tokens(bulk=False) == 7
    assert drain(queue, 100) == [[(stays, 0, 1)]]
    assert queue.tokens(bulk=False) == 0
    assert len(queue) == 0


def test_bulk_and_interactive_tokens_are_counted_apart():
    queue = FairQueue()
    queue.push(job(3, 4))
    queue.push(job(5, bulk=True))
    assert (queue.tokens(bulk=False), queue.tokens(bulk=True)) == (7, 5)


@given(
    st.lists(
        st.tuples(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.booleans(), st.booleans()),
        max_size=12,
    ),
    st.integers(1, 100),
)
def test_every_row_goes_once_in_order_within_the_budget(requests, budget):
    queue = FairQueue()
    jobs, seen, gone = [], {}, set()
    for lengths, bulk, cancel in requests:
        made = job(*lengths, bulk=bulk)
        jobs.append(made)
        queue.push(made)
        if cancel:
            queue.cancel(made)
            gone.add(made)
    for step in drain(queue, budget):
        total = sum(int(each.lengths[first:end].sum()) for each, first, end in step)
        assert total <= budget or sum(end - first for _, first, end in step) == 1
        assert len({each for each, _, _ in step}) == len(step)
        for each, first, end in step:
            assert first == seen.get(each, 0)
            seen[each] = end
    assert seen == {each: len(each.lengths) for each in jobs if each not in gone}
    assert queue.tokens(bulk=False) == queue.tokens(bulk=True) == 0
