"""A transformers model and its tokenizer out of a folder: quietly, safetensors only, no foreign code unless allowed."""

import inspect
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as NormalizerSequence
from transformers import AutoConfig, AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

from raybert.encoder.adapted import load_adapted
from raybert.encoder.adapter_folder import is_adapter
from raybert.encoder.hardware import cpu_has_bfloat16

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model", "*.py")
DEFAULT_MAX_LENGTH = 512  # of a model that names no limit at all


def pick_device(device: str) -> str:
    """ "cuda" or "cpu" for "auto"; ValueError for a GPU that is not there."""
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if device.split(":")[0] not in ("cpu", "cuda"):
        raise ValueError(f"device is {device!r}; use auto, cpu or cuda")
    if device != "cpu" and not torch.cuda.is_available():
        raise ValueError(f"device is {device!r}, but torch sees no GPU; use device auto or cpu")
    return device


def pick_dtype(dtype: str, device: str) -> str:
    """bfloat16 for "auto" where the hardware multiplies it, float32 otherwise."""
    if dtype != "auto":
        if dtype not in DTYPES:
            raise ValueError(f"model.dtype is {dtype!r}; use auto, float32, bfloat16 or float16")
        return dtype
    if device != "cpu":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bfloat16" if cpu_has_bfloat16() else "float32"


def load_model(path: Path, dtype: str, device: str, *, trust_remote_code: bool) -> torch.nn.Module:
    """The encoder in eval mode. Weights missing from the files are an error, save those of the unused pooler."""
    _check_code(path, trust_remote_code)
    with quiet_transformers():
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    if config.is_encoder_decoder:
        raise ValueError(
            f"model.name: {path} is an encoder-decoder ({config.model_type}); only encoders are supported"
        )
    options: dict[str, Any] = {}
    kind = _model_class(config)
    if kind is not None and "add_pooling_layer" in inspect.signature(kind.__init__).parameters:
        options["add_pooling_layer"] = False
    if is_adapter(path):
        with quiet_transformers():
            model = load_adapted(
                AutoModel, path, DTYPES[dtype], trust_remote_code=trust_remote_code, **options
            )
    else:
        model = _load_plain(path, config, dtype, trust_remote_code, options)
    return model.eval().requires_grad_(False).to(device)


def _load_plain(path: Path, config: Any, dtype: str, trust_remote_code: bool, options: dict[str, Any]) -> Any:
    with quiet_transformers():
        model, report = AutoModel.from_pretrained(
            path,
            config=config,
            dtype=DTYPES[dtype],
            use_safetensors=True,
            output_loading_info=True,
            trust_remote_code=trust_remote_code,
            **options,
        )
    missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)
    if missing:
        raise ValueError(
            f"model.name: the weights in {path} lack {len(missing)} of the model's, such as {missing[0]}"
        )
    return model


def load_tokenizer(path: Path, *, do_lower_case: bool, trust_remote_code: bool) -> Any:
    """The transformers tokenizer; `do_lower_case` adds a Lowercase normalizer as sentence-transformers does."""
    _check_code(path, trust_remote_code)
    if not any(any(path.glob(name)) for name in _TOKENIZER_FILES):
        # transformers would invent one that knows no word
        raise ValueError(f"model.name: {path} has no tokenizer: none of {', '.join(_TOKENIZER_FILES)}")
    with quiet_transformers():
        try:
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
        except (OSError, ValueError, ImportError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ValueError(f"model.name: {path} has no tokenizer that can be loaded: {reason}") from error
    if do_lower_case and tokenizer.is_fast:
        backend = tokenizer.backend_tokenizer
        given = backend.normalizer
        parts = list(given) if isinstance(given, NormalizerSequence) else [given] if given is not None else []
        if not any(isinstance(part, Lowercase) for part in parts):
            backend.normalizer = NormalizerSequence([Lowercase(), *parts])
    return tokenizer


def position_limit(model: torch.nn.Module) -> int | None:
    """Longest input in tokens, special ones included; None for models without a limit.

    RoBERTa and its kin count positions from padding_idx + 1, so 514 embeddings make 512 positions. A prefix takes some.
    """
    taken = getattr(model, "prefix_tokens", 0)
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            return (
                module.num_embeddings - (0 if module.padding_idx is None else module.padding_idx + 1) - taken
            )
    limit = getattr(model.config, "max_position_embeddings", None)
    return limit if limit and limit > 0 else None


def pick_max_length(
    asked: int | None, model: torch.nn.Module, tokenizer: Any, max_seq_length: int | None
) -> int:
    """`asked`, or the least of what the folder, the tokenizer and the position embeddings allow."""
    positions = position_limit(model)
    if asked is not None:
        if positions is not None and asked > positions:
            raise ValueError(
                f"model.max_length is {asked}, but this model has {positions} positions; use at most that"
            )
        if asked < 1:
            raise ValueError(f"model.max_length is {asked}; it must be at least 1")
        return asked
    of_tokenizer = (
        tokenizer.model_max_length if tokenizer.model_max_length < 10**9 else None
    )  # 1e30 means unknown
    limits = [limit for limit in (max_seq_length, of_tokenizer, positions) if limit]
    return min(limits) if limits else DEFAULT_MAX_LENGTH


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars and no loading report; errors still come through. Settings are put back."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _check_code(path: Path, trust_remote_code: bool) -> None:
    """A model that transformers does not know needs the folder's own code, and that needs the user's word."""
    try:
        config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"model.name: {path / 'config.json'} cannot be read: {error}") from error
    kind = config.get("model_type")
    if kind in transformers.CONFIG_MAPPING or (trust_remote_code and "auto_map" in config):
        return
    if "auto_map" in config:
        raise ValueError(
            f"model.name: {path} runs its own code; read it, then set model.trust_remote_code to true"
        )
    raise ValueError(
        f"model.name: transformers {transformers.__version__} does not know model_type {kind!r} of {path}"
    )


def _model_class(config: Any) -> type | None:
    """The class AutoModel would choose; None for foreign code."""
    if type(config) not in transformers.MODEL_MAPPING:
        return None
    found = transformers.MODEL_MAPPING[type(config)]
    return found[0] if isinstance(found, (tuple, list)) else found
