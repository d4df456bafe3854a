"""Text to vectors inside one process; imports with torch, transformers and numpy alone.

`Encoder` is imported on first use, so that the tokenizing, batching, quantizing, chunking and folders
modules can be used where torch is not wanted (CPU tokenization tasks, a driver on a small head node).
"""

from typing import Any

__all__ = ["Encoder"]


def __getattr__(name: str) -> Any:
    if name == "Encoder":
        from raybert.encoder.encoder import Encoder

        return Encoder
    raise AttributeError(f"module 'raybert.encoder' has no attribute {name!r}")
