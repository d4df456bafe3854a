"""How many replicas a model needs: by the share of time that it computes, and by the tokens that wait."""

import math
from typing import Any

_BUSY = 0.8  # share of the time that a replica should compute: the rest takes what comes unevenly
_DRAIN_SECONDS = 5.0  # in which what waits should be worked off


def by_load(context: Any) -> tuple[int, dict[str, Any]]:
    """A policy for Ray Serve (`ray.serve.config.AutoscalingContext`), which adds bounds and delays of its own.

    Replicas tell `busy`, the share of time that they computed, and `waiting`, the seconds that their queue takes.
    """
    metrics = context.aggregated_metrics or {}
    return replicas(
        list((metrics.get("busy") or {}).values()), list((metrics.get("waiting") or {}).values())
    ), dict(context.policy_state or {})


def replicas(busy: list[float], waiting: list[float]) -> int:
    """Replicas that work off in time what `busy` and `waiting` of each present one say, at least 1."""
    needed = sum(busy) + sum(waiting) / _DRAIN_SECONDS
    # a hair below a whole number must not cost a replica
    return max(1, math.ceil(needed / _BUSY - 1e-6))
