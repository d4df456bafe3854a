"""Settings: one frozen tree, the same key in Python, YAML and on the command line."""

from raybert.config.core import (
    ConfigError,
    Settings,
    describe,
    dump_yaml,
    flat,
    load,
    nearest,
    nested,
    parse_value,
    refuse_differences,
    require,
)
from raybert.config.finetune import FinetuneConfig
from raybert.config.groups import (
    ChunkSettings,
    CorpusSettings,
    DataSettings,
    ModelSettings,
    OutputSettings,
    PrepareSettings,
    SearchSettings,
    TokenizerSettings,
    TokensOutput,
    VocabularySettings,
    WorkersSettings,
)
from raybert.config.predicting import EvaluateConfig, PredictConfig
from raybert.config.probing import ProbeConfig
from raybert.config.serving import ServeConfig
from raybert.config.training import PretrainConfig
from raybert.config.verbs import EmbedConfig, PrepareConfig, SearchConfig, VerifyConfig, VocabularyConfig

__all__ = [
    "ChunkSettings",
    "ConfigError",
    "CorpusSettings",
    "DataSettings",
    "EmbedConfig",
    "EvaluateConfig",
    "FinetuneConfig",
    "ModelSettings",
    "OutputSettings",
    "PredictConfig",
    "PrepareConfig",
    "PrepareSettings",
    "PretrainConfig",
    "ProbeConfig",
    "SearchConfig",
    "SearchSettings",
    "ServeConfig",
    "Settings",
    "TokenizerSettings",
    "TokensOutput",
    "VerifyConfig",
    "VocabularyConfig",
    "VocabularySettings",
    "WorkersSettings",
    "describe",
    "dump_yaml",
    "flat",
    "load",
    "nearest",
    "nested",
    "parse_value",
    "refuse_differences",
    "require",
]
