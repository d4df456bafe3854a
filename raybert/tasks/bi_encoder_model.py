"""Encoders of single texts: the plain model, pooled as its sentence-transformers folder says; trained, saved, asked.

Modules behind the pooling (Dense, LayerNorm) stay as they are: gradients go through them to the encoder.
"""

import json
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from raybert.config.finetune import FinetuneModelSettings, RegularizeSettings
from raybert.encoder.attention import to_device
from raybert.encoder.encoder import Encoder
from raybert.encoder.folders import Folder, read_folder, resolve
from raybert.encoder.head import build_head
from raybert.encoder.pooling import pool
from raybert.encoder.saving import save
from raybert.encoder.tokenizing import Tokenized
from raybert.tasks.bi_encoder import settle_pooling, width_of
from raybert.tasks.examples import Examples
from raybert.tasks.heads import Head
from raybert.train.forward import Forward
from raybert.train.packed import Micro, PackedBatch

AUTO = AutoModel
SETTINGS_FILE = "config_sentence_transformers.json"


def configure(config: PreTrainedConfig, labels: Sequence[str], settings: Any) -> None:
    """Write Matryoshka's sizes into a model's configuration, where servers look for them."""
    del labels
    if getattr(settings, "dimensions", None):
        config.matryoshka_dimensions = sorted(settings.dimensions, reverse=True)


def folder_of(transformer: Path) -> Folder:
    """The model folder whose transformer lies here: the same, or the one above."""
    above = transformer.parent
    if not (transformer / "modules.json").is_file() and (above / "modules.json").is_file():
        found = read_folder(above)
        if found.transformer == transformer:
            return found
    return read_folder(transformer)


