"""Settings: one frozen tree, the same key in Python, YAML and on the command line; an unknown key is an error that names it."""

import difflib
import json
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)


class ConfigError(ValueError):
    """A setting that cannot be used as it stands. The message is one line that names the setting and the fix."""


class Settings(BaseModel):
    """A frozen group of settings; unknown keys are refused; dotted keys (`{"model.name": ...}`) are understood."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _nest(cls, values: Any) -> Any:
        return nested(values) if isinstance(values, Mapping) else values


class ModelSettings(Settings):
    """The encoder and how a text becomes a vector."""

    name: str = Field("", description="folder or Hugging Face hub name of the model; required")
    revision: str | None = Field(None, description="branch, tag or commit of a hub model")
    pooling: Literal["auto", "cls", "mean", "max", "last"] = Field(
        "auto", description="token vectors to one vector; auto reads the model folder, else mean"
    )
    normalize: bool | Literal["auto"] = Field(
        "auto", description="scale vectors to length 1; auto reads the model folder, else false"
    )
    dimensions: int | None = Field(None, ge=1, description="keep the first n dimensions, then re-normalise")
    max_length: int | None = Field(
        None, ge=3, description="tokens of a text, special ones included; default: the model's"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="of computing; auto: bfloat16 where the hardware has it, else float32"
    )
    kernels: Literal["auto", "native", "onednn", "torch", "compiled", "transformers"] = Field(
        "auto",
        description="by what the layers are computed; auto takes the fastest that works: native (bfloat16 on a CPU, "
        "needs a C compiler), onednn (CPU), torch, else transformers; compiled is for a GPU",
    )
    prompt_name: str | None = Field(None, description="one of the prompts that the model folder names")
    prompt: str | None = Field(None, description="text put before every input")
    layers: str = Field(
        "last",
        description="hidden layers to pool: last, -2, sum:last4, mean:last4, concat:last4, concat:-1,-12",
    )
    trust_remote_code: bool = Field(False, description="run Python code that comes with the model")


class DataSettings(Settings):
    """The corpus."""

    path: str | list[str] = Field(
        "", description="files, folders or globs, local or s3:// gs:// hf:// ...; required"
    )
    format: Literal["auto", "parquet", "jsonl", "csv", "tsv", "text", "documents", "arrow", "datasets"] = (
        Field("auto", description="auto: by file name; text is a line a row, documents a file a row")
    )
    text: str | list[str] = Field("text", description="column(s) that hold the text")
    template: str | None = Field(
        None, description='joins columns into one text, as in "{title}\\n{body}"; default: joined by newlines'
    )
    id: str | None = Field(None, description="column that identifies a row; default: file and row number")
    columns: list[str] = Field([], description='columns kept beside the vector; ["*"] keeps all')
    limit: int | None = Field(None, ge=1, description="use the first n rows only")
    max_chars: int = Field(10_000_000, ge=1, description="a longer text is rejected")

    @field_validator("columns", "text", mode="before")
    @classmethod
    def _comma_list(cls, value: Any, info: ValidationInfo) -> Any:
        """`a,b` is two columns; a single name is one for `text`, a list of one for `columns`."""
        if not isinstance(value, str) or ("," not in value and info.field_name == "text"):
            return value
        return [part.strip() for part in value.split(",")]

    @property
    def paths(self) -> list[str]:
        """`path` as a list."""
        return [self.path] if isinstance(self.path, str) else list(self.path)

    @property
    def text_columns(self) -> list[str]:
        """`text` as a list."""
        return [self.text] if isinstance(self.text, str) else list(self.text)


class ChunkSettings(Settings):
    """Long documents as overlapping windows."""

    size: int | None = Field(
        None,
        ge=1,
        description="tokens of a window, special ones not counted; default: no windows, long texts are cut",
    )
    overlap: int = Field(0, ge=0, description="tokens that neighbouring windows share")
    combine: Literal["none", "mean", "max"] = Field(
        "none", description="none: a row per window; mean, max: one vector per document"
    )

    @model_validator(mode="after")
    def _overlap_fits(self) -> Self:
        if self.size is not None and self.overlap >= self.size:
            raise ValueError(f"chunk.overlap={self.overlap} must be smaller than chunk.size={self.size}")
        if self.size is None and (self.overlap or self.combine != "none"):
            raise ValueError("chunk.overlap and chunk.combine need chunk.size")
        return self


class OutputSettings(Settings):
    """The folder of vectors."""

    path: str = Field("", description="folder to write, local or s3:// gs:// ...; required")
    dtype: Literal["float32", "float16", "int8", "binary"] = Field(
        "float32", description="of the stored vectors; the scale of int8 is in the metadata"
    )
    rows_per_shard: int = Field(
        4096, ge=1, description="rows of one output file at most; what a crash can cost"
    )
    on_change: Literal["refuse", "replace"] = Field(
        "refuse", description="an input file changed or vanished: refuse to run, or redo that file"
    )
    max_rejects: int | float | None = Field(
        None, ge=0, description="stop when more rows are rejected: a count, or a share below 1"
    )


class WorkersSettings(Settings):
    """The encoder processes."""

    count: int | list[int] | Literal["auto"] = Field(
        "auto",
        description="encoder processes, or [min, max] to autoscale; auto: as many as the machine feeds",
    )
    gpus: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        "auto", description="GPUs of one process; auto: 1 where the cluster has any, else 0"
    )
    cpus: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto", description="CPUs and compute threads of one process"
    )

    @field_validator("count")
    @classmethod
    def _a_range(cls, value: Any) -> Any:
        low_high = value if isinstance(value, list) else [1, 1] if value == "auto" else [value, value]
        if len(low_high) != 2 or not 1 <= low_high[0] <= low_high[1]:
            raise ValueError(f"workers.count={value} must be a positive number or [min, max]")
        return value


class SearchSettings(Settings):
    """What to look for in a folder of vectors."""

    query: str | list[str] = Field([], description="text(s) to search for")
    vectors: str | None = Field(None, description="query vectors instead of text: a .npy or Parquet file")
    k: int = Field(10, ge=1, description="hits a query")
    filter: str | None = Field(None, description="on kept columns: \"package == 'gzip' and year >= 2020\"")
    format: Literal["table", "json"] = Field("table", description="how hits are printed")


class EmbedConfig(Settings):
    """raybert embed: a corpus in, every row exactly once in Parquet."""

    model: ModelSettings = Field(default_factory=ModelSettings)
    data: DataSettings = Field(default_factory=DataSettings)
    chunk: ChunkSettings = Field(default_factory=ChunkSettings)
    output: OutputSettings = Field(default_factory=OutputSettings)
    workers: WorkersSettings = Field(default_factory=WorkersSettings)
    batch_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = Field(
        "auto",
        description="tokens in one forward pass, padding included; auto: 1024 on a CPU, 32768 on a GPU",
    )
    dry_run: bool = Field(False, description="print the settings, the plan and an estimate; write nothing")


class VerifyConfig(Settings):
    """raybert verify: check every promise of a folder of vectors."""

    class Data(Settings):
        """The folder."""

        path: str = Field("", description="folder of vectors; required")

    data: Data = Field(default_factory=Data)


class SearchConfig(Settings):
    """raybert search: exact nearest neighbours in a folder of vectors."""

    class Model(Settings):
        """The encoder of the query."""

        name: str | None = Field(None, description="where the model lies now; default: as embedded")
        prompt_name: str | None = Field(None, description="prompt of the query; default: as embedded")
        prompt: str | None = Field(None, description="text put before the query; default: as embedded")
        trust_remote_code: bool = Field(False, description="run Python code that comes with the model")

    model: Model = Field(default_factory=Model)
    data: VerifyConfig.Data = Field(default_factory=VerifyConfig.Data)
    search: SearchSettings = Field(default_factory=SearchSettings)


def load(
    model: type[Settings], file: str | Path | None = None, settings: Mapping[str, Any] | None = None
) -> Any:
    """Build `model` from a YAML file and settings that override it.

    Raises:
        ConfigError: one line that names the first setting that does not fit and the nearest valid name.
    """
    values: dict[str, Any] = {}
    if file is not None:
        values = _read_yaml(Path(file))
    for key, value in (settings or {}).items():
        _assign(values, key, value)
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_explain(model, error)) from None


def require(config: Settings, *keys: str) -> None:
    """Raise ConfigError for the first of the dotted `keys` that is empty."""
    for key in keys:
        value: Any = config
        for part in key.split("."):
            value = getattr(value, part)
        if not value:
            raise ConfigError(f"{key} is missing: give it as {key}=... or in the config file")


def parse_value(model: type[Settings], key: str, text: str) -> Any:
    """The value of `key=text` on a command line: JSON if it fits the setting, else the text itself."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    if isinstance(value, int | float) and "str" in _leaf_names(_annotation(model, key)):
        return value if _leaf_names(_annotation(model, key)) & {"int", "float", "bool"} else text
    return value


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a.b": 1}` as `{"a": {"b": 1}}`; nested mappings are merged."""
    out: dict[str, Any] = {}
    for key, value in values.items():
        _assign(out, str(key), value)
    return out


