"""What a model folder says: Hugging Face and sentence-transformers folders, read without torch.

Both dialects of sentence-transformers are understood: modules are told by the last component of their class path
(`sentence_transformers.models.Pooling`, `sentence_transformers.sentence_transformer.modules.pooling.Pooling`), and
pooling by the boolean `pooling_mode_*` keys or the newer `pooling_mode`.
"""

import hashlib
import json
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, Optional

from raybert.encoder.adapter_folder import WEIGHTS, find_base, is_adapter, read_record
from raybert.encoder.hub import resolve

__all__ = ["Folder", "HeadModule", "read_folder", "resolve"]

# sentence-transformers' names and ours, in the order in which it concatenates them
ST_POOLINGS = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean",
    "lasttoken": "last",
}
POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "last",
}
HEAD_KINDS = ("Dense", "LayerNorm", "Normalize")
TOKENIZER_FILES = (
    "added_tokens.json",
    "merges.txt",
    "sentencepiece.bpe.model",
    "special_tokens_map.json",
    "spiece.model",
    "spm.model",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "vocab.json",
    "vocab.txt",
)


@dataclass(frozen=True)
class HeadModule:
    """One module after pooling: `kind` is one of HEAD_KINDS, `path` its folder, `config` its config.json."""

    kind: str
    path: Path
    config: dict[str, Any]


@dataclass(frozen=True)
class Folder:
    """A model folder's settings. `transformer` is where the weights and the tokenizer lie; `pooling` is None where
    the folder does not say, else read from `pooling_path`; `head` holds the modules after pooling without the trailing Normalize, which is
    `normalized`; `max_seq_length` and `do_lower_case` are those of sentence_bert_config.json. A folder with an adapter has
    the settings of its `base`."""

    path: Path
    transformer: Path
    pooling: str | None = None
    pooling_path: Path | None = None
    include_prompt: bool = True
    head: tuple[HeadModule, ...] = ()
    normalized: bool = False
    prompts: dict[str, str] = field(default_factory=dict)
    default_prompt_name: str | None = None
    max_seq_length: int | None = None
    do_lower_case: bool = False
    base: Optional["Folder"] = None

    def weights(self) -> list[Path]:
        """The safetensors files of the transformer; ValueError where there are none."""
        if self.base is None:
            return weight_files(self.transformer)
        if not (self.transformer / WEIGHTS).is_file():
            raise ValueError(f"model.name: {self.transformer} holds no {WEIGHTS}")
        self.base.weights()
        return [self.transformer / WEIGHTS]

    def deciding_files(self) -> list[Path]:
        """Every file that decides a vector, sorted by its path inside the folder."""
        files = [*self.weights(), self.transformer / "config.json", *self.transformer.glob("*.py")]
        files += [self.transformer / name for name in TOKENIZER_FILES]
        if self.base is not None:
            return sorted((file for file in files if file.is_file()), key=lambda file: self._inside(file))
        files += self.transformer.glob("sentence_*_config.json")
        files.append(self.transformer / "target_tokenizer" / "tokenizer.json")
        files += [self.path / "modules.json", self.path / "config_sentence_transformers.json"]
        if self.pooling_path is not None:
            files.append(self.pooling_path / "config.json")
        for module in self.head:
            files += [module.path / "config.json", module.path / "model.safetensors"]
        return sorted({file for file in files if file.is_file()}, key=lambda file: self._inside(file))

    def digest(self) -> str:
        """sha256 (hex) over names, sizes and bytes of `deciding_files`, and those of the base; the same wherever they lie."""
        total = hashlib.sha256(b"" if self.base is None else self.base.digest().encode())
        for file in self.deciding_files():
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            total.update(f"{self._inside(file)}\0{file.stat().st_size}\0{content}\n".encode())
        return total.hexdigest()

    def _inside(self, file: Path) -> str:
        return file.relative_to(self.path).as_posix()


def weight_files(path: Path) -> list[Path]:
    """model.safetensors, or the shards of its index; ValueError naming the fix where there are none."""
    single, index = path / "model.safetensors", path / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        return [index, *(path / name for name in sorted(set(_json(index)["weight_map"].values())))]
    if (path / "pytorch_model.bin").is_file() or (path / "pytorch_model.bin.index.json").is_file():
        raise ValueError(
            f"model.name: {path} has only pytorch_model.bin, which can run code when read; convert it where you trust it: "
            f"python -c \"from transformers import AutoModel as A; A.from_pretrained('{path}').save_pretrained('{path}')\""
        )
    raise ValueError(f"model.name: {path} holds no model.safetensors")


