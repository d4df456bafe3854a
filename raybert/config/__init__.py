"""Settings: one frozen tree, the same key in Python, YAML and on the command line."""

from raybert.config.core import (
    ConfigError,
    Settings,
    describe,
    dump_yaml,
    load,
    nearest,
    nested,
    parse_value,
    require,
)
from raybert.config.groups import (
    ChunkSettings,
    DataSettings,
    ModelSettings,
    OutputSettings,
    SearchSettings,
    WorkersSettings,
)
from raybert.config.verbs import EmbedConfig, SearchConfig, VerifyConfig

__all__ = [
    "ChunkSettings",
    "ConfigError",
    "DataSettings",
    "EmbedConfig",
    "ModelSettings",
    "OutputSettings",
    "SearchConfig",
    "SearchSettings",
    "Settings",
    "VerifyConfig",
    "WorkersSettings",
    "describe",
    "dump_yaml",
    "load",
    "nearest",
    "nested",
    "parse_value",
    "require",
]
