"""A folder with an adapter and the name of the model that it belongs to, read without torch.

adapter_model.safetensors   what was trained: the adapter and the head
raybert_adapter.json        its settings; where its base lies, and the digest of that
config.json, tokenizer.json, ...   of the trained model, as in every model folder
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raybert.encoder.hub import resolve

RECORD, WEIGHTS = "raybert_adapter.json", "adapter_model.safetensors"

_BERT = ("attention.output.dropout", "output.dropout")
BOTTLENECK_PLACES: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert", "electra"), _BERT),
    "mpnet": ("attention.dropout", "output.dropout"),
    "distilbert": ("attention.out_lin", "ffn.dropout"),
    "modernbert": ("attn.out_drop", "mlp.Wo"),
}
"""By family what comes last in a layer's attention and in its feed-forward part, before the sum with the part's input: there
a bottleneck is put."""


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter and no model of its own."""
    return (path / RECORD).is_file()


def read_record(path: Path) -> dict[str, Any]:
    """`settings` (see `raybert.train.adapters.Adapter`), `architecture`, and `base`: `name`, `revision` (of a hub model),
    `beside` (the way from this folder to a local base) and `digest` (of `raybert.encoder.folders.Folder`).

    Raises:
        ValueError: the file is missing, or none of ours.
    """
    try:
        record = json.loads((path / RECORD).read_text(encoding="utf-8"))
        names = {"name", "digest"} - record["base"].keys() or {"name"} - record["settings"].keys()
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"model.name: {path / RECORD} cannot be read: {error!r}") from error
    if names:
        raise ValueError(f"model.name: {path / RECORD} lacks {names.pop()}")
    return record


def find_base(path: Path, base: Mapping[str, Any]) -> Path:
    """The folder of the model that the adapter in `path` belongs to: where it lay, or as far from here as it was then.

    Raises:
        ValueError: it is in neither place, and on no hub.
    """
    name, beside = str(base["name"]), base.get("beside")
    if not Path(name).is_dir() and beside and (path / beside).is_dir():
        return (path / beside).resolve()
    try:
        return resolve(name, base.get("revision"))[0]
    except ValueError as error:
        also = f" nor {path / beside}" if beside else ""
        raise ValueError(
            f"model.name: the adapter in {path} belongs to the model {name}, which is not there{also}; put it back ({error})"
        ) from error


def positions_taken(path: Path) -> int:
    """How many positions of the model are those of the prefix in this folder; 0 where there is none."""
    if not is_adapter(path):
        return 0
    settings = read_record(path)["settings"]
    return int(settings["tokens"]) if settings["name"] == "prefix" else 0


def way_to(base: str, target: str) -> str | None:
    """The way from a folder `target` to a local folder `base`; None where one of them is not on this machine."""
    if "://" in target or not os.path.isdir(base):
        return None
    return os.path.relpath(base, target)
