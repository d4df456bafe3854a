"""raybert: embed, pretrain, fine-tune and serve BERT-family encoders on Ray."""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

__version__ = "0.1.0"

# name -> module; imported on first use, so that `import raybert` costs no torch and no ray
_PUBLIC = {
    "Encoder": "raybert.encoder.encoder",
    "EmbedConfig": "raybert.config",
    "EvaluateConfig": "raybert.config",
    "FinetuneConfig": "raybert.config",
    "PredictConfig": "raybert.config",
    "PrepareConfig": "raybert.config",
    "PretrainConfig": "raybert.config",
    "ProbeConfig": "raybert.config",
    "SearchConfig": "raybert.config",
    "ServeConfig": "raybert.config",
    "VerifyConfig": "raybert.config",
    "VocabularyConfig": "raybert.config",
    "embed": "raybert.embed",
    "embed_dataset": "raybert.embed_dataset",
    "evaluate": "raybert.evaluate.evaluate",
    "finetune": "raybert.finetune",
    "predict": "raybert.predict",
    "prepare": "raybert.prepare",
    "pretrain": "raybert.train.pretrain",
    "probe": "raybert.probe",
    "search": "raybert.search",
    "verify": "raybert.verify",
    "vocabulary": "raybert.vocabulary",
}

__all__ = [
    "EmbedConfig",
    "Encoder",
    "EvaluateConfig",
    "FinetuneConfig",
    "PredictConfig",
    "PrepareConfig",
    "PretrainConfig",
    "ProbeConfig",
    "SearchConfig",
    "ServeConfig",
    "VerifyConfig",
    "VocabularyConfig",
    "__version__",
    "embed",
    "embed_dataset",
    "evaluate",
    "finetune",
    "predict",
    "prepare",
    "pretrain",
    "probe",
    "search",
    "verify",
    "vocabulary",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(import_module(_PUBLIC[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'raybert' has no attribute {name!r}")


class _Package(ModuleType):
    """`raybert.embed` is always the function, also after something imported the module of that name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _PUBLIC and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
