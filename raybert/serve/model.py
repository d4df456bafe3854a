"""One model of the service: what it can do with the texts of a request, under the limits of the service."""

import asyncio
import logging
import time
from collections.abc import Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from raybert import __version__
from raybert.serve.batcher import Batcher, Payload, Run
from raybert.serve.calls import Call, Route, error_reply, read_body
from raybert.serve.errors import ApiError, invalid
from raybert.serve.http import Reply

_CHARS_PER_TOKEN = 4  # before a text is tokenized it counts as so many characters a token
_SPECIALS = 2
_PATIENCE = 0.5  # share of the deadline that may be spent waiting
_STEP_SECONDS = (
    0.5  # of a step at most: so long does a short request wait for the model, and whoever asks for its health
)

logger = logging.getLogger("ray.serve")


class Engine(Protocol):
    """A model, apart from HTTP and from waiting. `run` and `tokenize` are called in threads, one of each at a time."""

    run: Run
    max_length: int
    step_tokens: int
    routes: Mapping[str, Route]
    """What it answers, by path."""

    def info(self) -> dict[str, Any]:
        """What TEI's /info tells."""

    def tokenize(self, inputs: Sequence[Any], way: Any) -> Payload:
        """Rows to run, with `truncated` bool [n]."""

    def computed_tokens(self, lengths: np.ndarray) -> int:
        """Tokens that go through the model for rows of these lengths, padding included."""

    def warm_up(self) -> float:
        """Tokens a second."""

    def probe(self) -> tuple[Sequence[Any], Hashable]:
        """The shortest input, and its way, to see whether the model answers."""


@dataclass(frozen=True)
class Limits:
    """What a request may ask for; see `raybert.config.serving.ServeSettings`."""

    deadline: float = 30.0
    truncate: bool = False
    queue_tokens: int | None = None
    max_inputs: int = 10_000


@dataclass(frozen=True)
class Found:
    """What a model said of the inputs of a request, and what it cost: seconds in each phase, tokens of every input."""

    rows: list[Any]
    lengths: np.ndarray
    tokenize: float
    queue: float
    compute: float

    @property
    def tokens(self) -> int:
        """Of all inputs."""
        return int(self.lengths.sum())

    @property
    def headers(self) -> dict[str, str]:
        """TEI's, times in milliseconds."""
        phases = {"tokenization": self.tokenize, "queue": self.queue, "inference": self.compute}
        total = self.tokenize + self.queue + self.compute
        times = {f"x-{name}-time": f"{seconds * 1000:.0f}" for name, seconds in phases.items()}
        return {"x-compute-tokens": str(self.tokens), "x-compute-time": f"{total * 1000:.0f}", **times}


