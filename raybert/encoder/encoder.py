"""Encoder: a BERT-family model, its tokenizer and its pooling; texts in, vectors out, in one process."""

import inspect
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from raybert.encoder import loading, pooling, saving
from raybert.encoder.attention import Rows, to_device
from raybert.encoder.batching import computed_tokens, pack, plan_batches
from raybert.encoder.folders import Folder, read_folder, resolve
from raybert.encoder.head import build_head
from raybert.encoder.layers import PackedModel
from raybert.encoder.modern import ModernModel
from raybert.encoder.padded import PaddedModel
from raybert.encoder.tokenizing import SlowTokenizer, TextTokenizer, Tokenized

# A CPU works fastest on what its caches hold, a GPU on what fills it.
_BATCH_TOKENS = {"cpu": 1024, "cuda": 32768}


class Encoder:
    """Texts to vectors.

        encoder = Encoder.load("sentence-transformers/all-MiniLM-L6-v2")
        vectors = encoder.encode(["a text", "another"])  # float32 [2, 384], in the order given

    Made by `load`. Attributes, to be read only: `name` (as given), `revision` (commit of a hub model, else None),
    `dimension` (of the vectors), `max_length` (tokens, special ones included), `pooling`, `normalized`, `layers`,
    `dtype` ("float32", "bfloat16", "float16": of computing), `device`, `prompts` (name -> text), `prompt` (prepended
    by default), `batch_tokens` (tokens in one forward pass), `kernels` (see `load`),
    `kernels_note` (why not faster ones, "" if they are), `tokenizer_json` (None where the tokenizer is Python),
    `vocabulary_size` (token ids that the model knows), `hidden_size` (of the vector of a token).
    """

    @classmethod
    def load(
        cls,
        name_or_path: str | Path,
        *,
        revision: str | None = None,
        pooling: str = "auto",
        normalize: bool | str = "auto",
        dimensions: int | None = None,
        max_length: int | None = None,
        dtype: str = "auto",
        device: str = "auto",
        prompt_name: str | None = None,
        prompt: str | None = None,
        layers: str = "last",
        trust_remote_code: bool = False,
        batch_tokens: int | None = None,
        threads: int | None = None,
        kernels: str = "auto",
    ) -> Self:
        """Load a Hugging Face or sentence-transformers folder, or a name on the hub.

        "auto" takes what the folder says. A plain Hugging Face folder says neither pooling (then mean, with a
        warning) nor normalising (then not). `dimensions` cuts vectors to their first numbers and normalises them
        again if they were. `batch_tokens` None takes what suits the device, `threads` sets torch's threads for the
        whole process. `kernels` is by what the layers are computed: "native" (bfloat16 on a CPU, needs a C compiler),
        "onednn" (CPU) or "torch" on packed rows, for BERT and its kin and ModernBERT; "transformers" on padded ones
        for every other model; "auto" takes the first that works. "compiled" (GPU) lets torch's compiler make one
        program for full batches, in a minute. Raises ValueError naming the setting for anything that cannot be done.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        self = cls.__new__(cls)
        path, self.revision = resolve(name_or_path, revision, code=trust_remote_code)
        self._folder = folder = read_folder(path)
        folder.weights()  # says what to do about a folder without safetensors
        self.name = str(name_or_path)
        self.device = loading.pick_device(device)
        self.dtype = loading.pick_dtype(dtype, self.device)
        self.layers = layers
        self.pooling = _pick_pooling(pooling, folder, self.name)
        self.normalized = folder.normalized if normalize == "auto" else _boolean(normalize)
        self._head = build_head(folder.head).to(self.device)
        self._tokenizer = loading.load_tokenizer(
            folder.transformer, do_lower_case=folder.do_lower_case, trust_remote_code=trust_remote_code
        )
        model = loading.load_model(
            folder.transformer, self.dtype, self.device, trust_remote_code=trust_remote_code
        )
        self.hidden_size = model.config.hidden_size
        self.vocabulary_size: int = model.config.vocab_size
        self.max_length = loading.pick_max_length(max_length, model, self._tokenizer, folder.max_seq_length)
        self.batch_tokens = batch_tokens or _BATCH_TOKENS[self.device.partition(":")[0]]
        self._model = _pick_kernels(kernels, model, self._tokenizer, self.batch_tokens)
        self.kernels: str = self._model.kernels
        self.kernels_note: str = self._model.note
        self._set_up(prompt_name, prompt, dimensions)
        return self

    def _set_up(self, prompt_name: str | None, prompt: str | None, dimensions: int | None) -> None:
        """What follows from the model: its inputs, the tokenizers, the prompt, the width."""
        self.tokenizer_json: str | None = (
            self._tokenizer.backend_tokenizer.to_str() if self._tokenizer.is_fast else None
        )
        self._tokenizers: dict[str, TextTokenizer | SlowTokenizer] = {}
        self.prompts = dict(self._folder.prompts)
        self.prompt = ""  # what _pick_prompt falls back to
        self.prompt = self._pick_prompt(
            prompt_name or (None if prompt is not None else self._folder.default_prompt_name), prompt
        )
        self._dimensions = None
        # one tiny forward pass tells the width after layers, pooling and head, and fails early if they do not fit
        probe = self.tokenizer(prompt="")(["a"])
        self.width = self._sentences(probe, np.array([0])).shape[1]
        if dimensions is not None and not 1 <= dimensions <= self.width:
            raise ValueError(f"model.dimensions is {dimensions}; this model's vectors have 1 to {self.width}")
        self._dimensions = dimensions
        self.dimension = dimensions or self.width

    @cached_property
    def digest(self) -> str:
        """sha256 (hex) of everything in the folder that decides vectors: weights, tokenizer, configs."""
        return self._folder.digest()

    def tokenizer(
        self, prompt_name: str | None = None, prompt: str | None = None
    ) -> TextTokenizer | SlowTokenizer:
        """The tokenizer for a prompt (the default one with neither argument); picklable, needs no torch."""
        text = self._pick_prompt(prompt_name, prompt)
        if text not in self._tokenizers:
            if self.tokenizer_json is None:
                made = SlowTokenizer(self._tokenizer, max_length=self.max_length, prompt=text)
            else:
                side = self._tokenizer.truncation_side
                made = TextTokenizer(
                    self.tokenizer_json, max_length=self.max_length, prompt=text, truncation_side=side
                )
            self._tokenizers[text] = made
        return self._tokenizers[text]

    def encode(
        self,
        texts: str | Sequence[str],
        *,
        prompt_name: str | None = None,
        prompt: str | None = None,
        dimensions: int | None = None,
        normalize: bool | None = None,
        batch_tokens: int | None = None,
        output: str = "sentence",
    ) -> np.ndarray | list[np.ndarray]:
        """Vectors float32 [n, dimension] in the order of `texts`; equal texts are computed once.

        A single str counts as a list of one. None means as loaded. With output="tokens": a list of float32
        [tokens, hidden], special tokens and prompt included, not pooled, not normalised.
        """
        texts = _checked([texts] if isinstance(texts, str) else texts)
        rows: dict[str, int] = {}
        where = np.array([rows.setdefault(text, len(rows)) for text in texts], np.int64)
        tokenized = self.tokenizer(prompt_name, prompt)(list(rows))
        if output == "tokens":
            if dimensions is not None or normalize is not None:
                raise ValueError("output 'tokens' takes neither dimensions nor normalize")
            found = self.encode_token_ids(tokenized, batch_tokens=batch_tokens)
            return [found[row] for row in where]
        if output != "sentence":
            raise ValueError(f"output is {output!r}; use 'sentence' or 'tokens'")
        return self.encode_ids(
            tokenized, batch_tokens=batch_tokens, dimensions=dimensions, normalize=normalize
        )[where]

    def encode_ids(
        self,
        tokenized: Tokenized,
        *,
        batch_tokens: int | None = None,
        dimensions: int | None = None,
        normalize: bool | None = None,
    ) -> np.ndarray:
        """Vectors float32 [n, dimension] of texts already tokenized by `self.tokenizer(...)`, in their order.

        The same ids, batch_tokens and number of threads give the same bits.
        """
        dimensions = self._dimensions if dimensions is None else dimensions
        if dimensions is not None and not 1 <= dimensions <= self.width:
            raise ValueError(f"dimensions is {dimensions}; this model's vectors have 1 to {self.width}")
        normalize = self.normalized if normalize is None else normalize

        def run(rows: np.ndarray) -> Tensor:
            vectors = pooling.truncate(self._sentences(tokenized, rows), dimensions)
            return pooling.normalize(vectors) if normalize else vectors

        out = np.empty((len(tokenized), dimensions or self.width), np.float32)
        for rows, vectors in self._batches(tokenized, batch_tokens, run):
            out[rows] = vectors
        return out

    def computed_tokens(self, lengths: np.ndarray) -> int:
        """Tokens that go through the model for texts of these lengths: their own, and padding where there is any."""
        return computed_tokens(lengths, self.batch_tokens, padded=self.kernels == "transformers")

    def save(self, folder: str | Path) -> None:
        """Write a folder that sentence-transformers loads to the same vectors; ValueError where it has no way to."""
        saving.save(
            folder,
            self._folder,
            layers=self.layers,
            pooling=self.pooling,
            normalized=self.normalized,
            width=self.width,
            dimensions=self._dimensions,
            hidden=self.hidden_size,
            max_length=self.max_length,
            prompts=self.prompts,
            prompt=self.prompt,
        )

    def _pick_prompt(self, name: str | None, prompt: str | None) -> str:
        if prompt is not None:
            return prompt
        if name is None:
            return self.prompt
        if name not in self.prompts:
            known = ", ".join(self.prompts) or "none"
            raise ValueError(f"model.prompt_name {name!r} is not a prompt of {self.name}; it has: {known}")
        return self.prompts[name]

    def encode_token_ids(self, tokenized: Tokenized, *, batch_tokens: int | None = None) -> list[np.ndarray]:
        """As `encode` with output="tokens", of texts already tokenized."""
        found: list[np.ndarray] = [np.empty(0)] * len(tokenized)
        lengths = tokenized.lengths

        def run(rows: np.ndarray) -> Tensor:
            return self._hidden(tokenized, rows)[0].float()

        for rows, hidden in self._batches(tokenized, batch_tokens, run):
            for row, vectors in zip(rows, np.split(hidden, np.cumsum(lengths[rows])[:-1]), strict=True):
                found[row] = vectors.copy()  # a view would keep the whole batch alive
        return found

    def _batches(
        self, tokenized: Tokenized, batch_tokens: int | None, run: Callable[[np.ndarray], Tensor]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """(rows, result) of every batch. A GPU has the next batch to work on while a result is fetched."""
        if len(tokenized) and int(tokenized.lengths.max()) > self.max_length:
            raise ValueError(
                f"a text of {int(tokenized.lengths.max())} tokens exceeds max_length {self.max_length}"
            )
        budget, padded = batch_tokens or self.batch_tokens, self.kernels == "transformers"
        batches = plan_batches(tokenized.lengths, budget, padded=padded)
        if self.device == "cpu" and len(batches) > 1 and torch.get_num_threads() > 1:
            yield from _a_batch_a_thread(batches, run)
            return
        waiting: deque[tuple[np.ndarray, Callable[[], np.ndarray]]] = deque()
        for rows in batches:
            waiting.append((rows, _fetch(run(rows))))
            if len(waiting) > 1:
                rows, fetch = waiting.popleft()
                yield rows, fetch()
        for rows, fetch in waiting:
            yield rows, fetch()

    @torch.inference_mode()
    def _sentences(self, tokenized: Tokenized, rows: np.ndarray) -> Tensor:
        """float32 [b, width]: after pooling and head, before truncation and the last normalising."""
        hidden, placed = self._hidden(tokenized, rows)
        skip = 0
        if not self._folder.include_prompt:
            skip = (
                self.tokenizer().prompt_tokens if tokenized.prompt_tokens is None else tokenized.prompt_tokens
            )
        lengths = to_device(placed.lengths.astype(np.int64), self.device)
        return self._head(pooling.pool(hidden, lengths, self.pooling, skip=skip))

    @torch.inference_mode()
    def _hidden(self, tokenized: Tokenized, rows: np.ndarray) -> tuple[Tensor, Rows]:
        """Token vectors [tokens, hidden] of the chosen layers, text after text, and where each text lies."""
        ids = to_device(pack(tokenized.values, tokenized.offsets, rows), self.device)
        placed = Rows(tokenized.lengths[rows], self.device)
        if self.layers == "last":
            return self._model(ids, placed), placed
        return pooling.combine_layers(self._model(ids, placed, states=True), self.layers), placed


def _a_batch_a_thread(
    batches: Sequence[np.ndarray], run: Callable[[np.ndarray], Tensor]
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """(rows, result) of every batch, each computed by one of torch's threads: they need not wait for one another, as
    they would after every operation that they shared."""
    threads = torch.get_num_threads()
    waiting: deque[tuple[np.ndarray, Future[Tensor]]] = deque()
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            for rows in batches:
                waiting.append((rows, pool.submit(run, rows)))
                if len(waiting) > 2 * threads:
                    rows, result = waiting.popleft()
                    yield rows, result.result().numpy()
            for rows, result in waiting:
                yield rows, result.result().numpy()
    finally:
        torch.set_num_threads(threads)  # for this thread nothing changed, but for those to come it did


def _fetch(result: Tensor) -> Callable[[], np.ndarray]:
    """Start the copy of a result to the host; what is returned waits for that copy alone and not for later work."""
    if not result.is_cuda:
        return result.numpy
    host = torch.empty(result.shape, dtype=result.dtype, pin_memory=True)
    host.copy_(result, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def wait() -> np.ndarray:
        copied.synchronize()
        return host.numpy()

    return wait


def _pick_kernels(asked: str, model: Any, tokenizer: Any, batch_tokens: int) -> torch.nn.Module:
    if asked not in ("auto", "native", "onednn", "torch", "compiled", "transformers"):
        raise ValueError(f"kernels is {asked!r}; use auto, native, onednn, torch, compiled or transformers")
    adapted = getattr(model, "adapter_note", "")
    if asked != "transformers":
        made = None if adapted else PackedModel.of(model, asked, batch_tokens) or ModernModel.of(model, asked)
        if made is not None:
            return made
        if asked != "auto":
            raise ValueError(
                f"kernels {asked!r} are not there for this model ({adapted or model.config.model_type}) on this machine"
            )
    accepted = inspect.signature(model.forward).parameters
    token_types = "token_type_ids" in accepted and getattr(model.config, "type_vocab_size", 0) > 0
    pad_id = next((i for i in (tokenizer.pad_token_id, model.config.pad_token_id) if i is not None), 0)
    return PaddedModel(model, pad_id, token_types=token_types, note=adapted)


def _pick_pooling(asked: str, folder: Folder, name: str) -> str:
    if asked == "auto" and folder.pooling is None:
        warnings.warn(f"{name} does not say how it pools; taking the mean (set model.pooling)", stacklevel=3)
        return "mean"
    mode = (folder.pooling or "mean") if asked == "auto" else asked
    pooling.parse_pooling(mode)
    return mode


def _boolean(value: bool | str) -> bool:
    if not isinstance(value, bool):
        raise ValueError(f"model.normalize is {value!r}; use auto, true or false")
    return value


def _checked(texts: Sequence[str]) -> Sequence[str]:
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"texts[{i}] is {type(text).__name__}, not str")
    return texts
