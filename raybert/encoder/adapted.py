"""Models with an adapter in their layers: the modules, and reading one out of its folder (see `adapter_folder`).

`raybert.train.adapters` makes and trains them. Reading needs neither peft nor anything of training.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig
from transformers.cache_utils import DynamicCache

from raybert.encoder.adapter_folder import BOTTLENECK_PLACES, read_record
from raybert.encoder.folders import read_folder

PROMPT = "prompt_embeddings"  # peft's name of a prefix in a file
_PEFT = "base_model."  # and what comes before those of the model


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


def add_bottlenecks(body: Any, width: int, dropout: float = 0.0) -> None:
    """Put an adapter after the attention and after the feed-forward part of every layer of an encoder, in place. Layers
    that share their weights share their adapters.

    Raises:
        ValueError: the family is not known.
    """
    kind, hidden = body.config.model_type, body.config.hidden_size
    if kind not in BOTTLENECK_PLACES:
        raise ValueError(
            f"adapter.name=bottleneck is not known for a {kind} model; it is for {', '.join(sorted(BOTTLENECK_PLACES))}"
        )
    count = body.config.num_hidden_layers
    layers = next(m for m in body.modules() if isinstance(m, nn.ModuleList) and len(m) == count)
    like = next(body.parameters())
    for layer in layers:
        for place in BOTTLENECK_PLACES[kind]:
            above, _, name = place.rpartition(".")
            parent = layer.get_submodule(above)
            adapter = Bottleneck(hidden, width, dropout).to(like.device, like.dtype)
            setattr(parent, name, Adapted(getattr(parent, name), adapter))


def add_prefix(body: Any, prompt: Tensor) -> None:
    """Put keys and values in front of those of every layer of an encoder (Li and Liang 2021, arXiv 2101.00190), as peft
    does: what the tokens have as positions is moved on by the length of the prefix.

    Args:
        body: takes `past_key_values`, and padded rows from now on.
        prompt: [tokens, layers * 2 * hidden], of peft's `PrefixEncoder`.
    """
    config, tokens = body.config, len(prompt)
    heads = config.num_attention_heads
    shape = (tokens, 2 * config.num_hidden_layers, heads, config.hidden_size // heads)
    names = list(inspect.signature(body.forward).parameters)
    body.register_buffer("prefix", prompt, persistent=False)

    def put(module: Any, given: Any, named: dict[str, Any]) -> tuple[tuple[()], dict[str, Any]]:
        named = {**dict(zip(names, given, strict=False)), **named}
        ids, mask = named["input_ids"], named.get("attention_mask")
        cache = DynamicCache(config=config)
        states = module.prefix.view(shape).permute(1, 2, 0, 3)[:, None].expand(-1, len(ids), -1, -1, -1)
        for layer in range(config.num_hidden_layers):
            cache.update(states[2 * layer], states[2 * layer + 1], layer)
        mask = torch.ones_like(ids) if mask is None else mask
        named["attention_mask"] = torch.cat([mask.new_ones(len(ids), tokens), mask], 1)
        if named.get("position_ids") is not None:
            named["position_ids"] = named["position_ids"] + tokens
        return (), {**named, "past_key_values": cache}

    body.register_forward_pre_hook(put, with_kwargs=True)


def load_adapted(
    auto: Any, path: Path, dtype: torch.dtype, *, trust_remote_code: bool = False, **options: Any
) -> Any:
    """The model of an adapter's folder: its base, the adapter in its layers, the trained head where `auto` has one.

    Args:
        auto: AutoModel, AutoModelFor... or what works like them.
        options: of `auto.from_pretrained`.

    Returns:
        The transformers model. `adapter_note` says why faster kernels cannot compute it, "" if they can;
        `needs_padding` whether batches must be padded; `prefix_tokens` how many positions a prefix takes.

    Raises:
        ValueError: the base is missing or another than the adapter was trained on, or weights do not fit.
    """
    record, folder = read_record(path), read_folder(path)
    settings, base = record["settings"], folder.base
    assert base is not None
    if base.digest() != record["base"]["digest"]:
        raise ValueError(
            f"model.name: the adapter in {path} was trained on other weights than are in {base.path} now; put its base back, "
            f"{record['base']['name']}"
        )
    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    model, report = auto.from_pretrained(
        base.transformer,
        config=config,
        dtype=dtype,
        use_safetensors=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
        trust_remote_code=trust_remote_code,
        **options,
    )
    body = model.base_model
    weights = _names_in(model, load_file(folder.weights()[0]))
    prompt = weights.pop(PROMPT, None)
    if settings["name"] == "bottleneck":
        add_bottlenecks(body, settings["width"])
    _refuse_odd(model, weights, report, path)
    if prompt is not None:
        add_prefix(body, prompt.to(dtype))
    with torch.no_grad():
        parameters = dict(model.named_parameters())
        for name in weights.keys() & parameters.keys():
            parameters[name].copy_(weights[name])
    model.adapter_note = "" if settings["name"] == "bitfit" else f"it has a {settings['name']} in its layers"
    model.needs_padding = prompt is not None
    model.prefix_tokens = 0 if prompt is None else len(prompt)
    return model.eval()


def _names_in(model: Any, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights by their names in this model, which may be the encoder of the trained one."""
    found = {name.removeprefix(_PEFT): tensor for name, tensor in weights.items()}
    if model.base_model is not model:
        return found
    return {name.removeprefix(f"{model.base_model_prefix}."): tensor for name, tensor in found.items()}


def _refuse_odd(model: Any, weights: Mapping[str, Tensor], report: Any, path: Path) -> None:
    """Raise ValueError for weights that are missing, of another shape, or (of the encoder) unknown."""
    parameters = dict(model.named_parameters())
    alone = model.base_model is model
    lacking = {*report["missing_keys"], *(key[0] for key in report["mismatched_keys"])}
    lacking |= {name for name in parameters if ".adapter." in name}
    odd = [
        *sorted(name for name in lacking - weights.keys() if not (alone and "pooler" in name)),
        *(n for n, tensor in weights.items() if n in parameters and parameters[n].shape != tensor.shape),
        *(n for n in weights if n not in parameters and (".adapter." in n or not alone)),
    ]
    if odd:
        raise ValueError(
            f"model.name: the adapter in {path} does not fit its base: {odd[0]} differs between them"
        )
