"""One model under the limits of the service."""

import asyncio
import threading

import numpy as np
import pytest

from raybert.serve.calls import Call
from raybert.serve.encoding import EncoderEngine
from raybert.serve.metrics import ModelMetrics
from raybert.serve.model import Limits, ServedModel
from tests.serve.conftest import run


def ask(model, texts, **more):
    return model.respond(Call("/v1/embeddings", {"input": texts, "model": "tiny", **more}))


@pytest.fixture
def stuck(engine):
    """A model that computes nothing until it is let go."""

    class Stuck(EncoderEngine):
        go = threading.Event()
        go.set()

        def run(self, way, parts):
            self.go.wait(20)
            return super().run(way, parts)

    made = Stuck(engine.encoder, 1)
    yield made
    made.go.set()


def test_no_answer_in_time_is_a_504_and_the_rest_is_not_computed(stuck):
    async def go():
        model = ServedModel("tiny", stuck, Limits(deadline=0.3), ModelMetrics("tiny"))
        stuck.go.clear()
        first, second = await asyncio.gather(ask(model, "a"), ask(model, ["b"] * 500))
        assert (first.status, second.status) == (504, 504)
        assert b"no answer within 0.3 s" in first.body
        assert model.waiting_seconds == 0
        stuck.go.set()
        assert (await ask(model, "a")).status == 200

    run(go())


def test_a_stuck_model_is_not_healthy(stuck):
    async def go():
        model = ServedModel("tiny", stuck, Limits(), ModelMetrics("tiny"))
        await model.check(5)
        stuck.go.clear()
        waiting = asyncio.create_task(ask(model, "a"))
        await asyncio.sleep(0.05)
        with pytest.raises(TimeoutError):
            await model.check(0.2)
        stuck.go.set()
        assert (await waiting).status == 200
        await model.check(5)

    run(go())


def test_too_much_waiting_is_a_429_with_retry_after(stuck):
    async def go():
        model = ServedModel("tiny", stuck, Limits(queue_tokens=60), ModelMetrics("tiny"))
        stuck.go.clear()
        tasks = [asyncio.create_task(ask(model, "a"))]
        await asyncio.sleep(0.05)
        tasks.append(asyncio.create_task(ask(model, ["the quick brown fox"] * 5)))
        await asyncio.sleep(0.05)
        refused = await ask(model, ["the quick brown fox"] * 20)
        assert refused.status == 429
        assert int(refused.headers["retry-after"]) >= 1
        assert b"rate_limit_error" in refused.body
        stuck.go.set()
        assert [each.status for each in await asyncio.gather(*tasks)] == [200, 200]

    run(go())


def test_limits_of_a_request(served):
    async def go():
        model = served(max_inputs=3)
        many = await ask(model, ["a"] * 4)
        assert (many.status, b"more than 3" in many.body) == (413, True)
        long = await ask(model, ["a", "b " * 500])
        assert long.status == 400
        assert b"input[1] has more than 48 tokens" in long.body
        assert (await ask(model, ["a", "b " * 500], truncate=True)).status == 200
        lenient = served(truncate=True)
        assert (await ask(lenient, "b " * 500)).status == 200
        assert (await ask(lenient, "b " * 500, truncate=False)).status == 400

    run(go())


def test_an_output_that_is_not_finite_is_an_error_that_names_the_input(engine):
    class Broken(EncoderEngine):
        def run(self, way, parts):
            return [
                [np.full(self.encoder.width, np.nan, np.float32)] * (end - first) for _, first, end in parts
            ]

    async def go():
        model = ServedModel("tiny", Broken(engine.encoder, 1), Limits(), ModelMetrics("tiny"))
        reply = await ask(model, ["a"])
        assert reply.status == 500
        assert b"for input is not finite" in reply.body

    run(go())


def test_a_failing_model_is_a_500_without_its_words(engine, caplog):
    class Failing(EncoderEngine):
        fails = False

        def run(self, way, parts):
            if self.fails:
                raise RuntimeError("inner secret")
            return super().run(way, parts)

    async def go():
        broken = Failing(engine.encoder, 1)
        model = ServedModel("tiny", broken, Limits(), ModelMetrics("tiny"))
        broken.fails = True
        reply = await ask(model, ["a"])
        assert reply.status == 500
        assert b"secret" not in reply.body
        assert "inner secret" in caplog.text

    run(go())


def test_a_step_is_short_enough_for_the_hardware(engine):
    class Slow(EncoderEngine):
        def warm_up(self):
            return 200.0

    async def go():
        model = ServedModel("tiny", Slow(engine.encoder, 1), Limits(), ModelMetrics("tiny"))
        taken = []
        model.metrics.step = lambda lengths, computed, seconds: taken.append(int(lengths.sum()))
        assert (await ask(model, ["the quick brown fox"] * 50)).status == 200
        assert len(taken) > 1
        assert max(taken) <= 100  # half a second of 200 tokens a second

    run(go())