class BiEncoder(nn.Module, ABC):
    """`model(batch)` are the vectors of its sequences, float32 [n, width], each by itself; `model.plain` is the
    transformers model, for saving.

    A loss compares vectors of the whole global batch, so it is not the model's: `share` gives it for
    `raybert.train.ranking_objective`.

    Args:
        plain: of `AUTO`; what follows its pooling is read from the folder that its configuration names.
        settings: of the task.
        regularize: nothing is (see `raybert.train.task_levers`).
        padded: compute padded batches; `padded` says in the end how it is done.
        autocast: compute in this 16-bit type, the weights stay float32.
    """

    def __init__(
        self,
        plain: PreTrainedModel,
        settings: Any,
        regularize: RegularizeSettings | None = None,
        *,
        padded: bool = False,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        del regularize
        self.plain, self.autocast, self._settings = plain, autocast, settings
        self._run = Forward(plain, padded=padded)
        self.padded = self._run.padded
        at = Path(plain.config.name_or_path)
        folder = folder_of(at) if plain.config.name_or_path and at.is_dir() else None
        if settings.pooling != "auto":
            self._pooling = settings.pooling
        else:
            self._pooling = (None if folder is None else folder.pooling) or "mean"
        # in a list: it is neither trained nor cast nor cut up
        self._after: list[nn.Module] = [build_head(() if folder is None else folder.head)]
        pooler = getattr(plain, "pooler", None)
        if isinstance(pooler, nn.Module):
            pooler.requires_grad_(False)  # no vector comes from it

    @staticmethod
    @abstractmethod
    def sums_type(settings: Any) -> type:
        """The NamedTuple of `share`."""

    @staticmethod
    def targets(micro: Micro) -> int:
        """Rows of a batch, by their first sequences."""
        return int((micro.per_sequence["role"] == 0).sum())

    def forward(self, batch: PackedBatch, delta: Tensor | None = None, *, outputs: bool = False) -> Any:
        """The vectors of a batch. With `outputs` sums, which here are 0, and {"vectors": [n, width]}."""
        vectors = self.vectors(batch, delta)
        if not outputs:
            return vectors
        kind = self.sums_type(self._settings)
        return kind(*[vectors.new_zeros(()) for _ in kind._fields]), {"vectors": vectors}

    def vectors(self, batch: PackedBatch, delta: Tensor | None = None) -> Tensor:
        """float32 [n, width], after pooling and what follows it, not normalised."""
        with torch.autocast(batch.ids.device.type, dtype=self.autocast, enabled=self.autocast is not None):
            hidden = self._run.hidden(batch, delta)
        lengths = to_device(np.asarray(batch.rows.lengths, np.int64), hidden.device)
        return self._after[0].to(hidden.device)(pool(hidden, lengths, self._pooling))

    @staticmethod
    @abstractmethod
    def share(settings: Any, vectors: Tensor, targets: Mapping[str, Tensor], count: int) -> Any:
        """This rank's share of the sums (`sums_type`) of a global batch, from its vectors [n, width].

        Args:
            targets: of its sequences, by name, [n]. `role` below 0 is that of an empty batch.
            count: rows of the global batch; the sums of all ranks, divided by it, are the figures.
        """


def finish(made: str, model: FinetuneModelSettings, settings: Any, max_length: int) -> None:
    """Make the plain folder `made` a sentence-transformers folder: pooling, what follows it, prompts, cosine.

    Normalize and the modules behind the pooling are those of the folder that training began with; a plain one gets
    Normalize, since it is cosines that were trained.
    """
    path, _ = resolve(model.name, model.revision, code=model.trust_remote_code)
    base = read_folder(path)
    source = replace(base, path=Path(made), transformer=Path(made))
    shape = json.loads(Path(made, "config.json").read_text(encoding="utf-8"))
    prompts = {**base.prompts, **_prompts(settings)}
    default = base.prompts.get(base.default_prompt_name or "", "")
    with tempfile.TemporaryDirectory() as other:
        save(
            Path(other, "folder"),
            source,
            layers="last",
            pooling=settings.pooling,
            normalized=base.normalized or base.pooling is None,
            width=width_of(base, settings.pooling),
            dimensions=None,
            hidden=int(shape.get("hidden_size") or shape["dim"]),
            max_length=max_length,
            prompts=prompts,
            prompt=getattr(settings, "prompt", None) or default,
        )
        for file in Path(other, "folder").iterdir():
            if file.is_dir():
                shutil.copytree(file, Path(made, file.name))
            elif not Path(made, file.name).exists():
                shutil.copyfile(file, Path(made, file.name))
    config = json.loads(Path(made, SETTINGS_FILE).read_text(encoding="utf-8"))
    config["similarity_fn_name"] = "cosine"
    Path(made, SETTINGS_FILE).write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", "utf-8")


def _prompts(settings: Any) -> dict[str, str]:
    """What a folder calls the prompts of a retrieval."""
    named = {"query": "query_prompt", "document": "document_prompt"}
    found = {name: getattr(settings, field, None) for name, field in named.items()}
    return {name: text for name, text in found.items() if text}


class Predictor:
    """`predictor(examples)` are the vectors that `raybert embed` gives; see `raybert.tasks.predictor_model.Predictor`."""

    def __init__(
        self,
        path: Path,
        head: Head,
        *,
        dtype: str,
        device: str,
        batch_tokens: int,
        trust_remote_code: bool = False,
    ) -> None:
        folder = folder_of(Path(path))
        settings: Any = settle_pooling(head.settings, folder)
        self._encoder = Encoder.load(
            folder.path,
            pooling=settings.pooling,
            dtype=dtype,
            device=device,
            batch_tokens=batch_tokens,
            trust_remote_code=trust_remote_code,
        )

    @property
    def padded(self) -> bool:
        """Whether batches are padded."""
        return self._encoder.kernels == "transformers"

    def __call__(self, examples: Examples) -> dict[str, np.ndarray]:
        """{"vectors": float32 [n, width]}, of every sequence in the order of the examples."""
        if not len(examples):
            return {"vectors": np.zeros((0, self._encoder.dimension), np.float32)}
        ids = examples.ids
        uncut = np.zeros(len(ids), bool)
        return {"vectors": self._encoder.encode_ids(Tokenized(ids.values, ids.offsets, uncut))}

    def computed_tokens(self, lengths: np.ndarray) -> int:
        """Tokens that go through the model for sequences of these lengths."""
        return self._encoder.computed_tokens(lengths)
