"""Checkpoints that any number of workers and any ZeRO stage can go on from: whole float32 tensors by name, and JSON.

    FOLDER/step-00000300/weights-DIGEST.safetensors     parameters by name
                         moments-DIGEST.safetensors     NAME.exp_avg, NAME.exp_avg_sq
                         extra-DIGEST.safetensors       what else a run needs to go on, if anything
                         state.json                     the run's state, names and digests of these; written last

A checkpoint without state.json does not exist: every file appears whole or not at all, and this one last. As names follow
from the content, a worker of a killed driver that still writes cannot mix its files with those of the next.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import safetensors.torch
from pyarrow import fs as pafs

from raybert.corpus.store import Store
from raybert.train.gather import Tensors

CHECKPOINTS = "checkpoints"  # the folder in that of a run

_FORMAT = 1
_WEIGHTS, _MOMENTS, _EXTRA, _STATE = "weights", "moments", "extra", "state.json"


@dataclass(frozen=True)
class RunState:
    """Where a run stands.

    Attributes:
        step: updates made; the next one has this number.
        cursor: where the batch stream goes on, as its own JSON.
        digests: of the content of the last global batches, newest last.
        loss: training loss, smoothed. evaluation: figures on held-out shards, if there were any.
        job: the settings that decide the numbers. world: ranks that wrote it. versions: of the libraries.
        skipped: cursors of batches that were left out after a loss spike.
        best: step, metric and value of the best evaluation, and how many in a row since then were not better (`worse`).
    """

    step: int
    cursor: Mapping[str, Any] = field(default_factory=dict)
    digests: list[int] = field(default_factory=list)
    loss: float | None = None
    evaluation: Mapping[str, float] = field(default_factory=dict)
    job: Mapping[str, Any] = field(default_factory=dict)
    world: int = 1
    versions: Mapping[str, str] = field(default_factory=dict)
    skipped: list[Any] = field(default_factory=list)
    best: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "RunState":
        """From a state.json; what older ones do not have is as in a new run."""
        return cls(**{key: record[key] for key in cls.__dataclass_fields__ if key in record})


class Checkpoints:
    """The checkpoints of one run in a folder, local or in an object store."""

    def __init__(self, folder: str | Path) -> None:
        self.where = str(folder)
        self.store = Store(self.where)

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, in order."""
        return sorted(step for step, files in self._found().items() if _STATE in files)

    def write(self, tensors: Tensors, state: RunState) -> None:
        """Write one. It is complete when this returns; one of the same step is replaced. Raises OSError."""
        name = _name(state.step)
        files = {}
        parts = {_WEIGHTS: tensors.weights, _MOMENTS: tensors.moments}
        parts |= {_EXTRA: tensors.extra} if tensors.extra else {}
        for part, content in parts.items():
            data = safetensors.torch.save(content)
            file = f"{part}-{_digest(data)[:12]}.safetensors"
            self.store.write(f"{name}/{file}", data)
            files[part] = {"file": file, "bytes": len(data), "digest": _digest(data)}
        record = {"format": _FORMAT, "updates": tensors.updates, "files": files, **asdict(state)}
        self.store.write(f"{name}/{_STATE}", json.dumps(record, indent=1).encode())

    def read(self, step: int) -> tuple[Tensors, RunState]:
        """Read one back, checked against its digests. Raises ValueError if a file is damaged."""
        name, record = _name(step), self.record(step)
        weights, moments = (self._tensors(name, record["files"][part]) for part in (_WEIGHTS, _MOMENTS))
        extra = self._tensors(name, record["files"][_EXTRA]) if _EXTRA in record["files"] else {}
        return Tensors(weights, moments, record["updates"], extra), RunState.of(record)

    def record(self, step: int) -> dict[str, Any]:
        """state.json. Raises ValueError for a later format."""
        record = json.loads(self.store.read(f"{_name(step)}/{_STATE}"))
        if record["format"] != _FORMAT:
            raise ValueError(
                f"{self.where}/{_name(step)} is of a newer raybert; update raybert to go on from it"
            )
        return record

    def weights(self, step: int) -> dict[str, Any]:
        """The parameters alone, for export."""
        return self._tensors(_name(step), self.record(step)["files"][_WEIGHTS])

    def prune(self, keep: int, best: int | None = None) -> None:
        """Remove all but the `keep` newest and the best one (default: by its held-out loss), and what is incomplete."""
        kept = set(self.steps()[-keep:]) | {self.best() if best is None else best}
        for step, files in self._found().items():
            if step not in kept:
                self._remove(step, files)

    def drop_after(self, step: int) -> None:
        """Remove the checkpoints later than `step`: they hold what is to be forgotten."""
        for later, files in self._found().items():
            if later > step:
                self._remove(later, files)

    def best(self) -> int | None:
        """The step with the lowest held-out loss; None where none was evaluated."""
        losses = {step: self.record(step)["evaluation"].get("loss") for step in self.steps()}
        known = {step: loss for step, loss in losses.items() if loss is not None}
        return min(known, key=known.__getitem__) if known else None

    def _tensors(self, name: str, expected: Mapping[str, Any]) -> dict[str, Any]:
        file = expected["file"]
        data = self.store.read(f"{name}/{file}")
        if _digest(data) != expected["digest"]:
            raise ValueError(
                f"{self.where}/{name}/{file} is damaged; remove the folder {name} to go on from the one before"
            )
        return safetensors.torch.load(data)

    def _found(self) -> dict[int, list[str]]:
        """Step -> names of its files, complete or not."""
        selector = pafs.FileSelector(self.store.path(""), recursive=True, allow_not_found=True)
        found: dict[int, list[str]] = {}
        for info in self.store.fs.get_file_info(selector):
            match = re.search(r"(?:^|/)step-(\d+)/([^/]+)$", info.path)
            if match and info.type == pafs.FileType.File:
                found.setdefault(int(match[1]), []).append(match[2])
        return found

    def _remove(self, step: int, files: list[str]) -> None:
        for file in sorted(
            files, key=lambda file: file != _STATE
        ):  # the state first: half a checkpoint is none
            self.store.delete(f"{_name(step)}/{file}")
        if self.store.local:
            Path(self.store.path(_name(step))).rmdir()


def library_versions() -> dict[str, str]:
    """Of what decides the numbers."""
    return {name: version(name) for name in ("raybert", "torch", "transformers", "deepspeed")}


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
