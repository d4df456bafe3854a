"""Settings that name files: marked where they are declared, so that paths are made absolute or public in one place."""

from collections.abc import Callable
from typing import Annotated, Any

from raybert.config.core import Settings

PATH, MODEL = "a path", "a folder or a hub name"

Place = Annotated[str, PATH]
"""A file, a folder or a glob, on a disk or in an object store."""

Places = Annotated[str | list[str], PATH]
"""One or some of them."""

ModelName = Annotated[str, MODEL]
"""A folder, or the name of a hub model."""


def change_paths(config: Any, path: Callable[[str], str], model: Callable[[str], str]) -> Any:
    """The settings with every path and every name of a model changed; those that are empty stay so."""
    changed: dict[str, Any] = {}
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        change = path if PATH in field.metadata else model if MODEL in field.metadata else None
        new = _inside(value, path, model) if change is None else _each(value, change)
        if new is not value:
            changed[name] = new
    return config.model_copy(update=changed) if changed else config


def _each(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, list):
        return [change(each) for each in value]
    return change(value) if value else value


def _inside(value: Any, path: Callable[[str], str], model: Callable[[str], str]) -> Any:
    """Of a group of settings, or some of them."""
    if isinstance(value, Settings):
        return change_paths(value, path, model)
    if isinstance(value, list) and any(isinstance(each, Settings) for each in value):
        return [_inside(each, path, model) for each in value]
    if isinstance(value, dict) and any(isinstance(each, Settings) for each in value.values()):
        return {key: _inside(each, path, model) for key, each in value.items()}
    return value
