"""BERT and its kin computed on packed rows: no padding anywhere, and as few kernels as there can be.

The layers are those of transformers, their weights taken over: x = norm(x + attention(x)); x = norm(x + ffn(x)) (Devlin
et al. 2019). Queries, keys and values are one product; on a CPU oneDNN's kernels add bias, GELU and residual in passing,
from weights laid out for it once.
"""

from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from raybert.encoder.attention import Rows, attend, attend_flash, to_device
from raybert.encoder.batching import filled
from raybert.encoder.linear import ONEDNN, Kernels, linears, pick_kernels

_Attention = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class _Parts:
    """One layer of a transformers model, by what its modules do."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    out: nn.Linear
    norm: nn.LayerNorm
    up: nn.Linear
    down: nn.Linear
    last_norm: nn.LayerNorm


def _bert(layer: Any) -> _Parts:
    attention, seen = layer.attention.output, layer.attention.self
    return _Parts(
        *(seen.query, seen.key, seen.value, attention.dense, attention.LayerNorm),
        *(layer.intermediate.dense, layer.output.dense, layer.output.LayerNorm),
    )


def _mpnet(layer: Any) -> _Parts:
    seen = layer.attention.attn
    return _Parts(
        *(seen.q, seen.k, seen.v, seen.o, layer.attention.LayerNorm),
        *(layer.intermediate.dense, layer.output.dense, layer.output.LayerNorm),
    )


def _distilbert(layer: Any) -> _Parts:
    seen = layer.attention
    return _Parts(
        *(seen.q_lin, seen.k_lin, seen.v_lin, seen.out_lin, layer.sa_layer_norm),
        *(layer.ffn.lin1, layer.ffn.lin2, layer.output_layer_norm),
    )


def _albert(layer: Any) -> _Parts:
    seen = layer.attention
    return _Parts(
        *(seen.query, seen.key, seen.value, seen.dense, seen.LayerNorm),
        *(layer.ffn, layer.ffn_output, layer.full_layer_layer_norm),
    )


_PARTS: dict[str, Callable[[Any], _Parts]] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), _bert),
    **{"mpnet": _mpnet, "distilbert": _distilbert, "albert": _albert},
}


class PackedModel(nn.Module):
    """The token vectors of a packed batch. Takes the layers' weights over from a transformers model.

    `kernels` says by what the layers are computed (see `pick_kernels`), `note` why not by better ones; "compiled" means
    batches of `batch_tokens`, smaller ones go op by op.
    """

    def __init__(self, model: Any, parts: list[_Parts], kernels: Kernels, batch_tokens: int) -> None:
        super().__init__()
        config = model.config
        heads = config.num_attention_heads
        activation = getattr(config, "hidden_act", None) or config.activation  # DistilBERT's name for it
        self.kernels, self.note = kernels
        linear = linears(self.kernels)
        made: dict[int, _Layer] = {}  # ALBERT's layers share their weights
        for part in parts:
            if id(part.query) not in made:
                made[id(part.query)] = _Layer(part, linear, heads, activation)
        self.layers = nn.ModuleList([made[id(part.query)] for part in parts])
        self.embeddings = model.embeddings
        self.project = getattr(model, "embeddings_project", None) or getattr(
            getattr(model, "encoder", None), "embedding_hidden_mapping_in", None
        )
        self._first_position = _first_position(model)
        self._make_bias = getattr(getattr(model, "encoder", None), "compute_position_bias", None)
        self._bias: Tensor | None = None
        self._tokens = batch_tokens
        self._compiled = torch.compile(self._last) if self.kernels == "compiled" else None

    @classmethod
    def of(cls, model: Any, kernels: str = "auto", batch_tokens: int = 1024) -> Self | None:
        """For a transformers model of a family whose layers are known here; None for others, or without the kernels."""
        parts = _parts(model)
        if parts is None:
            return None
        weight, heads = parts[0].query.weight, model.config.num_attention_heads
        picked = pick_kernels(kernels, weight, heads, compiles=model.config.model_type != "mpnet")
        return None if picked is None else cls(model, parts, picked, batch_tokens)

    def forward(self, ids: Tensor, rows: Rows, *, states: bool = False) -> Tensor | list[Tensor]:
        """[tokens, hidden] of a packed batch of `ids` [tokens]; with `states` every hidden state, embeddings first."""
        positions = to_device(rows.positions + self._first_position, ids.device)
        if not len(ids):
            x = self._embed(ids, positions)
            return [x] * (len(self.layers) + 1) if states else x
        if self.kernels == "compiled" and not states and len(ids) > self._tokens // 2:
            return self._forward_compiled(ids, positions, rows)
        bias, native = self._position_bias(rows.longest), self.kernels == "native"
        tokens = len(ids)
        if self.kernels in ONEDNN:
            ids, positions = self._filled(ids, positions, filled(tokens))
        found = self._states(ids, positions, lambda qkv: attend(qkv, rows, bias=bias, native=native))
        return [x[:tokens] for x in found] if states else deque(found, maxlen=1)[0][:tokens]

    def _states(self, ids: Tensor, positions: Tensor, attention: _Attention) -> Iterator[Tensor]:
        x = self._embed(ids, positions)
        yield x
        for layer in self.layers:
            x = layer(x, attention)
            yield x

    def _embed(self, ids: Tensor, positions: Tensor) -> Tensor:
        x = self.embeddings(input_ids=ids[None], position_ids=positions[None])[0]
        return x if self.project is None else self.project(x)

    def _forward_compiled(self, ids: Tensor, positions: Tensor, rows: Rows) -> Tensor:
        """Batches filled up to one size, so that one compiled program serves them all."""
        ids, positions = self._filled(ids, positions, max(self._tokens, len(ids)))
        return self._compiled(ids, positions, rows.cumulative, rows.longest)[: rows.offsets[-1]]

    def _filled(self, ids: Tensor, positions: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
        more = tokens - len(ids)
        return F.pad(ids, (0, more)), F.pad(positions, (0, more), value=self._first_position)

    def _last(self, ids: Tensor, positions: Tensor, cumulative: Tensor, longest: int) -> Tensor:
        x = self._embed(ids, positions)
        for layer in self.layers:
            x = layer(x, lambda qkv: attend_flash(qkv, cumulative, longest))
        return x

    def _position_bias(self, longest: int) -> Tensor | None:
        """MPNet's relative position bias [heads, t, t] for t >= longest."""
        if self._make_bias is None:
            return None
        bias = self._bias  # read once: other threads put theirs here too
        if bias is None or bias.shape[-1] < longest:
            like = self.embeddings.word_embeddings.weight
            self._bias = bias = self._make_bias(like.new_empty(1, -(-longest // 64) * 64, 1))[0]
        return bias


class _Layer(nn.Module):
    def __init__(self, parts: _Parts, linear: type, heads: int, activation: str) -> None:
        super().__init__()
        three = [parts.query, parts.key, parts.value]
        weight, bias = (torch.cat([getattr(one, name).data for one in three]) for name in ("weight", "bias"))
        self.qkv = linear(weight, bias)
        self.out = linear(parts.out.weight.data, parts.out.bias.data)
        self.up = linear(parts.up.weight.data, parts.up.bias.data, activation)
        self.down = linear(parts.down.weight.data, parts.down.bias.data)
        self.norm, self.last_norm = parts.norm, parts.last_norm
        self.heads = heads

    def forward(self, x: Tensor, attention: _Attention) -> Tensor:
        qkv = self.qkv(x).view(len(x), 3, self.heads, -1)
        x = self.norm(self.out(attention(qkv), add=x))
        return self.last_norm(self.down(self.up(x), add=x))


def _parts(model: Any) -> list[_Parts] | None:
    """The layers by their parts, in the order of computing; None where they are not those of BERT."""
    take = _PARTS.get(model.config.model_type)
    if take is None or getattr(model.config, "is_decoder", False):
        return None
    if model.config.model_type == "albert":
        groups, depth = model.encoder.albert_layer_groups, model.config.num_hidden_layers
        # the group of layer i as transformers computes it
        chosen = (groups[int(i / (depth / len(groups)))] for i in range(depth))
        layers: Iterator[Any] = (layer for group in chosen for layer in group.albert_layers)
    else:
        layers = iter((model.transformer if model.config.model_type == "distilbert" else model.encoder).layer)
    return [take(layer) for layer in layers] or None


def _first_position(model: Any) -> int:
    """0, or for RoBERTa and its kin padding_idx + 1: there positions count from it."""
    padding = model.embeddings.position_embeddings.padding_idx
    return 0 if padding is None else padding + 1
