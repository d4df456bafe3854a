"""Any encoder of transformers on packed rows: padded for its forward pass, packed again after it."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raybert.encoder.attention import Rows, to_device


class PaddedModel(nn.Module):
    """What `PackedModel` is for models whose layers it does not know; `note` says why it was taken."""

    kernels = "transformers"

    def __init__(self, model: Any, pad_id: int, *, token_types: bool, note: str = "") -> None:
        super().__init__()
        self.note = note
        self.model, self._pad_id, self._token_types = model, pad_id, token_types

    def forward(self, ids: Tensor, rows: Rows, *, states: bool = False) -> Tensor | list[Tensor]:
        """[tokens, hidden] of a packed batch of `ids` [tokens]; with `states` every hidden state, embeddings first."""
        texts, longest = len(rows.lengths), rows.longest  # a model needs one column even for no token
        number = np.repeat(np.arange(texts), rows.lengths)
        places = to_device(number * longest + rows.positions, ids.device)
        padded = ids.new_full((texts * longest,), self._pad_id)
        padded[places] = ids
        mask = torch.zeros_like(padded)
        mask[places] = 1
        inputs = {"input_ids": padded.view(texts, -1), "attention_mask": mask.view(texts, -1)}
        if self._token_types:
            inputs["token_type_ids"] = torch.zeros_like(inputs["input_ids"])
        if not states:
            return self.model(**inputs, return_dict=True).last_hidden_state.flatten(0, 1)[places]
        found = self.model(**inputs, return_dict=True, output_hidden_states=True).hidden_states
        return [state.flatten(0, 1)[places] for state in found]
