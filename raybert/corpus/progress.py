"""One line of progress: rows, tokens a second, time left. Redrawn on a terminal, now and then a line in a log."""

import sys
import time
from collections import Counter
from collections.abc import Iterable
from typing import TextIO

from raybert.corpus.ledger import Commit
from raybert.corpus.outcome import Finished

_LOG_SECONDS = 15.0


class Progress:
    """Counts what this run did. `start` once, `add` each finished shard."""

    def __init__(self, rows: int, out: TextIO | None = None) -> None:
        self.total = rows
        self.rows = self.rejected = self.tokens = 0
        self.encoded_tokens = self.padded_tokens = self.shards = 0
        self.first_result = self.last_result = 0.0
        self.busy_seconds = 0.0
        self._workers: set[str] = set()
        self._warm = (0.0, 0)  # when the last worker brought its first shard, and the tokens by then
        self.began = time.monotonic()
        self._before = 0
        self.reasons: Counter[str] = Counter()
        self._out = out or sys.stderr
        self._shown = 0.0

    def start(self, commits: Iterable[Commit], line: str) -> None:
        """What earlier runs finished, and a line that says what this one does."""
        for commit in commits:
            self._before += commit.rows
            self.rejected += commit.rejected
            self.reasons.update(commit.reasons)
        self.rows = self._before
        note = f", {self._before:,} done before" if self._before else ""
        print(f"raybert: {self.total:,} rows{note}; {line}", file=self._out, flush=True)

    def add(self, shard: Finished) -> None:
        """Count a shard and show the line if it is time."""
        now = time.monotonic()
        self.last_result = now
        self.busy_seconds += shard.seconds
        self.first_result = self.first_result or now
        if shard.status == "done":
            self.shards += 1
            self.rows += shard.counts["rows"]
            self.tokens += shard.counts["tokens"]
            self.rejected += shard.counts["rejected"]
            self.reasons.update(shard.counts["reasons"])
            self.encoded_tokens += shard.encoded_tokens
            self.padded_tokens += shard.padded_tokens
        if shard.worker not in self._workers:
            self._workers.add(shard.worker)
            self._warm = now, self.encoded_tokens
        last = self.rows >= self.total
        tty = self._out.isatty()
        if tty or last or now - self._shown >= _LOG_SECONDS:
            self._shown = now
            end = "\n" if last or not tty else ""
            print(("\r\x1b[K" if tty else "") + self.line(now), end=end, file=self._out, flush=True)

    def line(self, now: float) -> str:
        """`rows done/all, share, tokens/s, time left, rejects`."""
        took = max(now - self.began, 1e-9)
        speed = (self.rows - self._before) / took
        left = (self.total - self.rows) / speed if speed else 0
        share = self.rows / self.total if self.total else 1.0
        rejects = f", {self.rejected:,} rejected" if self.rejected else ""
        return (
            f"raybert: {self.rows:,}/{self.total:,} rows ({share:.0%}), {self.tokens / took:,.0f} tokens/s, "
            f"{duration(left)} left{rejects}"
        )

    @property
    def steady_tokens_per_second(self) -> float:
        """Speed once every worker had brought back a shard: what start-up does not touch."""
        since, tokens = self._warm
        return (
            (self.encoded_tokens - tokens) / (self.last_result - since)
            if self.last_result > since > 0
            else 0.0
        )

    def end(self) -> None:
        """Leave the line on a terminal as it is and go on below it."""
        if self._shown and self._out.isatty() and self.rows < self.total:
            print(file=self._out, flush=True)


def duration(seconds: float) -> str:
    """12 s, 3 min 20 s, 2 h 05 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
