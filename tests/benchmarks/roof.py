"""How fast this machine multiplies matrices, and how much of it a model needs: the roof over every encoder.

    python tests/benchmarks/roof.py THREADS HIDDEN INNER

prints the best GFLOP/s that torch.nn.Linear reaches in the model's own shapes, in float32 and bfloat16, as JSON.
"""

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

ROWS = (512, 1024, 2048, 4096)  # tokens in a batch


def machine() -> dict[str, Any]:
    """The CPU's name, its instructions for bfloat16 and the cores that this process may use."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    about = {
        key.strip(): value.strip() for key, _, value in (line.partition(":") for line in reversed(lines))
    }
    flags = sorted({"amx_bf16", "avx512_bf16"} & set(about.get("flags", "").split()))
    return {"cpu": about.get("model name", "unknown"), "flags": flags, "cores": len(os.sched_getaffinity(0))}


def flops(lengths: np.ndarray, config: dict[str, int]) -> float:
    """Floating-point operations that texts of these lengths (tokens) need at least, padding and poolings left out.

    `config` is a BERT's config.json. A layer has 4 h^2 weights around attention and 2 h x inner behind it, two
    operations a token each; attention itself takes 4 x length x h operations a token.
    """
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    weights = 4 * hidden**2 + 2 * hidden * inner
    tokens = np.asarray(lengths, float)
    return float(config["num_hidden_layers"] * (2 * weights * tokens + 4 * hidden * tokens**2).sum())


def peak(hidden: int, inner: int, dtype: str) -> float:
    """Best GFLOP/s over the model's three shapes and several numbers of tokens."""
    import torch

    best = 0.0
    with torch.inference_mode():
        for ins, outs in ((hidden, hidden), (hidden, inner), (inner, hidden)):
            layer = torch.nn.Linear(ins, outs, dtype=getattr(torch, dtype))
            for rows in ROWS:
                given = torch.randn(rows, ins).to(layer.weight.dtype)
                best = max(best, 2 * rows * ins * outs / _least_seconds(layer, given) / 1e9)
    return best


def _least_seconds(layer, given) -> float:
    """The shortest of many calls, in a tenth of a second: what else runs on the machine only ever adds."""
    layer(given)
    least, end = float("inf"), time.perf_counter() + 0.1
    while (started := time.perf_counter()) < end:
        layer(given)
        least = min(least, time.perf_counter() - started)
    return least


def main(argv: Sequence[str]) -> int:
    import torch

    threads, hidden, inner = map(int, argv)
    torch.set_num_threads(threads)
    print(json.dumps({dtype: peak(hidden, inner, dtype) for dtype in ("float32", "bfloat16")}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
