"""The tokenizer that token shards are made with: its special ids, and its files to lay beside them."""

import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


@dataclass(frozen=True)
class TokenizerFolder:
    """A tokenizer as plain values (JSON through `asdict`): `files` are those of a Hugging Face tokenizer folder."""

    files: dict[str, str]
    size: int
    cls: int
    sep: int
    mask: int
    pad: int
    special: list[int]

    @property
    def json(self) -> str:
        """The text of tokenizer.json."""
        return self.files["tokenizer.json"]

    def as_dict(self) -> dict[str, Any]:
        """For a JSON file; `TokenizerFolder(**values)` is the way back."""
        return asdict(self)


def read_tokenizer(path: Path) -> TokenizerFolder:
    """The tokenizer of a model folder, or of one that holds a vocab.txt alone (then lower-cased WordPiece, as BERT's).

    Raises ValueError for a folder without a tokenizer that knows [CLS], [SEP] and [MASK] or their like.
    """
    tokenizer = _load(path)
    if not tokenizer.is_fast:
        raise ValueError(f"model.name: the tokenizer of {path} is Python only; a tokenizer.json is needed")
    named = {name: getattr(tokenizer, f"{name}_token_id") for name in ("cls", "sep", "mask", "pad")}
    missing = [name for name, number in named.items() if number is None]
    if missing:
        raise ValueError(
            f"model.name: the tokenizer of {path} has no {missing[0]} token; pretraining needs it"
        )
    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        files = {name: Path(folder, name).read_text() for name in FILES if Path(folder, name).exists()}
    return TokenizerFolder(files, len(tokenizer), **named, special=sorted(set(tokenizer.all_special_ids)))


def _load(path: Path) -> Any:
    from transformers import AutoTokenizer, BertTokenizerFast
    from transformers.utils import logging

    logging.set_verbosity_error()
    try:
        if (path / "vocab.txt").exists() and not any(
            (path / name).exists() for name in ("config.json", "tokenizer.json", "tokenizer_config.json")
        ):
            return BertTokenizerFast(str(path / "vocab.txt"))
        return AutoTokenizer.from_pretrained(path)
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"model.name: {path} has no tokenizer that can be loaded: {reason}") from error
