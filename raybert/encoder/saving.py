"""Write a sentence-transformers folder in its old dialect, the one every reader knows.

Weights, model config and tokenizer are copied byte for byte from the source, so they keep their precision whatever
the precision of computing; only what says how to pool is written anew.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from raybert.encoder.folders import POOLING_FLAGS, TOKENIZER_FILES, Folder

_CLASS = "sentence_transformers.models."


def save(
    folder: str | Path,
    source: Folder,
    *,
    layers: str,
    pooling: str,
    normalized: bool,
    width: int,
    dimensions: int | None,
    hidden: int,
    max_length: int,
    prompts: dict[str, str],
    prompt: str,
) -> None:
    """Write `source` with these settings to `folder` (made if need be, must not be the source).

    Raises ValueError for what the format cannot say: layers other than "last", poolings joined in another order
    than its own, and an existing folder that holds something else.
    """
    folder = Path(folder)
    _check(folder, source, layers, pooling)
    folder.mkdir(parents=True, exist_ok=True)
    _copy_transformer(source, folder)
    _write(
        folder / "sentence_bert_config.json",
        {"max_seq_length": max_length, "do_lower_case": source.do_lower_case},
    )
    _write(folder / "config_sentence_transformers.json", _prompt_config(prompts, prompt))
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    flags = {flag: mode in pooling.split("+") for flag, mode in POOLING_FLAGS.items()}
    _write(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": hidden, **flags, "include_prompt": source.include_prompt},
    )
    for module in source.head:
        path = f"{len(modules)}_{module.kind}"
        if module.path.is_dir():  # a Normalize in between may have none
            shutil.copytree(module.path, folder / path)
        modules.append((path, module.kind))
    if dimensions is not None and dimensions < width:
        path = f"{len(modules)}_Dense"
        _write_truncation(folder / path, width, dimensions)
        modules.append((path, "Dense"))
    if normalized:
        modules.append((f"{len(modules)}_Normalize", "Normalize"))
    entries = [
        {"idx": i, "name": str(i), "path": path, "type": _CLASS + kind}
        for i, (path, kind) in enumerate(modules)
    ]
    _write(folder / "modules.json", entries)


def _check(folder: Path, source: Folder, layers: str, pooling: str) -> None:
    if source.base is not None:
        raise ValueError(
            f"{source.path} is an adapter, which sentence-transformers cannot read; use the folder as it is"
        )
    if layers not in ("last", "-1"):
        raise ValueError(
            f"model.layers {layers!r} cannot be written to a sentence-transformers folder; only 'last' can"
        )
    modes = pooling.split("+")
    if modes != [mode for mode in POOLING_FLAGS.values() if mode in modes]:
        order = "+".join(mode for mode in POOLING_FLAGS.values() if mode in modes)
        raise ValueError(
            f"model.pooling {pooling!r} cannot be written to a sentence-transformers folder; {order!r} can"
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists and is not empty; save to a new folder")


def _copy_transformer(source: Folder, folder: Path) -> None:
    files = [*source.weights(), *source.transformer.glob("*.py")]
    files += [source.transformer / name for name in ("config.json", *TOKENIZER_FILES)]
    for file in files:
        if file.is_file():
            shutil.copyfile(file, folder / file.name)


def _prompt_config(prompts: dict[str, str], prompt: str) -> dict[str, Any]:
    """Prompts with the default one named; a default given as plain text gets the name "default"."""
    prompts = dict(prompts)
    default = next((name for name, text in prompts.items() if text == prompt), None) if prompt else None
    if prompt and default is None:
        default = "default"
        prompts[default] = prompt
    return {"prompts": prompts, "default_prompt_name": default}


def _write_truncation(path: Path, width: int, dimensions: int) -> None:
    """Keeping the first numbers, as a Dense module whose matrix is the first rows of the identity."""
    config = {
        "in_features": width,
        "out_features": dimensions,
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    _write(path / "config.json", config)
    save_file(
        {"linear.weight": torch.eye(dimensions, width)}, path / "model.safetensors", metadata={"format": "pt"}
    )


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
