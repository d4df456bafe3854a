"""A plain transformers model on packed batches: without padding where its family allows it, else padded.

The model stays as transformers made it. Where it computes, a change `delta` can be added to the output of its word
embedding: adversarial training moves the input there, so it works under every ZeRO stage.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from raybert.encoder.batching import filled
from raybert.train.dropout import quicken_dropout
from raybert.train.packed import PACKED, PackedBatch

PACKED_FAMILIES = ("bert", "roberta", "xlm-roberta", "camembert", "electra", "distilbert")
"""Families whose attention transformers lets us choose and that ask nothing else of the batch's shape."""

# theirs count positions from padding_idx + 1
OFFSET_POSITIONS = ("roberta", "xlm-roberta", "camembert")
_WITHOUT_POSITIONS = ("mpnet", "modernbert")  # made from the ids, or rotary
_WITHOUT_TYPES = ("distilbert", "mpnet", "modernbert")


class Forward:
    """Calls of `plain`.

    Args:
        padded: compute padded batches with torch's attention also where packed ones would do.

    Attributes:
        padded: how it computes.
    """

    def __init__(self, plain: PreTrainedModel, *, padded: bool = False) -> None:
        kind = plain.config.model_type
        self.padded = padded or kind not in PACKED_FAMILIES or getattr(plain, "needs_padding", False)
        plain.set_attn_implementation("sdpa" if self.padded else PACKED)
        quicken_dropout(plain)
        self._plain, self._delta = plain, None
        self._pad = plain.config.pad_token_id or 0
        self._offset = self._pad + 1 if kind in OFFSET_POSITIONS else 0
        self._positions, self._types = kind not in _WITHOUT_POSITIONS, kind not in _WITHOUT_TYPES
        plain.get_input_embeddings().register_forward_hook(self._add_delta)

    def __call__(self, batch: PackedBatch, delta: Tensor | None = None) -> Any:
        """What the whole model gives. Of tokens: [1, tokens and filling, ...] packed, [n, longest, ...] padded (see `tokens`)."""
        return self._call(self._plain, batch, delta)

    def hidden(self, batch: PackedBatch, delta: Tensor | None = None) -> Tensor:
        """[tokens, hidden]: the last hidden states of the encoder without its heads."""
        body = self._plain.base_model
        assert isinstance(body, nn.Module)
        return self.tokens(self._call(body, batch, delta).last_hidden_state, batch)

    def tokens(self, values: Tensor, batch: PackedBatch) -> Tensor:
        """[tokens, ...] of what the model gave for tokens."""
        if not self.padded:
            return values[0, : batch.ids.shape[1]]
        return values[self._pad_rows(torch.ones_like(batch.ids), batch).bool()]

    def _call(self, module: nn.Module, batch: PackedBatch, delta: Tensor | None) -> Any:
        given: dict[str, Any] = {"input_ids": batch.ids}
        if self._types:
            given["token_type_ids"] = batch.types
        if self._positions:
            given["position_ids"] = batch.places + self._offset
        if self.padded:
            given = {name: self._pad_rows(x, batch) for name, x in given.items()}
            given["attention_mask"] = mask = self._pad_rows(torch.ones_like(batch.ids), batch)
            given["input_ids"] = given["input_ids"].masked_fill(mask == 0, self._pad)
        else:
            tokens = batch.ids.shape[1]
            more = 0 if batch.ids.is_cuda else filled(tokens) - tokens
            given = {name: F.pad(x, (0, more)) for name, x in given.items()}
            given["packed"] = batch.rows
            delta = None if delta is None else F.pad(delta, (0, 0, 0, more))
        self._delta = delta
        try:
            return module(**given)
        finally:
            self._delta = None

    @staticmethod
    def _pad_rows(packed: Tensor, batch: PackedBatch) -> Tensor:
        """[1, tokens] -> [n, longest], zeros behind."""
        return pad_sequence(list(packed[0].split(batch.rows.lengths.tolist())), batch_first=True)

    def _add_delta(self, module: nn.Module, given: Any, output: Tensor) -> Tensor | None:
        return None if self._delta is None else output + self._delta.to(output.dtype)
