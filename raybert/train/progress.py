"""What a run says of itself: one line of figures, and the share of the hardware's peak that it uses."""

import resource
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch

from raybert.train.packed import Micro
from raybert.train.step import Figures

# dense 16-bit products per second, from the makers' data sheets
_PEAKS = {
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "T4": 65e12,
    "V100": 125e12,
}


def peak_flops(device: str | torch.device, precision: str) -> float | None:
    """The peak of one device; None where it is not known."""
    if torch.device(device).type != "cuda" or precision == "float32":
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for key, peak in _PEAKS.items() if key in name.replace("-", " ").split()), None)


def flops(model: Any, micros: Iterable[Micro]) -> float:
    """Operations of forward and backward: 6 a weight and token, 12 layers x hidden x length a token for attention.

    Chowdhery et al. 2022 (PaLM, arXiv 2204.02311), appendix B. Embeddings are looked up, not multiplied; the
    vocabulary's matrix is for masked tokens only.
    """
    if hasattr(model, "flops"):  # more than one encoder
        return model.flops(micros)
    config = model.plain.config
    embeddings = model.plain.get_input_embeddings().weight
    body = sum(getattr(p, "ds_numel", p.numel()) for p in model.plain.parameters() if p.ndim > 1)
    vocabulary = getattr(embeddings, "ds_numel", embeddings.numel())
    total = 0.0
    for micro in micros:
        tokens, squares = len(micro.ids), float((np.asarray(micro.lengths, np.float64) ** 2).sum())
        total += 6 * (body - vocabulary) * tokens + 6 * vocabulary * len(micro.positions)
        total += 12 * config.num_hidden_layers * config.hidden_size * squares
    return total


def memory_gb(device: str | torch.device) -> float:
    """The most memory that was in use: of the GPU, else of this process. GB of 10^9 bytes."""
    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def line(
    step: int,
    steps: int,
    found: Figures,
    *,
    lr: float,
    tokens_per_second: float,
    mfu: float | None,
    memory: float,
) -> str:
    """`step 100/1000  loss 6.123  ...` for the terminal."""
    parts = [f"step {step}/{steps}", f"loss {found.loss:.4f}", f"lr {lr:.3g}"]
    if found.line:
        parts.append(found.line)
    parts.append(f"{tokens_per_second:,.0f} tokens/s")
    if mfu is not None:
        parts.append(f"MFU {mfu:.1%}")
    parts.append(f"{memory:.1f} GB")
    return "  ".join(parts)
