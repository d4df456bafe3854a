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


def pool(hidden: Tensor, lengths: Tensor, mode: str, *, skip: int = 0) -> Tensor:
    """One float32 vector a text [b, d]: from token vectors [tokens, d], text after text, and their lengths [b].

    `mode` is "cls" (first token), "last" (last token), "mean", "max", "mean_sqrt_len_tokens" (sum over the root of
    the number of tokens), "weightedmean" (token i weighs i + 1), or several joined by "+". `skip` leaves the first
    so many tokens out (a prompt that must not count). A text with no token left gets zeros.
    """
    modes = parse_pooling(mode)
    hidden = hidden.float()
    position = None
    if skip or "weightedmean" in modes:
        starts = lengths.cumsum(0) - lengths
        position = torch.arange(len(hidden), device=hidden.device) - starts.repeat_interleave(
            lengths, output_size=len(hidden)
        )
    if skip:
        kept = position >= skip
        hidden, position = hidden[kept], position[kept]
        lengths = (lengths - skip).clamp(min=0)
    if not len(hidden):
        return hidden.new_zeros(len(lengths), hidden.shape[1] * len(modes))
    return torch.cat([_pool_one(hidden, lengths, position, one) for one in modes], dim=-1)


def _pool_one(hidden: Tensor, lengths: Tensor, position: Tensor | None, mode: str) -> Tensor:
    if mode in ("cls", "last"):
        ends = lengths.cumsum(0)
        at = ends - lengths if mode == "cls" else ends - 1
        # one row more than there are tokens, for texts without one
        return torch.cat([hidden, hidden.new_zeros(1, hidden.shape[1])])[at.where(lengths > 0, len(hidden))]
    if mode == "max":
        highest = torch.segment_reduce(hidden, "max", lengths=lengths, axis=0)
        return highest.masked_fill((lengths == 0)[:, None], 0.0)
    count = lengths.float()
    if mode == "weightedmean":
        weight = (position + 1).float()
        hidden = hidden * weight[:, None]
        count = torch.segment_reduce(weight, "sum", lengths=lengths, axis=0)
    total = torch.segment_reduce(hidden, "sum", lengths=lengths, axis=0)
    count = count.clamp(min=1e-9)[:, None]
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
    """Token vectors [..., d] of the chosen hidden states; "concat" of k makes them [..., k * d]."""
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
