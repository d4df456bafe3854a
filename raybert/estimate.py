"""What an embed run would cost, from a sample: tokens, share truncated, time. Nothing is written."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from raybert.config import EmbedConfig
from raybert.corpus.ledger import Source
from raybert.corpus.plan import Plan
from raybert.corpus.pool import Pool
from raybert.corpus.progress import duration
from raybert.corpus.readers import Shard, read
from raybert.corpus.texts import text_columns, texts_and_reasons, wanted_columns
from raybert.embed_shard import PrepareShard
from raybert.encoder.tokenizing import Tokenized
from raybert.resolve import time_encoding

_SAMPLE_SHARDS, _SAMPLE_TEXTS, _TIMED_TEXTS = 5, 1000, 256


@dataclass(frozen=True)
class Estimate:
    """Prints as a table. `aside` is there so that it can stand for a report."""

    rows: int
    pending_rows: int
    shards: int
    pending_shards: int
    files: int
    tokens: int
    truncated_share: float
    rejected_share: float
    tokens_per_second: float
    workers: int
    sampled: int
    aside: Mapping[str, str]

    @property
    def seconds(self) -> float:
        """Expected time of the pending shards on all workers, start-up not counted."""
        share = self.pending_rows / self.rows if self.rows else 0
        return self.tokens * share / max(self.tokens_per_second * self.workers, 1e-9)

    def __str__(self) -> str:
        return "\n".join(
            [
                f"files      {self.files:>13,}",
                f"rows       {self.rows:>13,} ({self.pending_rows:,} to do)",
                f"shards     {self.shards:>13,} ({self.pending_shards:,} to do)",
                f"tokens     {self.tokens:>13,} (estimated from {self.sampled:,} rows)",
                f"truncated  {self.truncated_share:>13.1%}",
                f"rejected   {self.rejected_share:>13.1%}",
                f"tokens/s   {self.tokens_per_second * self.workers:>13,.0f} ({self.workers} encoder(s), one measured)",
                f"time       {duration(self.seconds):>13}",
                "dry run: nothing was written",
            ]
        )


def estimate(
    config: EmbedConfig,
    plan: Plan,
    pending: Mapping[str, tuple[Source, Shard]],
    prepare: PrepareShard,
    resolved: Mapping[str, Any],
    pool: Pool,
) -> Estimate:
    """Tokenize a sample here, time a part of it on a worker, and scale up."""
    texts, looked_at = _sample(config, plan, _SAMPLE_TEXTS)
    tokenized = prepare.tokenizer(texts)
    lengths = tokenized.lengths
    count = min(len(texts), _TIMED_TEXTS)
    first = Tokenized(
        tokenized.values[: tokenized.offsets[count]],
        tokenized.offsets[: count + 1],
        tokenized.truncated[:count],
    )
    speed = time_encoding(config, resolved, pool, first) if count else 0.0
    good = len(texts) / looked_at if looked_at else 0.0
    return Estimate(
        rows=plan.rows,
        pending_rows=sum(shard.end - shard.start for _, shard in pending.values()),
        shards=len(plan.shards()),
        pending_shards=len(pending),
        files=len(plan.sources),
        tokens=int(plan.rows * good * float(lengths.mean())) if len(texts) else 0,
        truncated_share=float(np.mean(tokenized.truncated))
        if len(texts) and config.chunk.size is None
        else 0.0,
        rejected_share=1 - good if looked_at else 0.0,
        tokens_per_second=speed,
        workers=pool.high,
        sampled=looked_at,
        aside={},
    )


def sample_texts(config: EmbedConfig, plan: Plan, count: int = _TIMED_TEXTS) -> list[str]:
    """The same texts for the same corpus, from shards spread over it: what int8 is calibrated with.

    Looks through whole shards, and more of them, until it has enough.
    """
    return _sample(config, plan, count, at_most=64, whole=True)[0]


def _sample(
    config: EmbedConfig, plan: Plan, count: int, at_most: int = _SAMPLE_SHARDS, whole: bool = False
) -> tuple[list[str], int]:
    """(texts, rows looked at): the first rows of up to `at_most` shards, or with `whole` all of them until `count` texts."""
    shards = list(plan.shards().values())
    chosen = (
        [shards[i] for i in np.unique(np.linspace(0, len(shards) - 1, at_most).astype(int))] if shards else []
    )
    texts: list[str] = []
    looked_at = 0
    for source, shard in chosen:
        names = wanted_columns(config.data, list(plan.kept))
        tables = read(
            plan.files[source.uri],
            [shard],
            names,
            types=plan.types,
            text_columns=text_columns(config.data),
            max_chars=config.data.max_chars,
        )
        table = next(iter(tables))
        if not whole:
            table = table.slice(0, max(1, count // len(chosen)))
        found, _ = texts_and_reasons(table, config.data)
        looked_at += len(found)
        texts += [text for text in found if text is not None]
        if whole and len(texts) >= count:
            return texts[:count], looked_at
    return texts, looked_at