class ServedModel:
    """`respond` answers calls for one model.

    Args:
        name: what clients call it.
        metrics: a `raybert.serve.metrics.ModelMetrics`.
    """

    def __init__(self, name: str, engine: Engine, limits: Limits, metrics: Any) -> None:
        self.name, self.engine, self.limits, self.metrics = name, engine, limits, metrics
        self._texts = ThreadPoolExecutor(1, thread_name_prefix="tokenizer")
        rate = engine.warm_up()
        self._batcher = Batcher(
            engine.run,
            step_tokens=min(engine.step_tokens, max(1, int(rate * _STEP_SECONDS))),
            rate=rate,
            queue_tokens=limits.queue_tokens,
            patience=limits.deadline * _PATIENCE,
            on_step=self._told,
        )

    @property
    def waiting_seconds(self) -> float:
        """That the model needs for what waits."""
        return self._batcher.waiting / self._batcher.rate

    @property
    def computing_seconds(self) -> float:
        """That the model has computed since the start."""
        return self._batcher.seconds

    async def info(self) -> dict[str, Any]:
        """What TEI's /info tells."""
        return {"served_name": self.name, "version": __version__, **self.engine.info()}

    async def respond(self, call: Call) -> Reply:
        """Raises nothing: what goes wrong is an answer, too."""
        route = self.engine.routes.get(call.path)
        if route is None:
            error = ApiError(404, f"model {self.name} does not answer {call.path}", code="not_found")
            return error_reply(error, "openai" if call.path.startswith("/v1/") else "tei")
        try:
            async with asyncio.timeout(self.limits.deadline):
                return await route.answer(self, read_body(route.request, call.data), call)
        except ApiError as error:
            if error.status == 429:
                self.metrics.rejected("overloaded")
            return error_reply(error, route.dialect)
        except TimeoutError:
            self.metrics.rejected("deadline")
            late = ApiError(504, f"no answer within {self.limits.deadline:g} s", code="deadline_exceeded")
            return error_reply(late, route.dialect)
        except Exception:
            logger.exception("request %s failed", call.request_id)
            self.metrics.rejected("failed")
            return error_reply(ApiError(500, "the model failed; see the log of the server"), route.dialect)

    async def compute(
        self,
        inputs: Sequence[Any],
        way: Any,
        *,
        call: Call,
        truncate: bool | None = None,
        field: str = "input",
    ) -> Found:
        """What the model says of the inputs, which are texts or what the engine takes for one.

        Raises ApiError: too many inputs, one that is too long (unless `truncate`), too much waiting, or an output that is
        not finite; inputs are named `field`[number].
        """
        if len(inputs) > self.limits.max_inputs:
            raise ApiError(
                413,
                f"{field} has {len(inputs)} inputs, more than {self.limits.max_inputs}",
                field,
                "too_many_inputs",
            )
        self._batcher.admit(self._estimate(inputs), bulk=call.bulk)
        loop = asyncio.get_running_loop()
        start = time.perf_counter()
        payload: Any = await loop.run_in_executor(self._texts, self.engine.tokenize, inputs, way)
        tokenized = time.perf_counter()
        cut = self.limits.truncate if truncate is None else truncate
        if not cut and payload.truncated.any():
            self._refuse_long(payload, field, len(inputs))
        rows, waited = await self._batcher(payload, way, bulk=call.bulk)
        seconds = time.perf_counter() - tokenized - waited
        for place, row in enumerate(rows):
            if isinstance(row, np.ndarray) and not np.isfinite(row.sum()):
                raise ApiError(500, f"the model's output for {field}[{place}] is not finite")
        found = Found(rows, payload.lengths, tokenized - start, waited, seconds)
        self.metrics.request(found, call.bulk)
        return found

    async def check(self, deadline: float) -> None:
        """Run the model on its shortest input, before all that waits. Raises TimeoutError, or what the model raises."""
        inputs, way = self.engine.probe()
        payload = self.engine.tokenize(inputs, way)
        async with asyncio.timeout(deadline):
            await self._batcher(payload, way, first=True)

    def close(self) -> None:
        """End the threads."""
        self._batcher.close()
        self._texts.shutdown(wait=False, cancel_futures=True)

    def _told(self, lengths: np.ndarray, seconds: float) -> None:
        self.metrics.step(lengths, self.engine.computed_tokens(lengths), seconds)
        self.metrics.queue(self._batcher.waiting)

    def _estimate(self, inputs: Sequence[Any]) -> int:
        longest = self.engine.max_length
        return sum(min(longest, _chars(each) // _CHARS_PER_TOKEN + _SPECIALS) for each in inputs)

    def _refuse_long(self, payload: Any, field: str, count: int) -> None:
        place = int(np.flatnonzero(payload.truncated)[0])
        which = f"{field}[{place}]" if count > 1 else field
        raise invalid(
            f"{which} has more than {self.engine.max_length} tokens; shorten it, or set truncate to true",
            field,
            "context_length_exceeded",
        )


def _chars(value: Any) -> int:
    return len(value) if isinstance(value, str) else sum(map(len, value))
