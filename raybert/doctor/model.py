"""Whether a node has the model, the same as the others, and whether it loads. Runs on a node."""

import hashlib
import os
import time
from pathlib import Path
from typing import Any

from raybert.corpus.models import fetch_model
from raybert.encoder.folders import TOKENIZER_FILES, read_folder
from raybert.encoder.hub import resolve


def look(model: dict[str, Any]) -> dict[str, Any]:
    """The digest of a model's folder, without torch and without the hub.

    Args:
        model: `name`, `revision`, `code` and `tokenizer`: whether that is all that is needed.

    Returns `error`, and `hub` where the name may be one of the hub that this node has not in its cache.
    """
    try:
        path, revision = resolve(
            fetch_model(model["name"]), model["revision"], code=model["code"], cached=True
        )
        return {"digest": _digest(path, model["tokenizer"]), "revision": revision}
    except (OSError, ValueError) as error:
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
        local = "://" in model["name"] or model["name"].startswith(("/", "~", "."))
        return {"error": _said(error), "hub": not local, "offline": offline}


def ask_hub(model: dict[str, Any]) -> dict[str, Any]:
    """Whether the hub has the model, asked from this node."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(model["name"], revision=model["revision"], timeout=15)
    except Exception as error:  # of httpx, of the hub, of the name
        return {"error": _said(error)}
    return {}


def load(verb: str, config: Any) -> dict[str, Any]:
    """Load the model as the verb would, on one CPU thread; `found` tells what it is."""
    started = time.monotonic()
    try:
        found = _LOADERS[verb](config)
    except Exception as error:  # whatever a model's files make the libraries raise
        return {"error": _said(error)}
    return {**found, "seconds": round(time.monotonic() - started, 1)}


def _load_encoder(config: Any) -> dict[str, Any]:
    from raybert.resolve import resolve_here

    # float32: int8 would want texts to calibrate with
    plain = config.model_copy(update={"output": config.output.model_copy(update={"dtype": "float32"})})
    resolved, _ = resolve_here(plain, 1, [])
    what = f"{resolved['dimension']} dimensions, {resolved['dtype']} with {resolved['kernels']} kernels"
    return {"found": what, "note": resolved.get("kernels_note") or ""}


def _load_served(config: Any) -> dict[str, Any]:
    """A model of a service: one that makes vectors, or one with a head, for which its weights are read."""
    return _load_base(config)


def _load_head(config: Any) -> dict[str, Any]:
    from raybert.resolve_head import resolve_head

    resolved, _ = resolve_head(config, 1)
    return {"found": f"{resolved['task']}, {resolved['dtype']}", "note": ""}


def _load_tokenizer(config: Any) -> dict[str, Any]:
    from raybert.pretrain.tokenizer_folder import read_tokenizer

    path, _ = resolve(fetch_model(config.model.name), config.model.revision)
    return {"found": f"a tokenizer of {read_tokenizer(path).size:,} tokens", "note": ""}


def _load_base(config: Any) -> dict[str, Any]:
    from raybert.encoder.loading import load_model, load_tokenizer

    code = config.model.trust_remote_code
    path, _ = resolve(fetch_model(config.model.name), config.model.revision, code=code)
    at = read_folder(path).transformer
    load_tokenizer(at, do_lower_case=False, trust_remote_code=code)
    weights = load_model(at, "float32", "cpu", trust_remote_code=code)
    return {"found": f"{sum(p.numel() for p in weights.parameters()):,} weights", "note": ""}


_LOADERS = {
    "embed": _load_encoder,
    "prepare": _load_tokenizer,
    "pretrain": _load_base,
    "finetune": _load_base,
    "evaluate": _load_head,
    "predict": _load_head,
    "serve": _load_served,
}


def _digest(path: Path, tokenizer: bool) -> str:
    """Of all that decides a vector, or of the tokenizer's files alone."""
    if not tokenizer:
        return read_folder(path).digest()[:12]
    files = [path / name for name in TOKENIZER_FILES if (path / name).is_file()]
    if not files:
        raise ValueError(f"model.name: {path} has no tokenizer: none of {', '.join(TOKENIZER_FILES)}")
    total = hashlib.sha256()
    for file in files:
        total.update(file.name.encode() + b"\0" + file.read_bytes())
    return total.hexdigest()[:12]


def _said(error: BaseException) -> str:
    return " ".join(str(error).split())[:400] or type(error).__name__
