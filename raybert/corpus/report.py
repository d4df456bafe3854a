"""What a run did, added up and checked against the plan."""

import json
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raybert.corpus.ledger import DATA, Commit
from raybert.corpus.plan import Plan
from raybert.corpus.progress import Progress, duration
from raybert.corpus.store import Store

_SHOWN = 10
_IDS_AT_ONCE = 20_000_000  # 160 MB of hashes
# What a verb makes of a row, what of all rows, and what it cuts (nothing: "").
WORDS = {
    "embed": ("embedded", "vectors", "truncated"),
    "prepare": ("used", "instances", ""),
    "predict": ("predicted", "results", "truncated"),
}


@dataclass(frozen=True)
class Report:
    """Counts of the whole folder; speed and seconds of this run. `aside` are shards given up, with the reason.

    For `raybert prepare`, `embedded` are the documents used and `vectors` the instances made of them; for `raybert predict`
    both are the rows predicted.
    """

    verb: str
    path: str
    rows: int
    embedded: int
    rejected: int
    vectors: int
    truncated: int
    tokens: int
    shards: int
    reasons: dict[str, int]
    duplicate_ids: int = 0
    duplicate_examples: list[str] = field(default_factory=list)
    aside: dict[str, str] = field(default_factory=dict)
    run: dict[str, float] = field(default_factory=dict)

    def check(self) -> None:
        """Raise RuntimeError unless every row of the plan is embedded, rejected, or in a shard named as given up."""
        if not self.aside and self.embedded + self.rejected != self.rows:
            raise RuntimeError(
                f"{self.path}: {self.rows:,} rows were planned, but {self.embedded:,} {WORDS[self.verb][0]} + {self.rejected:,} "
                f"rejected are {self.embedded + self.rejected:,}; run `raybert verify {self.path}`"
            )

    def to_json(self) -> str:
        """For report.json."""
        return json.dumps(asdict(self), indent=1)

    def __str__(self) -> str:
        done, made, cut = WORDS[self.verb]
        lines = [
            f"rows       {self.rows:>13,} = {self.embedded:,} {done} + {self.rejected:,} rejected"
            + (f" + {self.rows - self.embedded - self.rejected:,} given up" if self.aside else ""),
            *(f"             {count:,} x {reason}" for reason, count in sorted(self.reasons.items())),
            f"{made:10} {self.vectors:>13,}",
            *([f"{cut:10} {self.truncated:>13,}"] if cut else []),
            f"tokens     {self.tokens:>13,}",
        ]
        if self.duplicate_ids:
            examples = ", ".join(self.duplicate_examples)
            lines.append(f"duplicates {self.duplicate_ids:>13,} ids occur more than once: {examples}")
        if self.run.get("tokens"):
            if self.verb == "embed":
                lines.append(f"padding    {self.run['padding_share']:>13.1%}")
            lines.append(f"tokens/s   {self.run['tokens_per_second']:>13,.0f}")
        else:
            lines.append("nothing was left to do")
        lines += [f"time       {duration(self.run['seconds']):>13}", f"where      {self.path}/data/"]
        lines += [f"GIVEN UP   {name}: {why}" for name, why in list(self.aside.items())[:_SHOWN]]
        if len(self.aside) > _SHOWN:
            lines.append(
                f"GIVEN UP   ... and {len(self.aside) - _SHOWN:,} more shards, all in _raybert/report.json"
            )
        return "\n".join(lines)


def finish_report(
    verb: str,
    plan: Plan,
    commits: Mapping[str, Commit],
    aside: Mapping[str, str],
    progress: Progress,
    duplicates: tuple[int, list[str]],
    started: float,
    path: str,
) -> Report:
    """Add up the commits of the folder and the measurements of this run."""
    now = time.monotonic()
    reasons: Counter[str] = Counter()
    for commit in commits.values():
        reasons.update(commit.reasons)
    total = {
        name: sum(getattr(commit, name) for commit in commits.values())
        for name in ("embedded", "rejected", "vectors", "truncated", "tokens")
    }
    run = {
        "seconds": round(now - started, 2),
        "tokens": progress.tokens,
        "encoded_tokens": progress.encoded_tokens,
        "tokens_per_second": round(progress.encoded_tokens / max(now - progress.began, 1e-9), 1),
        "padding_share": 1 - progress.encoded_tokens / progress.padded_tokens
        if progress.padded_tokens
        else 0.0,
        "steady_tokens_per_second": round(progress.steady_tokens_per_second, 1),
        "seconds_to_first_shard": round((progress.first_result or now) - started, 2),
        "busy_seconds": round(progress.busy_seconds, 2),
    }
    return Report(
        verb=verb,
        path=path,
        rows=plan.rows,
        shards=len(commits),
        reasons=dict(sorted(reasons.items())),
        duplicate_ids=duplicates[0],
        duplicate_examples=duplicates[1],
        aside=dict(aside),
        run=run,
        **total,
    )


def duplicate_ids(store: Store, shards: list[str], at_once: int = _IDS_AT_ONCE) -> tuple[int, list[str]]:
    """How many ids occur in more than one row of the output of `shards`, and up to five of them.

    Memory is bounded: ids are compared by 64-bit hash, a slice of the hash space a pass. A document in several windows
    counts once.
    """
    names = [f"{name}.parquet" for name in shards]
    rows = sum(_in_threads(lambda name: _id_table(store, name, []).num_rows, names))
    passes = max(1, -(-rows // at_once))
    repeated: list[np.ndarray] = []
    for part in range(passes):
        hashes = np.concatenate(
            [np.zeros(0, np.uint64), *_in_threads(lambda n, p=part: _hashes(store, n, passes, p), names)]
        )
        hashes.sort()
        repeated.append(np.unique(hashes[1:][hashes[1:] == hashes[:-1]]))
    found = np.concatenate(repeated)
    return len(found), _examples(store, names, found[:5]) if len(found) else []


def _in_threads(function: Any, items: list[Any]) -> list[Any]:
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(function, items))


def _id_table(store: Store, name: str, columns: list[str]) -> pa.Table:
    with store.fs.open_input_file(store.path(f"{DATA}/{name}")) as file:
        parquet = pq.ParquetFile(file)
        if "chunk" in parquet.schema_arrow.names and columns:
            table = parquet.read([*columns, "chunk"])
            return table.filter(pa.compute.equal(table["chunk"], 0)).select(columns)
        return parquet.read(columns)


def _hashes(store: Store, name: str, passes: int, part: int) -> np.ndarray:
    import pandas as pd

    ids = _id_table(store, name, ["id"])["id"].to_numpy()
    hashes = pd.util.hash_array(ids, categorize=False)
    return hashes[hashes % np.uint64(passes) == part] if passes > 1 else hashes


def _examples(store: Store, names: list[str], wanted: np.ndarray) -> list[str]:
    import pandas as pd

    found: dict[int, str] = {}
    for name in names:
        ids = _id_table(store, name, ["id"])["id"].to_numpy()
        hashes = pd.util.hash_array(ids, categorize=False)
        for at in np.flatnonzero(np.isin(hashes, wanted)):
            found.setdefault(int(hashes[at]), str(ids[at]))
        if len(found) == len(wanted):
            break
    return list(found.values())
