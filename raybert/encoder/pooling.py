"""From token vectors to one vector a text: layer combination, pooling, truncation, normalising. Pure tensor functions."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor

POOLINGS = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "last")


def parse_pooling(mode: str) -> list[str]:
    """The poolings in `mode`: one of POOLINGS, or several joined by "+", whose vectors are concatenated."""
    modes = mode.split("+")
    for one in modes:
        if one not in POOLINGS:
            raise ValueError(f"pooling {one!r} is none of {', '.join(POOLINGS)} (join several with '+')")
    return modes


def pool(hidden: Tensor, mask: Tensor, mode: str, *, skip: int = 0) -> Tensor:
    """One float32 vector a text [b, d]: from token vectors [b, t, d] and their mask [b, t], padded on either side.

    `mode` is "cls" (first token), "last" (last token), "mean", "max", "mean_sqrt_len_tokens" (sum over the root of
    the number of tokens), "weightedmean" (token i weighs i + 1), or several joined by "+". `skip` leaves the first
    so many tokens out (a prompt that must not count). A text with no token left gets zeros.
    """
    hidden = hidden.float()
    mask = mask.bool()
    position = mask.cumsum(1)  # 1 for a text's first token
    mask = mask & (position > skip)
    return torch.cat([_pool_one(hidden, mask, position, one) for one in parse_pooling(mode)], dim=-1)


def _pool_one(hidden: Tensor, mask: Tensor, position: Tensor, mode: str) -> Tensor:
    if mode in ("cls", "last"):
        # argmax finds the first True; on the flipped mask, the last
        at = mask.int().argmax(1) if mode == "cls" else mask.shape[1] - 1 - mask.int().flip(1).argmax(1)
        rows = torch.arange(len(hidden), device=hidden.device)
        return hidden[rows, at] * mask[rows, at, None]
    if mode == "max":
        highest = hidden.masked_fill(~mask[..., None], float("-inf")).amax(1)
        return highest.masked_fill(~mask.any(1, keepdim=True), 0.0)
    weight = (mask * position if mode == "weightedmean" else mask).float()
    # masked, not multiplied by 0: what a model leaves at padding may be infinite
    total = (hidden * weight[..., None]).masked_fill(~mask[..., None], 0.0).sum(1)
    count = weight.sum(1, keepdim=True).clamp(min=1e-9)
    return total / (count.sqrt() if mode == "mean_sqrt_len_tokens" else count)


def parse_layers(layers: str) -> tuple[str, list[int]]:
    """The operation ("one", "sum", "mean", "concat") and the hidden states it takes.

    Grammar: "last", "<i>", or "sum:", "mean:", "concat:" followed by "last<n>" or by indices joined by commas.
    0 is the embeddings' output, negatives count from the last layer.
    Source of the combinations: Devlin et al. 2019, section 5.3 (feature-based BERT).
    """
    if layers == "last":
        return "one", [-1]
    if re.fullmatch(r"-?\d+", layers):
        return "one", [int(layers)]
    found = re.fullmatch(r"(sum|mean|concat):(?:last([1-9]\d*)|(-?\d+(?:,-?\d+)*))", layers)
    if not found:
        raise ValueError(
            f"layers {layers!r} is not understood; write last, -2, sum:last4, mean:last4 or concat:-1,-12"
        )
    operation, last, indices = found.groups()
    return operation, list(range(-int(last), 0)) if last else [int(i) for i in indices.split(",")]


def combine_layers(hidden_states: Sequence[Tensor], layers: str) -> Tensor:
    """Token vectors [b, t, d] of the chosen hidden states; "concat" of k makes them [b, t, k * d]."""
    operation, indices = parse_layers(layers)
    depth = len(hidden_states)
    for i in indices:
        if not -depth <= i < depth:
            raise ValueError(
                f"layers {layers!r} asks for hidden state {i}, but the model has {depth} (0 to {depth - 1})"
            )
    chosen = [hidden_states[i] for i in indices]
    if operation == "concat":
        return torch.cat(chosen, dim=-1)
    total = torch.stack([state.float() for state in chosen]).sum(0) if len(chosen) > 1 else chosen[0]
    return total / len(chosen) if operation == "mean" else total


def truncate(vectors: Tensor, dimensions: int | None) -> Tensor:
    """The first `dimensions` numbers of every vector [n, d] (all with None): Matryoshka truncation."""
    if dimensions is None:
        return vectors
    if not 1 <= dimensions <= vectors.shape[-1]:
        raise ValueError(f"dimensions is {dimensions}; this model's vectors have 1 to {vectors.shape[-1]}")
    return vectors[..., :dimensions]


def normalize(vectors: Tensor) -> Tensor:
    """Vectors [n, d] at length 1; a zero vector stays zero."""
    return torch.nn.functional.normalize(vectors, p=2, dim=-1)