def describe(model: type[Settings], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(key, default, meaning) of every setting, in order."""
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Settings):
            yield from describe(field.annotation, f"{prefix}{name}.")
        else:
            default = field.get_default(call_default_factory=True)
            shown = default if isinstance(default, str) else json.dumps(default)
            yield f"{prefix}{name}", shown, field.description or ""


def dump_yaml(config: Settings) -> str:
    """The resolved settings as YAML."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read the config file {path}: {error.strerror}") from None
    except (UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is not valid YAML: {type(error).__name__}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{where} is not valid YAML: {getattr(error, 'problem', error)}") from None
    if values is not None and not isinstance(values, dict):
        raise ConfigError(f"{path} must hold `key: value` settings, not a {type(values).__name__}")
    return nested(values or {})


def _assign(tree: dict[str, Any], key: str, value: Any) -> None:
    head, _, rest = key.partition(".")
    if not rest and not isinstance(value, Mapping):
        tree[head] = value
        return
    branch = tree.get(head)
    if not isinstance(branch, dict):
        branch = tree[head] = {}
    for inner, leaf in {rest: value}.items() if rest else value.items():
        _assign(branch, str(inner), leaf)


def _annotation(model: type[Settings], key: str) -> Any:
    annotation: Any = model
    for part in key.split("."):
        fields = getattr(annotation, "model_fields", {})
        if part not in fields:
            return str
        annotation = fields[part].annotation
    return annotation


def _leaf_names(annotation: Any) -> set[str]:
    """Names of the plain types that a setting takes: `int | list[str] | None` -> {"int", "NoneType"}."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return set().union(*(_leaf_names(part) for part in typing.get_args(annotation)))
    if typing.get_origin(annotation) is Annotated:
        return _leaf_names(typing.get_args(annotation)[0])
    if typing.get_origin(annotation) is Literal:
        return {type(value).__name__ for value in typing.get_args(annotation)}
    return {getattr(annotation, "__name__", "")}


def _explain(model: type[Settings], error: ValidationError) -> str:
    first = error.errors()[0]
    known = [key for key, _, _ in describe(model)]
    path = _known_prefix(first["loc"], known)
    if first["type"] == "extra_forbidden":
        near = nearest(path, known)
        return f"unknown setting {path!r}" + (
            f"; did you mean {near!r}?" if near else "; see --help for all of them"
        )
    if first["type"] == "value_error":
        return str(first["ctx"]["error"])
    if first["type"] == "model_type":
        return f"{path}={first['input']!r} does not fit: it is a group of settings, as in {path}.{_child(path, known)}=..."
    expected = "; ".join(
        dict.fromkeys(e["msg"] for e in error.errors() if _known_prefix(e["loc"], known) == path)
    )
    return f"{path}={first['input']!r} does not fit: {expected[0].lower()}{expected[1:]}"


def _known_prefix(location: Sequence[int | str], known: list[str]) -> str:
    """pydantic adds the branch of a union to the location; cut it off where a known key ends."""
    parts: list[str] = []
    for part in location:
        parts.append(str(part))
        if ".".join(parts) in known:
            break
    return ".".join(parts)


def _child(group: str, known: list[str]) -> str:
    return next((key[len(group) + 1 :] for key in known if key.startswith(group + ".")), "...")


def nearest(key: str, known: Sequence[str]) -> str | None:
    """The known key that `key` most likely meant: `name` -> `model.name`, `model.nmae` -> `model.name`."""
    by_leaf = [k for k in known if k.rpartition(".")[2] == key.rpartition(".")[2]]
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    leaves = {k.rpartition(".")[2]: k for k in reversed(list(known))}
    close_leaf = difflib.get_close_matches(key.rpartition(".")[2], leaves, n=1, cutoff=0.6)
    return next(iter([*by_leaf, *close, *(leaves[leaf] for leaf in close_leaf)]), None)
