"""What decides the numbers, found out once on a worker: dtype, pooling, width, weights, tokenizer. Torch only there."""

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from raybert import __version__
from raybert.config import EmbedConfig, ModelSettings
from raybert.corpus.models import fetch_model
from raybert.corpus.pool import Pool, threads_of

# What `Encoder.load` is given of the resolved values.
_ENCODER_KEYS = (
    *("pooling", "dimensions", "layers", "prompt", "max_length"),
    *("dtype", "device", "threads", "batch_tokens", "kernels"),
)

# What it is given of the user's settings, and what it found.
_ASKED = {"pooling", "dimensions", "max_length", "dtype", "prompt_name", "prompt", "layers", "kernels"}
_FOUND = (
    *("dimension", "pooling", "max_length", "dtype", "device", "digest", "revision", "prompt"),
    *("layers", "normalized", "batch_tokens", "kernels", "kernels_note"),
)


def resolve(config: EmbedConfig, pool: Pool, sample: list[str]) -> tuple[dict[str, Any], str]:
    """Load the model on a worker and say what it turned out to be.

    Args:
        sample: texts to calibrate the scale of int8 vectors with.

    Returns:
        the resolved values (plain JSON) and the text of the tokenizer.

    Raises:
        ValueError: the model cannot be loaded as asked.
        RuntimeError: loading it fails or kills its process.
    """
    return on_workers(resolve_here, [(config, pool.cpus, sample)], pool, config.model.name)[0]


def on_workers(function: Any, calls: Sequence[tuple[Any, ...]], pool: Pool, model: str) -> list[Any]:
    """What `function`, which loads the model of this name, answers to each of the calls; every call in a worker.

    Raises:
        ValueError: as the function does.
        RuntimeError: any other failure, or the death of the worker's process.
    """
    import ray
    from ray.exceptions import RayError, RayTaskError

    task = ray.remote(max_retries=2, **pool.needs)(function)
    try:
        answers = [task.remote(*call) for call in calls]
        if not ray.wait(answers, timeout=30)[0]:
            print(
                f"raybert: waiting for a worker with {pool.cpus} free CPUs and {pool.gpus:g} GPUs to load the model",
                file=sys.stderr,
                flush=True,
            )
        return ray.get(answers)
    except RayTaskError as error:
        raise _failure(model, error.cause if isinstance(error.cause, Exception) else error) from None
    except RayError as error:
        raise _death(model, type(error).__name__) from error


class LocalResolve:
    """`resolve` in a process of its own on this machine, which works while a private Ray starts.

    Use as a context manager: leaving it ends the process.
    """

    def __init__(self, config: EmbedConfig, sample: list[str]) -> None:
        self._config = config
        self._process = subprocess.Popen(
            [sys.executable, "-c", "from raybert import resolve; resolve.answer()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # as in Ray's workers; what goes wrong comes back as the answer
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)},
        )
        try:
            pickle.dump((config, threads_of(config.workers), sample), self._process.stdin)
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it died: `result` says so

    def __enter__(self) -> "LocalResolve":
        return self

    def __exit__(self, *error: object) -> None:
        self._process.kill()
        self._process.wait()

    def result(self) -> tuple[dict[str, Any], str]:
        """As `resolve`, with the same errors."""
        out, _ = self._process.communicate()
        if self._process.returncode:
            raise _death(self._config.model.name, f"exit {self._process.returncode}")
        answer = pickle.loads(out)
        if isinstance(answer, Exception):
            raise _failure(self._config.model.name, answer)
        return answer


def answer() -> None:
    """The process of `LocalResolve`: arguments from stdin, the answer or the error to stdout."""
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints stays out of the answer
    config, threads, sample = pickle.load(sys.stdin.buffer)
    try:
        found: Any = resolve_here(config, threads, sample)
    except ValueError as error:
        found = ValueError(str(error))
    except Exception as error:
        found = RuntimeError(str(error) or type(error).__name__)
    with out:
        pickle.dump(found, out)


def _failure(model: str, cause: Exception) -> Exception:
    """What the user is told: a setting that cannot be used, or a model that does not load."""
    text = " ".join(str(cause).split())
    if isinstance(cause, ValueError):
        return ValueError(text)
    return RuntimeError(f"model.name={model} does not load: {text[:500]}")


def _death(model: str, how: str) -> RuntimeError:
    return RuntimeError(
        f"model.name={model}: the process that loads it died; is there enough memory? ({how})"
    )


