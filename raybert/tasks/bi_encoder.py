"""What a model folder says of vectors of texts: how they are pooled, what is put before a text. Without torch."""

import json
from typing import Any, TypeVar

from raybert.encoder.folders import ST_POOLINGS, Folder

S = TypeVar("S", bound=Any)

DOCUMENT_PROMPTS = ("document", "passage", "corpus")
"""What published models call the prompt of documents."""


def settle_pooling(settings: S, folder: Folder) -> S:
    """Settings with the pooling that `auto` stands for. Raises ValueError for one that there is not, or that does not fit."""
    pooling = (folder.pooling or "mean") if settings.pooling == "auto" else settings.pooling
    known = tuple(ST_POOLINGS.values())
    for one in pooling.split("+"):
        if one not in known:
            raise ValueError(
                f"task.pooling={pooling}: {one!r} is none of {', '.join(known)} (join several with '+')"
            )
    if folder.head and pooling != folder.pooling:
        raise ValueError(
            f"task.pooling={pooling}: model.name has a {folder.head[0].kind} module behind its pooling "
            f"{folder.pooling}; leave task.pooling out"
        )
    if folder.do_lower_case:
        raise ValueError(
            "model.name: its sentence_bert_config.json asks for do_lower_case, which is not done in training; "
            "take a model whose tokenizer does that"
        )
    return settings.model_copy(update={"pooling": pooling})


def settle_prompts(settings: S, folder: Folder, **names: tuple[str, ...]) -> S:
    """Settings with the prompts that None stands for: for each field the first prompt of the folder among names, else "".

    Raises ValueError for a prompt where the folder leaves prompts out of its pooling.
    """
    found = {}
    for field, known in names.items():
        given = getattr(settings, field)
        named = next((folder.prompts[name] for name in known if name in folder.prompts), "")
        found[field] = named if given is None else given
        if found[field] and not folder.include_prompt:
            raise ValueError(
                f"task.{field}={found[field]!r}: model.name leaves prompts out of its pooling (include_prompt), which "
                f"is not done in training; set task.{field}= to nothing, or take another model"
            )
    return settings.model_copy(update=found)


def default_prompt(folder: Folder) -> tuple[str, ...]:
    """The name of the folder's default prompt, if it has one: for `settle_prompts`."""
    return () if folder.default_prompt_name is None else (folder.default_prompt_name,)


def width_of(folder: Folder, pooling: str) -> int:
    """Numbers in a vector: of the last Dense module, else of the hidden states that are pooled."""
    for module in reversed(folder.head):
        if module.kind == "Dense":
            return int(module.config["out_features"])
    shape = json.loads((folder.transformer / "config.json").read_text(encoding="utf-8"))
    return int(shape.get("hidden_size") or shape["dim"]) * len(pooling.split("+"))
