"""The small modules that are trained instead of a whole encoder: bottleneck adapters, and biases alone (BitFit)."""

from typing import Any

import torch
from torch import Tensor, nn

from raybert.train.freezing import encoder_of, head_parameters

# what comes last in a layer's attention and in its feed-forward part, before the sum with the part's input
_BERT = ("attention.output.dropout", "output.dropout")
_PLACES: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), _BERT),
    "mpnet": ("attention.dropout", "output.dropout"),
    "distilbert": ("attention.out_lin", "ffn.dropout"),
    "modernbert": ("attn.out_drop", "mlp.Wo"),
}


class Bottleneck(nn.Module):
    """x + up(gelu(down(x))): [..., hidden] to `width` and back (Houlsby et al. 2019, arXiv 1902.00751, figure 2).

    It starts near the identity: weights are normal, of deviation 0.01, cut off at twice that (section 3.6), biases 0.
    `dropout` is of what `down` sees.
    """

    def __init__(self, hidden: int, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(hidden, width), nn.Linear(width, hidden)
        self.dropout = nn.Dropout(dropout)
        for linear in (self.down, self.up):
            nn.init.trunc_normal_(linear.weight, std=0.01, a=-0.02, b=0.02)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[..., hidden] -> [..., hidden]."""
        return x + self.up(nn.functional.gelu(self.down(self.dropout(x))))


class Adapted(nn.Module):
    """A module of the plain model with an adapter behind it."""

    def __init__(self, inner: nn.Module, adapter: Bottleneck) -> None:
        super().__init__()
        self.inner, self.adapter = inner, adapter

    def forward(self, x: Tensor) -> Tensor:
        """adapter(inner(x))."""
        return self.adapter(self.inner(x))


def add_bottlenecks(plain: Any, width: int, dropout: float = 0.0) -> None:
    """Put an adapter after the attention and after the feed-forward part of every layer, in place, and train these, all
    LayerNorms and the head alone. Layers that share their weights share their adapters.

    Raises:
        ValueError: the family is not known.
    """
    body = encoder_of(plain)
    kind, hidden = plain.config.model_type, plain.config.hidden_size
    if kind not in _PLACES:
        raise ValueError(
            f"adapter.name=bottleneck is not known for a {kind} model; it is for {', '.join(sorted(_PLACES))}"
        )
    plain.requires_grad_(False)
    layers = next(
        m for m in body.modules() if isinstance(m, nn.ModuleList) and len(m) == plain.config.num_hidden_layers
    )
    like = next(plain.parameters())
    for layer in layers:
        for place in _PLACES[kind]:
            above, _, name = place.rpartition(".")
            parent = layer.get_submodule(above)
            adapter = Bottleneck(hidden, width, dropout).to(like.device, like.dtype)
            setattr(parent, name, Adapted(getattr(parent, name), adapter))
    for module in plain.modules():
        if isinstance(module, nn.LayerNorm):
            module.requires_grad_(True)
    _train_head(plain)


def train_biases(plain: Any) -> None:
    """Train the biases and the head alone, in place (Ben Zaken et al. 2022, arXiv 2106.10199).

    Raises:
        ValueError: the encoder has none (ModernBERT).
    """
    biases = [p for name, p in encoder_of(plain).named_parameters() if name.rpartition(".")[2] == "bias"]
    if not biases:
        raise ValueError(
            f"adapter.name=bitfit trains biases, and a {plain.config.model_type} model has none; take another adapter"
        )
    plain.requires_grad_(False)
    for bias in biases:
        bias.requires_grad_(True)
    _train_head(plain)


def _train_head(plain: nn.Module) -> None:
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


def orthogonality(model: nn.Module) -> Tensor:
    """AdaLoRA's regulariser: 0.5 times the mean over its matrices P = A and P = B' of |P P' - I| (Frobenius). [].

    Zhang et al. 2023, arXiv 2303.10512, equation 4, as peft has it: a mean, no square, the factor 0.5 in it. It is added
    to the loss of a step once, not of every micro batch.
    """
    norms = []
    for name, parameter in model.named_parameters():
        if ".lora_A." in name or ".lora_B." in name:
            rows = parameter if ".lora_A." in name else parameter.T
            norms.append(torch.linalg.matrix_norm(rows @ rows.T - torch.eye(len(rows), device=rows.device)))
    return 0.5 * torch.stack(norms).mean()
