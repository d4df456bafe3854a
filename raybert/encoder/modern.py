"""ModernBERT on packed rows: norms before the products, rotary positions, gated feed-forward, local layers.

As transformers computes it (Warner et al. 2024, arXiv 2412.13663): x = x + attention(norm(x)); x = x + ffn(norm(x)).
"""

from collections import deque
from collections.abc import Iterator
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybert.encoder.attention import Rows, attend, to_device
from raybert.encoder.batching import filled
from raybert.encoder.linear import ONEDNN, Kernels, linears, pick_kernels


class ModernModel(nn.Module):
    """What `PackedModel` is for BERT. `kernels` says by what the layers are computed (see `pick_kernels`)."""

    def __init__(self, model: Any, kernels: Kernels) -> None:
        super().__init__()
        self.kernels, self.note = kernels
        self.embeddings, self.rotary, self.final_norm = model.embeddings, model.rotary_emb, model.final_norm
        self.layers = nn.ModuleList([_Layer(layer, model.config, self.kernels) for layer in model.layers])

    @classmethod
    def of(cls, model: Any, kernels: str = "auto") -> Self | None:
        """For a transformers ModernBERT; None for other models, or without the kernels asked for."""
        if model.config.model_type != "modernbert":
            return None
        weight, heads = model.layers[0].attn.Wo.weight, model.config.num_attention_heads
        picked = pick_kernels(kernels, weight, heads, compiles=False)
        return None if picked is None else cls(model, picked)

    def forward(self, ids: Tensor, rows: Rows, *, states: bool = False) -> Tensor | list[Tensor]:
        """[tokens, hidden] of a packed batch of `ids` [tokens]; with `states` every hidden state, embeddings first."""
        if len(ids):
            more = filled(len(ids)) - len(ids) if self.kernels in ONEDNN else 0
            found = deque(self._states(F.pad(ids, (0, more)), rows), maxlen=None if states else 1)
            found = deque(x[: len(ids)] for x in found)
        else:
            found = deque([self.embeddings(ids[None])[0]] * (len(self.layers) + 1))
        found[-1] = self.final_norm(found[-1])
        return list(found) if states else found[-1]

    def _states(self, ids: Tensor, rows: Rows) -> Iterator[Tensor]:
        x = self.embeddings(ids[None])[0]
        positions = to_device(rows.positions, ids.device)
        positions = F.pad(positions, (0, len(ids) - len(positions)))[None]
        turns = {kind: self.rotary(x, positions, kind) for kind in {layer.kind for layer in self.layers}}
        yield x
        for layer in self.layers:
            x = layer(x, rows, *turns[layer.kind], self.kernels == "native")
            yield x


class _Layer(nn.Module):
    def __init__(self, layer: Any, config: Any, kernels: str) -> None:
        super().__init__()
        linear = linears(kernels)
        self.norm, self.mlp_norm, self.kind = layer.attn_norm, layer.mlp_norm, layer.attention_type
        self.qkv, self.out = (linear(*_weights(one)) for one in (layer.attn.Wqkv, layer.attn.Wo))
        inner, bias = _weights(layer.mlp.Wi)
        # the two halves apart, so that the activation goes with the product of its own
        halves = [None, None] if bias is None else list(bias.chunk(2))
        self.up = linear(inner.chunk(2)[0], halves[0], config.hidden_activation)
        self.gate = linear(inner.chunk(2)[1], halves[1])
        self.down = linear(*_weights(layer.mlp.Wo))
        self.heads = config.num_attention_heads
        self.window = config.sliding_window if self.kind == "sliding_attention" else None

    def forward(self, x: Tensor, rows: Rows, cos: Tensor, sin: Tensor, native: bool) -> Tensor:
        qkv = self.qkv(self.norm(x)).view(len(x), 3, self.heads, -1)
        x = self.out(attend(_turned(qkv, cos, sin), rows, window=self.window, native=native), add=x)
        y = self.mlp_norm(x)
        return self.down(self.up(y) * self.gate(y), add=x)


def _weights(linear: nn.Linear) -> tuple[Tensor, Tensor | None]:
    return linear.weight.data, None if linear.bias is None else linear.bias.data


def _turned(qkv: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries and keys of [tokens, 3, heads, d] turned by their positions (Su et al. 2021, arXiv 2104.09864)."""
    seen = qkv[:, :2].float()
    half = seen.shape[-1] // 2
    crossed = torch.cat([-seen[..., half:], seen[..., :half]], dim=-1)
    turned = seen * cos[0, :, None, None] + crossed * sin[0, :, None, None]
    return torch.cat([turned.to(qkv.dtype), qkv[:, 2:]], dim=1)
