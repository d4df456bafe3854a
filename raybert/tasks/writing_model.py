"""What an encoder-decoder writes: transformers' own generation, in batches of sources of about one length."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch.nn.utils.rnn import pad_sequence
from transformers import EncoderDecoderModel

from raybert.encoder.batching import plan_batches
from raybert.encoder.loading import DTYPES, quiet_transformers
from raybert.tasks.encoder_decoder_model import set_writing
from raybert.tasks.examples import IGNORED, Examples
from raybert.tasks.generation import TARGET_TOKENIZER, texts_of
from raybert.tasks.heads import Head

_ROOM = 8  # without gradients so many times the tokens fit


class Predictor:
    """`predictor(examples)` is what the model writes for each, {"text": object [n]}. Arguments as those of
    `raybert.tasks.predictor_model.Predictor`; the head's settings say how it writes.

    Raises ValueError where weights are missing.
    """

    padded = True

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
        del trust_remote_code  # both halves are transformers' own
        with quiet_transformers():
            plain, report = EncoderDecoderModel.from_pretrained(
                path, dtype=DTYPES[dtype], use_safetensors=True, output_loading_info=True
            )
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"model.name: {path} lacks weights of the model: {', '.join(missing[:3])}")
        self._plain = plain.eval().requires_grad_(False).to(device)
        set_writing(plain, head.settings)
        self._batch_tokens = batch_tokens
        self._tokenizer = read_target_tokenizer(path)

    def __call__(self, examples: Examples) -> dict[str, np.ndarray]:
        """See the class."""
        tokens = write(self._plain, examples, batch_tokens=self._batch_tokens)
        return {"text": texts_of(tokens, self._tokenizer)}

    def computed_tokens(self, lengths: np.ndarray) -> int:
        """Tokens of sources that go through the encoder, padding included."""
        batches = _batches(self._plain, lengths, self._batch_tokens)
        return sum(len(rows) * int(lengths[rows].max()) for rows in batches)


def read_target_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer that a model folder's texts are read with."""
    own = path / TARGET_TOKENIZER / "tokenizer.json"
    return Tokenizer.from_file(str(own if own.is_file() else path / "tokenizer.json"))


@torch.no_grad()
def write(
    plain: Any, examples: Examples, *, batch_tokens: int, autocast: torch.dtype | None = None
) -> np.ndarray:
    """int64 [n, longest]: the token ids that the model writes, in the order of the examples, IGNORED behind the last; the token
    that ends a text is not among them.

    Args:
        plain: an EncoderDecoderModel in evaluation mode; what it computes with, `generation_config` apart, is left as it was.
        batch_tokens: tokens that fit in a pass with gradients; here more do.
        autocast: compute in this 16-bit type.
    """
    parts = []
    device, kind = plain.device, plain.device.type
    with _usual_attention(plain), torch.autocast(kind, dtype=autocast, enabled=autocast is not None):
        for rows in _batches(plain, examples.ids.lengths, batch_tokens):
            some = examples.take(rows)
            ids = [
                torch.from_numpy(part.astype(np.int64))
                for part in np.split(some.ids.values, some.ids.offsets[1:-1])
            ]
            padded = pad_sequence(ids, batch_first=True, padding_value=plain.config.encoder.pad_token_id or 0)
            inside = pad_sequence([torch.ones_like(row) for row in ids], batch_first=True)
            found = plain.generate(input_ids=padded.to(device), attention_mask=inside.to(device))
            parts.append((rows, _until_end(found[:, 1:].cpu().numpy(), plain.generation_config.eos_token_id)))
    longest = max((part.shape[1] for _, part in parts), default=0)
    tokens = np.full((len(examples), longest), IGNORED, np.int64)
    for rows, part in parts:
        tokens[rows, : part.shape[1]] = part
    return tokens


def _batches(plain: Any, lengths: np.ndarray, batch_tokens: int) -> list[np.ndarray]:
    """Neighbours in length; every beam keeps a text as long as may be written."""
    how = plain.generation_config
    written = how.max_new_tokens or how.max_length or 0
    tokens = (lengths + written) * (how.num_beams or 1)
    return plan_batches(tokens, batch_tokens * _ROOM, padded=True) if len(lengths) else []


def _until_end(tokens: np.ndarray, end: int | list[int]) -> np.ndarray:
    ended = np.isin(tokens, end).cumsum(1) > 0
    return np.where(ended, IGNORED, tokens)


@contextmanager
def _usual_attention(plain: Any) -> Iterator[None]:
    """Generation keeps keys and values in a cache, which attention on packed batches does not know."""
    halves = (plain.encoder, plain.decoder)
    was = [half.config._attn_implementation for half in halves]
    try:
        for half in halves:
            half.set_attn_implementation("sdpa")
        yield
    finally:
        for half, name in zip(halves, was, strict=True):
            half.set_attn_implementation(name)
