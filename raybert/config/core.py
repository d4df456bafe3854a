"""What settings are: frozen groups, dotted keys, YAML and key=value; an unknown key is an error that names it."""

import difflib
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

ANY_NAME = "NAME"
"""Stands in keys for what the user calls a group in a mapping."""


class ConfigError(ValueError):
    """A setting that cannot be used as it stands. The message is one line that names the setting and the fix."""


class Settings(BaseModel):
    """A frozen group of settings; unknown keys are refused; dotted keys (`{"model.name": ...}`) are understood."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _nest(cls, values: Any) -> Any:
        return nested(values) if isinstance(values, Mapping) else values


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


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The inverse of `nested`."""
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return out


def refuse_differences(
    where: str, was: Mapping[str, Any], now: Mapping[str, Any], *, became: Mapping[str, Any] | None = None
) -> None:
    """Raise ValueError if the settings that a folder was started with are not those of now.

    What a setting of then `became` (by its dotted key) is no difference.
    """
    old, new, became = flat(was), flat(now), became or {}
    differ = [
        f"{key}={new.get(key)!r} (was {old.get(key)!r})"
        for key in sorted(old.keys() | new.keys())
        if new.get(key) != old.get(key) and not (key in became and new.get(key) == became[key])
    ]
    if differ:
        raise ValueError(
            f"{where} was started with other settings: {', '.join(differ)}; "
            "use the old settings to go on, or another output.path to start afresh"
        )


def describe(model: type[Settings], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """(key, default, meaning) of every setting, in order; of a group that is one of several, the settings of all.

    Groups in a mapping have the keys of one that is called NAME.
    """
    for name, field in model.model_fields.items():
        groups, inside = _groups(field.annotation), f"{prefix}{name}."
        if not groups:
            groups, inside = _mapped(field.annotation), f"{inside}{ANY_NAME}."
        if groups:
            rows: dict[str, tuple[str, str, str]] = {}
            for row in (row for group in groups for row in describe(group, inside)):
                rows.setdefault(row[0], row)
            yield from rows.values()
        else:
            default = field.get_default(call_default_factory=True)
            shown = default if isinstance(default, str) else json.dumps(default)
            yield f"{prefix}{name}", shown, field.description or ""


def renamed(message: str, prefix: str, keys: Sequence[str]) -> str:
    """A message about some settings of a group, whose names get the prefix that they have in the whole tree."""
    names = "|".join(re.escape(key) for key in sorted(keys, key=len, reverse=True) if "." in key)
    return re.sub(rf"(?<![\w./])({names})(?!\w)", lambda found: prefix + found[0], message)


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
        if mapped := _mapped(annotation):
            annotation = typing.Union[tuple(mapped)]  # noqa: UP007
            continue
        found = [group.model_fields[part] for group in _groups(annotation) if part in group.model_fields]
        if not found:
            return str
        annotation = found[0].annotation
    return annotation


def _groups(annotation: Any) -> list[type[Settings]]:
    """The groups of settings that a field may be: one, or those of a union."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        parts = [_groups(part) for part in typing.get_args(annotation)]
        return [group for part in parts for group in part] if all(parts) else []
    return []


def _mapped(annotation: Any) -> list[type[Settings]]:
    """The groups of settings in a mapping."""
    return _groups(typing.get_args(annotation)[1]) if typing.get_origin(annotation) is dict else []


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
    keys = [key for key, _, _ in describe(model)]
    prefix, inner = _in_mapping(keys, first["loc"])
    known = [*keys, *(prefix + key for key in inner)]
    path = _known_prefix(first["loc"], known)
    if first["type"] == "extra_forbidden":
        near = nearest(path, known)
        if path in known or any(key.startswith(f"{path}.") for key in known):
            group = path.rpartition(".")[0]
            return f"{path} means nothing with the {group}.name that is given"
        return f"unknown setting {path!r}" + (
            f"; did you mean {near!r}?" if near else "; see --help for all of them"
        )
    if first["type"] == "union_tag_invalid":
        return f"{path}.name={first['ctx']['tag']!r} must be one of {first['ctx']['expected_tags']}"
    if first["type"] == "value_error":
        return renamed(str(first["ctx"]["error"]), prefix, inner) if prefix else str(first["ctx"]["error"])
    if first["type"] == "model_type":
        return f"{path}={first['input']!r} does not fit: it is a group of settings, as in {path}.{_child(path, known)}=..."
    expected = "; ".join(
        dict.fromkeys(e["msg"] for e in error.errors() if _known_prefix(e["loc"], known) == path)
    )
    return f"{path}={first['input']!r} does not fit: {expected[0].lower()}{expected[1:]}"


def _in_mapping(keys: Sequence[str], location: Sequence[int | str]) -> tuple[str, list[str]]:
    """The prefix of a named group that a location lies in, and the keys of such a group; "" where it lies in none."""
    for key in keys:
        before, found, _ = key.partition(f".{ANY_NAME}.")
        mapping = before.rpartition(".")[2]
        if found and mapping in location[:-1]:
            group = f"{before}.{ANY_NAME}."
            inner = [other[len(group) :] for other in keys if other.startswith(group)]
            return f"{before}.{location[location.index(mapping) + 1]}.", inner
    return "", []


def _known_prefix(location: Sequence[int | str], known: list[str]) -> str:
    """pydantic adds the branch of a union to the location; leave it out, and what comes after a known key."""
    parts: list[str] = []
    for i, part in enumerate(location):
        key = ".".join([*parts, str(part)])
        if i + 1 == len(location) or any(f"{name}.".startswith(f"{key}.") for name in known):
            parts.append(str(part))
        if key in known:
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
