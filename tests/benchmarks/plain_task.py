"""A task written plainly with transformers: what its Trainer trains, and by what models of every side are scored.

Nothing of raybert is imported: a model of raybert is read from its folder as anybody would, its predictions are scored
by scikit-learn, scipy, sacreBLEU and plain_scores.py.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
)

Row = dict[str, Any]


class Task:
    """One kind of task; this one is classification of a text.

    Args:
        folder: of the tokenizer: the pretrained model, or a finished one.
        max_length: tokens of a row.
        labels: in the order of the model's outputs; None: those of the finished model in `folder`.
    """

    auto: Any = AutoModelForSequenceClassification

    def __init__(self, folder: str, max_length: int, labels: Sequence[str] | None = None) -> None:
        self.folder, self.max_length = folder, max_length
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        if labels is None:
            names = AutoConfig.from_pretrained(folder).id2label
            labels = [names[i] for i in range(len(names))]
        self.labels = list(labels)
        self.collate: Any = DataCollatorWithPadding(self.tokenizer)

    @classmethod
    def to_train(cls, folder: str, max_length: int, rows: Sequence[Row], tables: Path) -> "Task":
        """Before training on rows of these tables."""
        del tables
        return cls(folder, max_length, cls.labels_of(rows))

    @staticmethod
    def labels_of(rows: Sequence[Row]) -> list[str]:
        """The labels of rows to train on."""
        return sorted({row["label"] for row in rows})

    def model(self) -> Any:
        """The model of the folder; a head that it lacks is random."""
        names = dict(enumerate(self.labels))
        numbers = {label: i for i, label in names.items()}
        return self.auto.from_pretrained(
            self.folder, num_labels=len(names), id2label=names, label2id=numbers, **self.options()
        )

    def options(self) -> dict[str, Any]:
        """Of the model's configuration."""
        return {}

    def save(self, model: Any, folder: Path) -> None:
        """A folder that this class reads."""
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)

    def features(self, rows: Sequence[Row]) -> list[dict[str, Any]]:
        """What the collator takes, in the order of the rows."""
        made = self.tokenizer([row["text"] for row in rows], truncation=True, max_length=self.max_length)
        numbers = {label: i for i, label in enumerate(self.labels)}
        return [
            {"input_ids": ids, "label": numbers[row["label"]]}
            for ids, row in zip(made["input_ids"], rows, strict=True)
        ]

    def outputs(self, given: Any) -> torch.Tensor:
        """The logits [n, ...] of what the model gives."""
        return given.logits

    @torch.inference_mode()
    def predict(self, model: Any, rows: Sequence[Row]) -> list[Any]:
        """The logits of every row, in the order of the rows; rows of like length are computed together."""
        features = self.features(rows)
        order = sorted(range(len(features)), key=lambda i: len(features[i]["input_ids"]))
        found: list[Any] = [None] * len(features)
        for at in range(0, len(order), 64):
            some = order[at : at + 64]
            batch = self.collate([features[i] for i in some])
            given = {name: x for name, x in batch.items() if "label" not in name and "_positions" not in name}
            for i, logits in zip(some, self.outputs(model(**given)).numpy(), strict=True):
                found[i] = logits
        return found

    def scores(self, logits: list[np.ndarray], rows: Sequence[Row]) -> dict[str, float]:
        """The figures of what `predict` gave."""
        from sklearn.metrics import accuracy_score, f1_score

        true = [row["label"] for row in rows]
        found = [self.labels[int(one.argmax())] for one in logits]
        return {
            "accuracy": float(accuracy_score(true, found)),
            "macro_f1": float(f1_score(true, found, average="macro", zero_division=0)),
        }


def score(task: Task, rows: Sequence[Row]) -> dict[str, float]:
    """The figures of a finished model on rows, in float32."""
    return task.scores(task.predict(task.model().float().eval(), rows), rows)
