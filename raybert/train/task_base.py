"""The model that a fine-tuning run begins with: its shape, and its tokenizer with what tasks add. Without torch."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from raybert.config.finetune import FinetuneConfig
from raybert.encoder.folders import Folder, read_folder, resolve
from raybert.pretrain.tokenizer_folder import read_tokenizer
from raybert.tasks.heads import longest_input
from raybert.tasks.known import data_side
from raybert.train.combinations import refuse_family


@dataclass(frozen=True)
class Base:
    """The model to begin with: its folder and the commit of one of the hub, its config.json, its tokenizer with the tasks'
    own tokens (`new_tokens`), the tokenizer's files, and the longest row in tokens."""

    folder: Folder
    revision: str | None
    shape: Mapping[str, Any]
    tokenizer: Tokenizer
    new_tokens: list[int]
    files: Mapping[str, str]
    longest: int


def read_base(config: FinetuneConfig, tasks: Sequence[Any]) -> Base:
    """The model that the settings name, with what these tasks add to its tokenizer."""
    place, revision = resolve(config.model.name, config.model.revision, code=config.model.trust_remote_code)
    folder = read_folder(place)
    if folder.base is not None:
        raise ValueError(
            f"model.name={config.model.name} is an adapter; begin with its base, {folder.base.path}, or with a model that was "
            "trained as a whole"
        )
    path = folder.transformer
    shape = _shape(path)
    refuse_family(config, shape)
    words = read_tokenizer(path)
    tokenizer = Tokenizer.from_str(words.json)
    files, known = dict(words.files), set(tokenizer.get_vocab().values())
    for task in tasks:
        if hasattr(side := data_side(task.name), "add_markers"):
            side.add_markers(tokenizer, task)
            files["tokenizer.json"] = tokenizer.to_str(pretty=True)
    new = sorted(set(tokenizer.get_vocab().values()) - known)
    taken = config.adapter.tokens if config.adapter.name == "prefix" else 0
    longest = longest_input(shape, config.model.max_length, None, config.model.name, taken=taken)
    return Base(folder, revision, shape, tokenizer, new, files, longest)


def refuse_other_head(config: FinetuneConfig, shape: Mapping[str, Any], labels: list[str]) -> None:
    """Raise ValueError for elastic weights of a model without the head of its earlier task, which tells what that needs."""
    if shape.get("label2id") != {label: i for i, label in enumerate(labels)}:
        raise ValueError(
            "regularize.ewc needs a model that was trained for the earlier task, with the labels of data.path; "
            f"{config.model.name} has no head for them"
        )


def _shape(path: Path) -> dict[str, Any]:
    try:
        return json.loads((path / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"model.name: {path / 'config.json'} cannot be read: {error}") from error
