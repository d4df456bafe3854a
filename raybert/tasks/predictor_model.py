"""A model with a head, for predicting: batches of sorted rows, packed where the family allows it."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from raybert.encoder.adapted import load_adapted
from raybert.encoder.adapter_folder import is_adapter
from raybert.encoder.batching import plan_batches
from raybert.encoder.loading import DTYPES, quiet_transformers
from raybert.tasks.examples import Examples
from raybert.tasks.heads import Head
from raybert.tasks.known import model_side
from raybert.tasks.outputs import take
from raybert.train.example_stream import ExampleMicro
from raybert.train.packed import pack

BATCH_TOKENS = {"cpu": 1024, "cuda": 32768}
"""Tokens of a batch where nothing is asked for, by device."""


class Predictor:
    """`predictor(examples)` is what the model gives for each, as numpy arrays.

    Args:
        path: the folder with config.json and the weights.
        dtype: a name in `raybert.encoder.loading.DTYPES`.
        device: cpu or cuda.
        batch_tokens: tokens in one forward pass, padding included where the family needs it.

    Raises:
        ValueError: weights of the model or its head are missing.
    """

    def __init__(
        self,
        path: Path,
        head: Head,
        *,
        dtype: str,
        device: str,
        batch_tokens: int,
        trust_remote_code: bool = False,
    ) -> None:
        side = model_side(head.task)
        plain = _load(side.AUTO, path, dtype, trust_remote_code)
        self._model: Any = side.Model(plain, head.settings).eval().requires_grad_(False).to(device)
        self._device, self._batch_tokens = device, batch_tokens
        outputs = plain.config.num_labels
        if outputs != len(head.labels):
            raise ValueError(f"model.name: {path} has {outputs} outputs for {len(head.labels)} labels")

    @property
    def padded(self) -> bool:
        """Whether batches are padded."""
        return self._model.padded

    def __call__(self, examples: Examples) -> dict[str, np.ndarray]:
        """Float32 arrays by name, in the order of the examples: {"logits": [n, labels]} of sequences, or of a task that
        predicts for tokens [tokens, labels]."""
        if not len(examples):
            return {"logits": np.zeros((0, self._model.plain.config.num_labels), np.float32)}
        lengths = examples.ids.lengths
        batches = plan_batches(lengths, self._batch_tokens, padded=self.padded)
        # ascending within a batch, so that `pack` keeps the order
        parts = [(rows[::-1], self._run(examples.take(rows[::-1]))) for rows in batches]
        order = np.concatenate([rows for rows, _ in parts])
        found = np.concatenate([part for _, part in parts])
        return {"logits": take(found, lengths[order], np.argsort(order))}

    def computed_tokens(self, lengths: np.ndarray) -> int:
        """Tokens that go through the model for sequences of these lengths."""
        batches = plan_batches(lengths, self._batch_tokens, padded=self.padded)
        return sum(
            len(rows) * int(lengths[rows].max()) if self.padded else int(lengths[rows].sum())
            for rows in batches
        )

    @torch.inference_mode()
    def _run(self, examples: Examples) -> np.ndarray:
        batch = pack(ExampleMicro(examples), self._device)
        return self._model.logits(batch).float().cpu().numpy()


def _load(auto: Any, path: Path, dtype: str, trust_remote_code: bool) -> PreTrainedModel:
    with quiet_transformers():
        if is_adapter(path):
            return load_adapted(auto, path, DTYPES[dtype], trust_remote_code=trust_remote_code)
        plain, report = auto.from_pretrained(
            path,
            dtype=DTYPES[dtype],
            use_safetensors=True,
            trust_remote_code=trust_remote_code,
            output_loading_info=True,
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"model.name: the weights in {path} lack {len(missing)} of the model's, such as {missing[0]}"
        )
    return plain
