"""The answer to a dry run that measures nothing."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Outlook:
    """What a run would do. `aside` is there so that it can stand for a report."""

    files: int
    rows: int
    shards: int
    pending_shards: int
    aside: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return "\n".join(
            [
                f"files      {self.files:>13,}",
                f"rows       {self.rows:>13,}",
                f"shards     {self.shards:>13,} ({self.pending_shards:,} to do)",
                "dry run: nothing was written",
            ]
        )
