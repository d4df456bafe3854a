"""What follows pooling in a sentence-transformers folder: Dense, LayerNorm and Normalize, computed in float32."""

from collections.abc import Callable, Sequence

import torch
from safetensors.torch import load_file
from torch import Tensor

from raybert.encoder.folders import HeadModule
from raybert.encoder.pooling import normalize

# a config names a class to import; only these are
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch.nn.modules.linear.Identity": torch.nn.Identity(),
    "torch.nn.modules.activation.Tanh": torch.nn.Tanh(),
    "torch.nn.modules.activation.ReLU": torch.nn.ReLU(),
    "torch.nn.modules.activation.GELU": torch.nn.GELU(),
    "torch.nn.modules.activation.SiLU": torch.nn.SiLU(),
    "torch.nn.modules.activation.Sigmoid": torch.nn.Sigmoid(),
    "torch.nn.modules.activation.LeakyReLU": torch.nn.LeakyReLU(),
}


class Dense(torch.nn.Module):
    """activation(W x + b), plus x (through its own matrix where the widths differ) with `use_residual`."""

    def __init__(self, module: HeadModule, weights: dict[str, Tensor]):
        super().__init__()
        self.activation = _activation(module)
        self.weight = _parameter(weights, "linear.weight", module)
        self.bias = _parameter(weights, "linear.bias", module) if module.config.get("bias", True) else None
        self.use_residual = bool(module.config.get("use_residual", False))
        widths_differ = self.weight.shape[0] != self.weight.shape[1]
        self.residual = (
            _parameter(weights, "residual.weight", module) if self.use_residual and widths_differ else None
        )

    def forward(self, vectors: Tensor) -> Tensor:
        if vectors.shape[-1] != self.weight.shape[1]:
            raise ValueError(
                f"the Dense module takes {self.weight.shape[1]} numbers, but pooling gives {vectors.shape[-1]}; "
                "leave model.pooling and model.layers as the folder has them"
            )
        out = self.activation(torch.nn.functional.linear(vectors, self.weight, self.bias))
        if not self.use_residual:
            return out
        return out + (
            vectors if self.residual is None else torch.nn.functional.linear(vectors, self.residual)
        )


class Normalize(torch.nn.Module):
    """Length 1 between two modules; at the end of the chain it is a setting of the encoder instead."""

    def forward(self, vectors: Tensor) -> Tensor:
        return normalize(vectors)


def build_head(modules: Sequence[HeadModule]) -> torch.nn.Sequential:
    """The modules after pooling as one function of vectors [n, d], in float32."""
    return torch.nn.Sequential(*map(_build, modules)).requires_grad_(False).eval()


def _build(module: HeadModule) -> torch.nn.Module:
    if module.kind == "Normalize":
        return Normalize()
    file = module.path / "model.safetensors"
    if not file.is_file():
        raise ValueError(
            f"model.name: {module.path} has no model.safetensors (a pytorch_model.bin is not read)"
        )
    weights = {name: tensor.float() for name, tensor in load_file(file).items()}
    if module.config.get("module_input_name", "sentence_embedding") != "sentence_embedding":
        raise ValueError(
            f"{module.path}: a {module.kind} over {module.config['module_input_name']} is not supported"
        )
    if module.kind == "Dense":
        return Dense(module, weights)
    assert module.kind == "LayerNorm"
    norm = torch.nn.LayerNorm(module.config["dimension"])
    norm.weight = _parameter(weights, "norm.weight", module)
    norm.bias = _parameter(weights, "norm.bias", module)
    return norm


def _activation(module: HeadModule) -> Callable[[Tensor], Tensor]:
    name = module.config.get("activation_function", "torch.nn.modules.activation.Tanh")
    if name not in ACTIVATIONS:
        raise ValueError(f"{module.path}: activation {name!r} is none of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


def _parameter(weights: dict[str, Tensor], name: str, module: HeadModule) -> torch.nn.Parameter:
    if name not in weights:
        raise ValueError(f"{module.path / 'model.safetensors'} lacks {name}")
    return torch.nn.Parameter(weights[name])
