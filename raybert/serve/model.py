"""One model of the service: what it can do with the texts of a request, under the limits of the service."""

import asyncio
import logging
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from raybert import __version__
from raybert.serve import search
from raybert.serve.batcher import Batcher, Payload, Run
from raybert.serve.calls import Call, Route, error_reply, read_body
from raybert.serve.errors import ApiError, invalid
from raybert.serve.http import Reply
from raybert.serve.search import SearchIndex

_CHARS_PER_TOKEN = 4  # before a text is tokenized it counts as so many characters a token
_SPECIALS = 2
_PATIENCE = 0.5  # share of the deadline that may be spent waiting
# of a step at most: so long does a short request wait for the model, and whoever asks for its health
_STEP_SECONDS = 0.5

MAX_REQUESTS = 100_000
"""That a replica takes at once: what waits is bounded in tokens."""

logger = logging.getLogger("ray.serve")


class Unusable(ValueError):
    """The input at `place` cannot be used, for a `reason` that follows its name."""

    def __init__(self, place: int, reason: str) -> None:
        super().__init__(place, reason)
        self.place, self.reason = place, reason


class Engine(Protocol):
    """A model, apart from HTTP and from waiting. `run` and `tokenize` are called in threads, one of each at a time."""

    run: Run
    max_length: int
    windows: bool
    """Whether a longer input is computed in several rows; else it is one row, and cut or refused."""
    step_tokens: int
    routes: Mapping[str, Route]
    """What it answers, by path."""

    def info(self) -> dict[str, Any]:
        """What TEI's /info tells."""

    def tokenize(self, inputs: Sequence[Any], way: Any) -> Payload:
        """Rows to run, with `truncated` bool [inputs]. Raises `Unusable`, or ApiError."""

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
    """What a model said of the rows of a request, and what it cost: seconds in each phase, tokens of every row."""

    rows: list[Any]
    payload: Any
    tokenize: float
    queue: float
    compute: float

    @property
    def tokens(self) -> int:
        """Of all inputs."""
        return int(self.payload.lengths.sum())

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
        index: a folder to search in; the model closes it.
    """

    def __init__(
        self, name: str, engine: Engine, limits: Limits, metrics: Any, index: SearchIndex | None = None
    ) -> None:
        self.name, self.engine, self.limits, self.metrics, self.index = name, engine, limits, metrics, index
        self._routes = {**engine.routes, **(search.ROUTES if index else {})}
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
        inputs, way = engine.probe()
        self._probe = engine.tokenize(inputs, way), way

    @property
    def waiting_seconds(self) -> float:
        """That the model needs for what waits."""
        return self._batcher.waiting / self._batcher.rate

    @property
    def computing_seconds(self) -> float:
        """That the model has computed since the start."""
        return self._batcher.seconds

    async def info(self) -> dict[str, Any]:
        """What TEI's /info tells, its keys that mean nothing here included: clients look for them."""
        router = {
            "max_concurrent_requests": MAX_REQUESTS,
            "max_batch_requests": None,
            "max_client_batch_size": self.limits.max_inputs,
            "auto_truncate": self.limits.truncate,
            "tokenization_workers": 1,
            "sha": None,
            "docker_label": None,
        }
        told = {"served_name": self.name, "version": __version__, **router, **self.engine.info()}
        if self.index:
            told["search"] = {"rows": self.index.rows, "columns": self.index.columns}
        return told

    async def respond(self, call: Call) -> Reply:
        """Raises nothing: what goes wrong is an answer, too."""
        route = self._routes.get(call.path)
        if route is None:
            known = ", ".join(path for path in self._routes if path != "/")
            what = f"model {self.name} does not answer {call.path}, but {known}"
            error = ApiError(404, what, code="not_found")
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
        name: Callable[[int], str] | None = None,
    ) -> Found:
        """What the model says of the inputs, which are texts or what the engine takes for one.

        Raises ApiError: too many inputs, one that cannot be used or is too long (unless `truncate`), too much waiting, or
        an output that is not finite. Inputs are named by `name`, else `field`[number].
        """
        name = name or (lambda place: f"{field}[{place}]" if len(inputs) > 1 else field)
        self.check_count(inputs, field)
        start = time.perf_counter()
        try:
            with self._batcher.admitted(self._estimate(inputs), bulk=call.bulk):
                payload: Any = await self.in_tokenizer(self.engine.tokenize, inputs, way)
        except Unusable as wrong:
            raise invalid(f"{name(wrong.place)} {wrong.reason}", field) from None
        tokenized = time.perf_counter()
        cut = self.limits.truncate if truncate is None else truncate
        if not cut and payload.truncated.any():
            self._refuse_long(name(int(np.flatnonzero(payload.truncated)[0])), field)
        rows, waited = await self._batcher(payload, way, bulk=call.bulk)
        seconds = time.perf_counter() - tokenized - waited
        for place, row in enumerate(rows):
            if isinstance(row, np.ndarray) and not np.isfinite(row.sum()):
                which = name(place) if len(rows) == len(inputs) else field
                raise ApiError(500, f"the model's output for {which} is not finite")
        found = Found(rows, payload, tokenized - start, waited, seconds)
        self.metrics.request(found, call.bulk)
        return found

    def check_count(self, inputs: Sequence[Any], field: str) -> None:
        """Raise ApiError 413 for more inputs than a request may have."""
        if len(inputs) > self.limits.max_inputs:
            raise ApiError(
                413,
                f"{field} has {len(inputs)} inputs, more than {self.limits.max_inputs}",
                field,
                "too_many_inputs",
            )

    async def in_tokenizer(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """What a function returns, called in the thread that tokenizes."""
        return await asyncio.get_running_loop().run_in_executor(self._texts, function, *arguments)

    async def check(self, deadline: float) -> None:
        """Run the model on its shortest input, before all that waits. Raises TimeoutError, or what the model raises."""
        payload, way = self._probe
        async with asyncio.timeout(deadline):
            await self._batcher(payload, way, first=True)

    def close(self) -> None:
        """End the threads."""
        self._batcher.close()
        self._texts.shutdown(wait=False, cancel_futures=True)
        if self.index:
            self.index.close()

    def _told(self, lengths: np.ndarray, seconds: float) -> None:
        self.metrics.step(lengths, self.engine.computed_tokens(lengths), seconds)
        self.metrics.queue(self._batcher.waiting)

    def _estimate(self, inputs: Sequence[Any]) -> int:
        tokens = [_tokens(each) for each in inputs]
        return sum(tokens) if self.engine.windows else sum(min(self.engine.max_length, n) for n in tokens)

    def _refuse_long(self, which: str, field: str) -> None:
        raise invalid(
            f"{which} has more than {self.engine.max_length} tokens; shorten it, or set truncate to true",
            field,
            "context_length_exceeded",
        )


def _tokens(value: Any) -> int:
    """About how many a text, a pair of texts or a list of token ids has."""
    if isinstance(value, str):
        return len(value) // _CHARS_PER_TOKEN + _SPECIALS
    return sum(map(_tokens, value)) if value and isinstance(value[0], str) else len(value)