def read_folder(path: str | Path) -> Folder:
    """Read a folder's settings; ValueError naming the file for what cannot be done as it says."""
    path = Path(path)
    if is_adapter(path):
        return _with_adapter(path)
    listed = path / "modules.json"
    if not listed.is_file():
        if not (path / "config.json").is_file():
            raise ValueError(
                f"model.name: {path} is no model folder: it has neither modules.json nor config.json"
            )
        return Folder(path=path, transformer=path, **_sentence_config(path))
    modules = [(_kind(entry, path), _subfolder(path, entry.get("path", ""))) for entry in _json(listed)]
    modules = [module for module in modules if module[0] != "Dropout"]  # does nothing outside training
    kinds = [kind for kind, _ in modules]
    if kinds[:1] != ["Transformer"] or "Transformer" in kinds[1:] or "Pooling" in kinds[2:]:
        raise ValueError(
            f"{listed}: modules {', '.join(kinds)} are not a Transformer, a Pooling and what follows it"
        )
    transformer = modules[0][1]
    settings = {**_sentence_config(transformer), **_prompts(path)}
    rest = modules[1:]
    if kinds[1:2] == ["Pooling"]:
        settings |= _pooling(rest[0][1])
        rest = rest[1:]
    while rest and rest[-1][0] == "Normalize":
        settings["normalized"] = True
        rest = rest[:-1]
    head = tuple(HeadModule(kind, at, _json(at / "config.json", missing={})) for kind, at in rest)
    return Folder(path=path, transformer=transformer, head=head, **settings)


def _with_adapter(path: Path) -> Folder:
    """The settings of the base, with the weights and the tokenizer of the adapter's folder."""
    base = read_folder(find_base(path, read_record(path)["base"]))
    if base.base is not None:
        raise ValueError(f"model.name: the base of the adapter in {path} is an adapter itself, {base.path}")
    return replace(base, path=path, transformer=path, base=base)


def _kind(entry: dict[str, Any], path: Path) -> str:
    """Name of a module's class, if it is one of ours to read."""
    name = str(entry.get("type", ""))
    kind = name.rsplit(".", 1)[-1]
    if not name.startswith("sentence_transformers.") or kind not in (
        "Transformer",
        "Pooling",
        "Dropout",
        *HEAD_KINDS,
    ):
        raise ValueError(f"{path / 'modules.json'}: module {name!r} is not supported")
    return kind


def _subfolder(path: Path, name: str) -> Path:
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts:
        raise ValueError(f"{path / 'modules.json'}: path {name!r} leaves the folder")
    return path / name


def _pooling(path: Path) -> dict[str, Any]:
    config = _json(path / "config.json")
    modes = config.get("pooling_mode")
    if modes is None:
        # no flag at all means mean, as in sentence-transformers
        modes = [mode for flag, mode in POOLING_FLAGS.items() if config.get(flag)] or ["mean"]
    else:
        modes = [modes] if isinstance(modes, str) else modes
        for mode in modes:
            if mode not in ST_POOLINGS:
                raise ValueError(f"{path / 'config.json'}: pooling_mode {mode!r} is not supported")
        modes = [ST_POOLINGS[mode] for mode in modes]
    include = bool(config.get("include_prompt", True))
    return {"pooling": "+".join(modes), "pooling_path": path, "include_prompt": include}


def _sentence_config(path: Path) -> dict[str, Any]:
    """max_seq_length and do_lower_case of the Transformer module."""
    found = sorted(path.glob("sentence_*_config.json"))  # sentence_bert_, older: sentence_roberta_, ...
    config = _json(found[0]) if found else {}
    if any(config.get("processing_kwargs", {}).values()):
        raise ValueError(f"{found[0]}: processing_kwargs is not supported")
    return {
        "max_seq_length": config.get("max_seq_length"),
        "do_lower_case": bool(config.get("do_lower_case", False)),
    }


def _prompts(path: Path) -> dict[str, Any]:
    config = _json(path / "config_sentence_transformers.json", missing={})
    prompts = {name: text or "" for name, text in (config.get("prompts") or {}).items()}
    default = config.get("default_prompt_name")
    if default is not None and default not in prompts:
        raise ValueError(
            f"{path / 'config_sentence_transformers.json'}: default_prompt_name {default!r} has no prompt"
        )
    return {"prompts": prompts, "default_prompt_name": default}


def _json(path: Path, missing: dict[str, Any] | None = None) -> Any:
    if missing is not None and not path.is_file():
        return missing
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
