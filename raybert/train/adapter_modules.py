"""Which parameters are trained instead of a whole encoder: bottleneck adapters, biases alone (BitFit), and the head."""

from typing import Any

from torch import nn

from raybert.encoder import adapted
from raybert.train.freezing import encoder_of, head_parameters


def add_bottlenecks(plain: Any, width: int, dropout: float = 0.0) -> None:
    """Put an adapter after the attention and after the feed-forward part of every layer, in place, and train these, all
    LayerNorms and the head alone (Houlsby et al. 2019, arXiv 1902.00751, section 2.1).

    Raises:
        ValueError: the family is not known.
    """
    adapted.add_bottlenecks(encoder_of(plain), width, dropout)
    plain.requires_grad_(False)
    for module in plain.modules():
        if isinstance(module, nn.LayerNorm | adapted.Bottleneck):
            module.requires_grad_(True)
    train_head(plain)


def train_biases(plain: Any) -> None:
    """Train the biases and the head alone, in place (Ben Zaken et al. 2022, arXiv 2106.10199)."""
    biases = [p for name, p in encoder_of(plain).named_parameters() if name.rpartition(".")[2] == "bias"]
    assert biases
    plain.requires_grad_(False)
    for bias in biases:
        bias.requires_grad_(True)
    train_head(plain)


def train_head(plain: nn.Module) -> None:
    """Let what lies outside of the encoder, and its pooler, be trained."""
    for parameter in head_parameters(plain):
        parameter.requires_grad_(True)


def linears_of(plain: Any, names: frozenset[str] | None = None) -> list[str]:
    """Full names of the linear layers in a transformers model's layers: those with a last name in `names`, or all."""
    body = encoder_of(plain)
    inside = {
        id(m)
        for found in body.modules()
        if isinstance(found, nn.ModuleList)
        for m in found.modules()
        if isinstance(m, nn.Linear)
    }
    return [
        name
        for name, module in plain.named_modules()
        if id(module) in inside and (names is None or name.rpartition(".")[2] in names)
    ]
