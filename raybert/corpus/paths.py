"""The paths in settings: the same on every process, and without credentials where they are shown or stored."""

import os
from typing import Any

from raybert.config.paths import change_paths
from raybert.corpus.filesystems import public_uri


def absolute(config: Any) -> Any:
    """Local paths mean the same on every process, whatever its working directory. A model is one if it is a folder."""

    def model(name: str) -> str:
        return _whole(name) if os.path.isdir(os.path.expanduser(name)) else name

    return change_paths(config, _whole, model)


def public(config: Any) -> Any:
    """The settings as they may be shown and stored."""
    return change_paths(config, public_name, public_name)


def public_name(name: str) -> str:
    """A path or a model's name without credentials."""
    return public_uri(name) if "://" in name else name


def _whole(path: str) -> str:
    return path if "://" in path else os.path.abspath(os.path.expanduser(path))