def load_as_resolved(model: ModelSettings, resolved: Mapping[str, Any]) -> Any:
    """The encoder that the plan was made with.

    Raises ValueError when this machine cannot honour the plan: other weights, no GPU, no bfloat16.
    """
    prepare_process()
    import torch

    from raybert.encoder.hardware import cpu_has_bfloat16

    device = resolved["device"]
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("the plan was made for a GPU, and this worker has none; give workers.gpus")
    if (
        resolved["dtype"] == "bfloat16"
        and device == "cpu"
        and model.dtype == "auto"
        and not cpu_has_bfloat16()
    ):
        raise ValueError("the plan computes in bfloat16, which this worker's CPU lacks; set model.dtype")
    resolved = {"kernels": "transformers", **resolved}  # a folder from before there were others
    # the commit that a branch pointed to then, not where it points now
    encoder = _load(model, resolved["revision"], **{name: resolved[name] for name in _ENCODER_KEYS})
    if encoder.digest != resolved["digest"]:
        raise ValueError(
            f"the weights of {model.name} on this worker (digest {encoder.digest[:12]}) are not those of the plan "
            f"(digest {resolved['digest'][:12]}); put them back or use another output.path"
        )
    return encoder


def resolve_here(config: EmbedConfig, threads: int, sample: list[str]) -> tuple[dict[str, Any], str]:
    """`resolve` in this process; `threads` are those to compute with. Raises ValueError as it does."""
    from raybert.encoder.quantizing import int8_scale, quantize

    model = config.model
    prepare_process()
    encoder = _load(
        model,
        model.revision,
        **model.model_dump(include=_ASKED),
        threads=threads,
    )
    if config.batch_tokens != "auto":
        encoder.batch_tokens = config.batch_tokens
    if encoder.tokenizer_json is None:
        raise ValueError(
            f"model.name={model.name} has a tokenizer in Python only; bulk jobs need a tokenizer.json"
        )
    _check_room(config, encoder)
    scale = int8_scale(_calibration(encoder, sample)) if config.output.dtype == "int8" else None
    quantize(encoder.encode(["a"]), config.output.dtype, scale)  # fails now if the width does not fit
    resolved = {
        **{name: getattr(encoder, name) for name in _FOUND},
        "normalize": encoder.normalized,
        "dimensions": model.dimensions,
        "threads": threads,
        "stored_dtype": config.output.dtype,
        "scale": scale,
        "versions": versions(),
    }
    return resolved, encoder.tokenizer_json


def _check_room(config: EmbedConfig, encoder: Any) -> None:
    """Special tokens and prompt must leave room for text, and a window must fit whole."""
    taken = len(encoder.tokenizer()([""]).ids(0))
    room = encoder.max_length - taken
    if room < 1:
        raise ValueError(
            f"model.prompt leaves no room for text: it takes {taken} of {encoder.max_length} tokens"
        )
    if config.chunk.size is not None and config.chunk.size > room:
        raise ValueError(
            f"chunk.size={config.chunk.size} does not fit: of model.max_length={encoder.max_length}, special tokens and "
            f"prompt take {taken}; use at most {room}"
        )


def _calibration(encoder: Any, sample: list[str]) -> Any:
    vectors = encoder.encode(sample)
    if len(vectors):
        return vectors
    raise ValueError("output.dtype=int8 is calibrated on texts of the corpus, and it has none; use float16")


def _load(model: ModelSettings, revision: str | None, **settings: Any) -> Any:
    from raybert.encoder import Encoder

    return Encoder.load(
        fetch_model(model.name),
        revision=revision,
        normalize=model.normalize,
        trust_remote_code=model.trust_remote_code,
        **settings,
    )


def prepare_process() -> None:
    """Before torch is imported: the plan's number of threads rules, not Ray's, and memory stays bounded.

    torch and oneDNN each keep compiled code for 1,024 shapes of bfloat16 products, 100 MB and more that a long job
    fills slowly; 64 are enough here.
    """
    os.environ.pop("OMP_NUM_THREADS", None)
    os.environ.setdefault("LRU_CACHE_CAPACITY", "64")
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")


def versions() -> dict[str, str]:
    """Of what decides the numbers."""
    import tokenizers
    import torch
    import transformers

    return {
        "raybert": __version__,
        "torch": str(torch.__version__),  # plain: a driver may have no torch
        "transformers": transformers.__version__,
        "tokenizers": tokenizers.__version__,
    }


def time_encoding(config: EmbedConfig, resolved: Mapping[str, Any], pool: Pool, tokenized: Any) -> float:
    """Tokens per second of one worker on a sample."""
    import ray

    task = ray.remote(**pool.needs)(_time_encoding)
    return ray.get(task.remote(config.model, dict(resolved), tokenized))


def _time_encoding(model: ModelSettings, resolved: Mapping[str, Any], tokenized: Any) -> float:
    encoder = load_as_resolved(model, resolved)
    encoder.encode_ids(tokenized)  # the first pass pays for allocations
    started = time.perf_counter()
    encoder.encode_ids(tokenized)
    return float(tokenized.lengths.sum()) / (time.perf_counter() - started)
