"""Linear layers for inference: weights laid out once, activation or residual added in the same kernel where one can."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.activations import ACT2FN

from raybert.encoder.attention import flash_works
from raybert.encoder.native import why_not

# What oneDNN computes with a product: the activation's name in transformers -> its (name, algorithm) there.
_FUSED = {"gelu": ("gelu", "none"), "gelu_new": ("gelu", "tanh"), "gelu_pytorch_tanh": ("gelu", "tanh")}
_FUSED |= {"relu": ("relu", "")}


ONEDNN = ("native", "onednn")
"""Kernels whose products are oneDNN's."""


class Linear(nn.Module):
    """activation(x w' + b) + add."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str | None = None) -> None:
        super().__init__()
        self.register_buffer("weight", weight)
        self.register_buffer("bias", bias)
        self.activation = None if activation is None else ACT2FN[activation]

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        x = F.linear(x, self.weight, self.bias)
        x = x if self.activation is None else self.activation(x)
        return x if add is None else x + add


class OneDnnLinear(nn.Module):
    """The same by oneDNN: weights in its own layout, activation or sum in the product's kernel."""

    # The layout suits batches of about so many tokens; others work as well.
    TOKENS = 1024

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: str | None = None) -> None:
        super().__init__()
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), self.TOKENS)
        self.bias = bias
        self.fused = _FUSED.get(activation or "", ("none", ""))
        self.activation = None if activation is None or activation in _FUSED else ACT2FN[activation]

    def forward(self, x: Tensor, add: Tensor | None = None) -> Tensor:
        if add is not None:
            return torch.ops.mkldnn._linear_pointwise.binary(x, add, self.weight, self.bias, "add")
        name, algorithm = self.fused
        x = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, name, [], algorithm)
        return x if self.activation is None else self.activation(x)


def onednn_works(weight: Tensor) -> bool:
    """Whether this build of torch has oneDNN's fused products for the weight's dtype and device."""
    if weight.is_cuda or not torch.backends.mkldnn.is_available():
        return False
    if weight.dtype == torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    if weight.dtype not in (torch.bfloat16, torch.float32):
        return False
    try:
        linear = OneDnnLinear(weight.data[:16, :16], weight.data[0, :16], "gelu")
        x = weight.data.new_ones(2, 16)
        linear(linear(x), add=x)
    except (AttributeError, RuntimeError):
        return False  # these are torch's own, made for its compiler: another release may lack them
    return True


def linears(kernels: str) -> type[Linear] | type[OneDnnLinear]:
    """The class for kernels of that name: oneDNN's for "native" and "onednn", for all else torch's own."""
    return OneDnnLinear if kernels in ONEDNN else Linear


class Kernels(NamedTuple):
    """By what a model's layers are computed, and why not by better ones that a machine of its kind could have."""

    name: str
    note: str = ""


def pick_kernels(asked: str, weight: Tensor, heads: int, *, compiles: bool) -> Kernels | None:
    """The kernels for layers with weights like this one: the ones asked for, the best for "auto", None if not there.

    "native": oneDNN's products and our own attention; "onednn": oneDNN's products; "torch": torch op by op;
    "compiled": by torch's compiler, for models that it `compiles` on a GPU.
    """
    no_native = why_not(weight, len(weight) // heads)
    works = {
        "native": lambda: not no_native and onednn_works(weight),
        "onednn": lambda: onednn_works(weight),
        "torch": lambda: True,
        "compiled": lambda: compiles and flash_works(weight),
    }
    name = next(name for name, work in works.items() if work()) if asked == "auto" else asked
    if not works[name]():
        return None
    return Kernels(name, no_native if name == "onednn" and weight.dtype == torch.bfloat16 else "")
