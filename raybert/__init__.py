"""raybert: embed, pretrain, fine-tune and serve BERT-family encoders on Ray."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

# name -> module; imported on first use, so that `import raybert` costs no torch and no ray
_PUBLIC = {
    "Encoder": "raybert.encoder.encoder",
    "EmbedConfig": "raybert.config",
    "SearchConfig": "raybert.config",
    "VerifyConfig": "raybert.config",
    "embed": "raybert.embed",
    "embed_dataset": "raybert.embed_dataset",
    "search": "raybert.search",
    "verify": "raybert.verify",
}

__all__ = [
    "EmbedConfig",
    "Encoder",
    "SearchConfig",
    "VerifyConfig",
    "__version__",
    "embed",
    "embed_dataset",
    "search",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        value = getattr(import_module(_PUBLIC[name]), name)
        globals()[name] = value  # a submodule of the same name must not shadow the function
        return value
    raise AttributeError(f"module 'raybert' has no attribute {name!r}")
