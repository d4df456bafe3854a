"""The encoder of a replica: texts to token ids in one thread, ids to vectors in another."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch

from raybert.encoder.encoder import Encoder
from raybert.encoder.tokenizing import TextTokenizer, Tokenized
from raybert.serve import openai, tei
from raybert.serve.batcher import Part, measured_rate
from raybert.serve.errors import ApiError, invalid
from raybert.serve.tokens import Tokens
from raybert.tasks.bi_encoder import DOCUMENT_PROMPTS
from raybert.tasks.words import offsets_of

_MOST_NUMBERS = 2**24  # in an answer with a vector for every token
_LEAST_TOKENS = 64  # that a thread of the CPU is given of its own


@dataclass(frozen=True)
class Way:
    """How a text becomes what is asked for: the prompt before it, whether all its tokens are wanted, and whether one that is
    too long loses its beginning."""

    prompt: str
    every_token: bool = False
    cut_left: bool = False


class EncoderEngine:
    """What a `Batcher` runs for an encoder. A row's result is float32 [width], neither cut nor normalised, or with
    `Way.every_token` float32 [tokens, hidden]."""

    routes: ClassVar = {**openai.ROUTES, **tei.ENCODER_ROUTES}
    windows = False

    def __init__(self, encoder: Encoder, threads: int) -> None:
        self.encoder = encoder
        self.max_length = encoder.max_length
        self.tokens = Tokens(encoder.tokenizer_json, encoder.name)
        self._cutting_left: dict[str, TextTokenizer] = {}
        self._threads = threads if encoder.device == "cpu" else 1

    @property
    def step_tokens(self) -> int:
        """Tokens of a step: a batch for every thread."""
        return self.encoder.batch_tokens * self._threads

    def info(self) -> dict[str, Any]:
        """What TEI's /info tells of it, and what else decides its vectors."""
        encoder = self.encoder
        return {
            "model_id": encoder.name,
            "model_sha": encoder.revision or encoder.digest,
            "model_dtype": encoder.dtype,
            "model_type": {"embedding": {"pooling": encoder.pooling}},
            "max_input_length": encoder.max_length,
            "max_batch_tokens": self.step_tokens,
            "dimension": encoder.dimension,
            "normalized": encoder.normalized,
            "prompts": sorted(encoder.prompts),
            "device": encoder.device,
            "kernels": encoder.kernels,
        }

    @property
    def prompts(self) -> Mapping[str, str]:
        """Of the model, by name."""
        return self.encoder.prompts

    @property
    def document_prompt(self) -> str | None:
        """The name of the prompt that the model has for documents; None for none."""
        return next((name for name in DOCUMENT_PROMPTS if name in self.prompts), None)

    def way(self, prompt_name: str | None, *, every_token: bool = False, side: str | None = None) -> Way:
        """`side` "left" cuts the beginning of a text that is too long; None cuts what the model's tokenizer cuts.

        Raises ApiError 400 for a prompt that the model does not have.
        """
        prompt = self.encoder.prompt
        if prompt_name is not None:
            if prompt_name not in self.prompts:
                known = ", ".join(sorted(self.prompts)) or "none"
                raise invalid(
                    f"prompt_name {prompt_name[:100]!r} is not a prompt of the model; it has: {known}",
                    "prompt_name",
                )
            prompt = self.prompts[prompt_name]
        left = side is not None and side.lower() == "left"
        if left and self.encoder.tokenizer_json is None:
            raise invalid(
                "truncation_direction: the tokenizer of this model cuts the end only", "truncation_direction"
            )
        return Way(prompt, every_token, left)

    def check_dimensions(self, dimensions: int | None) -> None:
        """Raise ApiError 400 for more than the vectors have."""
        most = self.encoder.dimension
        if dimensions is not None and dimensions > most:
            raise invalid(f"dimensions is {dimensions}; the model has {most}", "dimensions")

    def probe(self) -> tuple[list[str], Way]:
        """See `raybert.serve.model.Engine`."""
        return ["a"], self.way(None)

    def computed_tokens(self, lengths: np.ndarray) -> int:
        """Padding included."""
        return self.encoder.computed_tokens(lengths)

    def tokenize(self, texts: Sequence[Any], way: Way) -> Tokenized:
        """Token ids of texts, cut to the longest length; lists of token ids are taken as they are."""
        if texts and not isinstance(texts[0], str):
            return openai.as_tokenized(texts)
        made = self._tokenizer(way)(texts)
        if way.every_token and len(made.values) * self.encoder.hidden_size > _MOST_NUMBERS:
            most = _MOST_NUMBERS // self.encoder.hidden_size
            raise ApiError(
                413,
                f"inputs have {len(made.values)} tokens; a vector for each is answered for {most} at a time",
                "inputs",
            )
        return made

    def _tokenizer(self, way: Way) -> Any:
        if not way.cut_left:
            return self.encoder.tokenizer(prompt=way.prompt)
        if way.prompt not in self._cutting_left:
            self._cutting_left[way.prompt] = TextTokenizer(
                self.encoder.tokenizer_json or "",
                max_length=self.max_length,
                prompt=way.prompt,
                truncation_side="left",
            )
        return self._cutting_left[way.prompt]

    def run(self, way: Way, parts: Sequence[Part]) -> list[Sequence[Any]]:
        """See `raybert.serve.batcher.Run`."""
        together = _join(parts)
        counts = [end - first for _, first, end in parts]
        total = int(together.offsets[-1])
        share = max(_LEAST_TOKENS, -(-total // self._threads))
        budget = min(self.encoder.batch_tokens, share)
        with _threads(1 if total <= _LEAST_TOKENS else self._threads):
            if way.every_token:
                found: Any = self.encoder.encode_token_ids(together, batch_tokens=budget)
            else:
                found = self.encoder.encode_ids(
                    together, batch_tokens=budget, dimensions=self.encoder.width, normalize=False
                )
        ends = np.cumsum(counts)
        return [found[end - count : end] for end, count in zip(ends, counts, strict=True)]

    def finish(self, rows: Sequence[np.ndarray], dimensions: int | None, normalize: bool) -> np.ndarray:
        """float32 [n, dimensions]: results cut, and scaled to length 1 (as `raybert.encoder.pooling` does)."""
        vectors = np.stack(rows) if len(rows) else np.zeros((0, self.encoder.width), np.float32)
        vectors = vectors[:, : dimensions or self.encoder.dimension]
        if normalize:
            vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        return np.ascontiguousarray(vectors, np.float32)

    def warm_up(self) -> float:
        """Tokens a second of full steps."""
        way = Way(self.encoder.prompt)
        text = "a " * min(self.encoder.max_length // 2, 62)
        rows = max(1, self.step_tokens // int(self.tokenize([text], way).lengths[0]))
        return measured_rate(self.run, way, self.tokenize([text] * rows, way))


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Torch's threads, meanwhile. So few tokens are done before several threads have waited for one another."""
    before = torch.get_num_threads()
    if count >= before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _join(parts: Sequence[Part]) -> Tokenized:
    """The rows of some parts, one after the other."""
    values, lengths, truncated = [], [], []
    for tokens, first, end in parts:
        values.append(tokens.values[tokens.offsets[first] : tokens.offsets[end]])
        lengths.append(tokens.lengths[first:end])
        truncated.append(tokens.truncated[first:end])
    offsets = offsets_of(np.concatenate(lengths))
    return Tokenized(np.concatenate(values), offsets, np.concatenate(truncated), parts[0][0].prompt_tokens)
