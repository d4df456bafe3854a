"""What comes back for a shard: from the worker's function, and from the run."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa


@dataclass(frozen=True)
class Outcome:
    """What a worker made of a shard. `counts` are the fields of `ledger.Commit` that only the worker knows."""

    data: pa.Table
    rejects: pa.Table | None
    counts: dict[str, Any]
    encoded_tokens: int = 0
    padded_tokens: int = 0


@dataclass(frozen=True)
class Finished:
    """One shard that came back: `status` is done, aside (given up, `why`), replaced or fatal."""

    name: str
    status: str
    why: str = ""
    counts: Mapping[str, Any] = field(default_factory=dict)
    encoded_tokens: int = 0
    padded_tokens: int = 0
    seconds: float = 0.0
    worker: str = ""


class Refused(RuntimeError):
    """This worker cannot do the job as planned (other weights, no such dtype): the whole run must stop."""
