"""A load client for HTTP/1.1 that takes little of the cores it shares with the server: one process, one event loop,
connections kept open, answers not looked into.

    python tests/benchmarks/load.py port=8000 path=/v1/embeddings bodies=FILE.json seconds=5
                                    clients=64 | rate=100  [warmup=0] [save=0] [host=127.0.0.1]

`bodies` is a JSON list of request bodies, sent in turn. With `clients` so many ask again as soon as they are answered
(closed loop); with `rate` requests leave at random times, so many a second, whether the earlier ones are answered or not
(open loop, Poisson), on as many connections as it takes. Prints one JSON line: seconds from the first request to the last
answer, answers by status ("error": no answer), for each status the latencies in milliseconds, CPU seconds of this
process, the least Retry-After by status (null: without), and the first `save` answers by number of the body.
"""

import asyncio
import json
import random
import sys
import time
from collections import Counter, defaultdict, deque
from typing import Any

ANSWER_SECONDS = 120.0  # without one by then it counts as an error


class Connection(asyncio.Protocol):
    """One request at a time; `ask` returns status, headers and body."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._end = -1
        self._answer: asyncio.Future[tuple[int, bytes, bytes]] | None = None
        self.open = True

    def connection_made(self, transport: Any) -> None:
        """See asyncio.Protocol."""
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        self._data += data
        if self._end < 0:
            head = self._data.find(b"\r\n\r\n")
            if head < 0:
                return
            self._head = bytes(self._data[:head]).lower()
            self._end = head + 4 + int(header(self._head, b"content-length") or 0)
        if len(self._data) < self._end:
            return
        body = bytes(self._data[len(self._head) + 4 : self._end])
        answer, self._answer, self._end = self._answer, None, -1
        self._data.clear()
        if header(self._head, b"connection") == b"close":
            self.close()
        if answer is not None and not answer.done():
            answer.set_result((int(self._head[9:12]), self._head, body))

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio.Protocol."""
        self.open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error or ConnectionError("the server closed the connection"))

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, bytes, bytes]]:
        """Status, head and body of the answer to a request."""
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        return self._answer

    def close(self) -> None:
        """End it."""
        self.open = False
        self._transport.close()


class Load:
    """Requests to one server, and what came back."""

    def __init__(self, host: str, port: int, path: str, bodies: list[Any], save: int) -> None:
        self._host, self._port, self._save = host, port, save
        self._requests = [_request(host, path, json.dumps(body).encode()) for body in bodies]
        self._free: deque[Connection] = deque()
        self._sent = 0
        self.clear()

    def clear(self) -> None:
        """Forget what came back."""
        self.counts: Counter[str] = Counter()
        self.latencies: dict[str, list[float]] = defaultdict(list)
        self.retry_after: dict[str, list[int | None]] = defaultdict(list)
        self.errors: Counter[str] = Counter()
        self.saved: dict[int, str] = {}

    async def ask(self) -> None:
        """One request, from its start to its answer, a new connection included where none is free."""
        number = self._sent % len(self._requests)
        self._sent += 1
        started = time.perf_counter()
        connection = None
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                connection = await self._connection()
                status, head, body = await connection.ask(self._requests[number])
        except (OSError, TimeoutError) as error:
            self.counts["error"] += 1
            self.errors[repr(error)[:200]] += 1
            if connection is not None:
                connection.close()
            return
        self.latencies[str(status)].append((time.perf_counter() - started) * 1000)
        self.counts[str(status)] += 1
        if status != 200:
            after = header(head, b"retry-after")
            self.retry_after[str(status)].append(None if after is None else int(after))
        elif number < self._save:
            self.saved[number] = body.decode()
        if connection.open:
            self._free.append(connection)

    async def closed(self, clients: int, seconds: float) -> float:
        """Each client asks again when it is answered; the seconds it took."""
        started = time.perf_counter()

        async def client() -> None:
            while time.perf_counter() - started < seconds:
                await self.ask()

        await asyncio.gather(*(client() for _ in range(clients)))
        return time.perf_counter() - started

    async def open(self, rate: float, seconds: float) -> float:
        """Requests at random times, whatever becomes of them; the seconds until the last is answered."""
        dice, tasks = random.Random(0), set()
        started = time.perf_counter()
        due = 0.0
        while (due := due + dice.expovariate(rate)) < seconds:
            await asyncio.sleep(max(0.0, due - (time.perf_counter() - started)))
            task = asyncio.create_task(self.ask())
            tasks.add(task)
            task.add_done_callback(tasks.discard)
        if tasks:
            await asyncio.gather(*tasks)
        return time.perf_counter() - started

    async def _connection(self) -> Connection:
        while self._free:
            connection = self._free.pop()
            if connection.open:
                return connection
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(Connection, self._host, self._port))[1]


def header(head: bytes, name: bytes) -> bytes | None:
    """The value of a header in a head of lower-case letters."""
    at = head.find(b"\r\n" + name + b":")
    return None if at < 0 else head[at + len(name) + 3 :].split(b"\r\n", 1)[0].strip()


def _request(host: str, path: str, body: bytes) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: {host}\r\ncontent-type: application/json\r\ncontent-length: {len(body)}"
    return head.encode() + b"\r\n\r\n" + body


async def run(settings: dict[str, str]) -> dict[str, Any]:
    """What the command prints."""
    with open(settings["bodies"]) as file:
        bodies = json.load(file)
    load = Load(
        settings.get("host", "127.0.0.1"),
        int(settings["port"]),
        settings["path"],
        bodies,
        int(settings.get("save", 0)),
    )
    seconds, warmup = float(settings["seconds"]), float(settings.get("warmup", 0))

    async def go(seconds: float) -> float:
        if "rate" in settings:
            return await load.open(float(settings["rate"]), seconds)
        return await load.closed(int(settings["clients"]), seconds)

    if warmup:
        await go(warmup)
        load.clear()
    cpu = time.process_time()
    took = await go(seconds)
    return {
        "seconds": took,
        "counts": load.counts,
        "latencies": {status: [round(each, 3) for each in found] for status, found in load.latencies.items()},
        "cpu_seconds": time.process_time() - cpu,
        "retry_after": {
            status: None if None in found else min(found) for status, found in load.retry_after.items()
        },
        "errors": load.errors,
        "saved": load.saved,
    }


def main(argv: list[str]) -> int:
    """See above."""
    settings = dict(word.partition("=")[::2] for word in argv)
    try:
        import uvloop as loops  # comes with Ray Serve
    except ModuleNotFoundError:
        loops = asyncio
    print(json.dumps(loops.run(run(settings))))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
