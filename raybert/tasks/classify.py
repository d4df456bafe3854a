"""Classification and regression of texts and pairs of texts: rows to examples, logits to labels, and their scores.

The table has the columns `text`, `label` and, for pairs, `text_pair`.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Encoding, Tokenizer

from raybert.config.finetune import ClassificationSettings
from raybert.evaluate.metrics import Confusion, MultiLabel, Regression
from raybert.evaluate.scores import Tables
from raybert.tasks.columns import Reasons, column, numbers_of, strings_of
from raybert.tasks.examples import Examples, Lists
from raybert.tasks.words import TEXTS_PER_CALL, offsets_of

NUMBER = ["LABEL_0"]
"""The one output of a regression, as transformers calls it."""


def main_figure(settings: ClassificationSettings) -> str:
    """The figure by which models are compared; more of it is better."""
    return {"single": "accuracy", "multi": "f1_micro", "regression": "spearman"}[settings.kind]


def find_labels(table: pa.Table, settings: ClassificationSettings) -> list[str]:
    """The sorted labels of a table; of a regression its one output. Raises ValueError where there are fewer than two."""
    if settings.kind == "regression":
        return NUMBER
    found = sorted(set(chain.from_iterable(_labels(table, settings, Reasons(len(table))))))
    if len(found) < 2 and settings.kind == "single":
        only = f"one label only, {found[0]!r}" if found else "no labels"
        raise ValueError(f"data.label has {only}; there is nothing to tell apart")
    if not found:
        raise ValueError("data.label names no label in any row; there is nothing to learn")
    return found


def labels_of_rows(table: pa.Table, settings: ClassificationSettings) -> list[list[str]]:
    """The labels of every row; none where they cannot be used, and for a regression."""
    if settings.kind == "regression":
        return [[] for _ in range(len(table))]
    return _labels(table, settings, Reasons(len(table)))


def prepare(
    table: pa.Table,
    tokenizer: Tokenizer,
    labels: Sequence[str] | None,
    settings: ClassificationSettings,
    *,
    max_length: int,
) -> tuple[Examples, np.ndarray]:
    """One example of at most `max_length` tokens a row, and reasons [rows]; longer texts lose their end.

    Of a pair the longer text is cut first. Target unless `labels` is None: `labels`, int64 [n], for many labels a row
    float32 [n, labels] of 0 and 1, for regression float32 [n].

    Raises ValueError for labels that are not among `labels`.
    """
    texts, reasons = strings_of(table, "text")
    pairs = strings_of(table, "text_pair", reasons)[0] if "text_pair" in table.column_names else None
    targets = None if labels is None else _targets(table, labels, settings, reasons)
    rows = np.flatnonzero(reasons.good)
    ids, boundary, cut = _tokenize(
        tokenizer,
        [texts[row] for row in rows],
        None if pairs is None else [pairs[row] for row in rows],
        max_length,
    )
    given = {} if targets is None else {"labels": targets[rows]}
    return Examples(ids, boundary, rows, given, cut=cut), reasons.lines


def weigh(examples: Examples, labels: Sequence[str], settings: ClassificationSettings) -> Examples:
    """Examples to train on, with a target `weight` float32 [n] where labels have weights.

    Balanced: n / (labels x n of the label), whose mean is 1. Raises ValueError for weights of unknown labels.
    """
    if settings.class_weights == "none":
        return examples
    numbers = examples.targets["labels"]
    assert isinstance(numbers, np.ndarray)
    if settings.class_weights == "balanced":
        counts = np.bincount(numbers, minlength=len(labels))
        weights = len(numbers) / (len(labels) * np.maximum(counts, 1))
    else:
        if unknown := sorted(set(settings.class_weights) - set(labels)):
            raise ValueError(f"task.class_weights names {unknown[0]!r}, which is no label of the data")
        weights = np.array([settings.class_weights.get(label, 1.0) for label in labels])
    weight = weights[numbers].astype(np.float32)
    return replace(examples, targets={**examples.targets, "weight": weight})


def output_fields(settings: ClassificationSettings) -> dict[str, pa.DataType]:
    """What `decode` gives of a row."""
    return {
        "single": {"label": pa.string(), "score": pa.float32()},
        "multi": {"labels": pa.list_(pa.string()), "scores": pa.list_(pa.float32())},
        "regression": {"value": pa.float32()},
    }[settings.kind]


def decode(
    outputs: Mapping[str, np.ndarray],
    examples: Examples,
    labels: Sequence[str],
    settings: ClassificationSettings,
) -> list[dict[str, Any]]:
    """What the logits [n, labels] say of n examples.

    single: {label, score}, the softmax probability; multi: {labels, scores}, those above 1/2 by their sigmoid;
    regression: {value}.
    """
    del examples
    scores = scores_of(outputs["logits"], settings)
    if settings.kind == "regression":
        return [{"value": float(value)} for value in scores[:, 0]]
    if settings.kind == "single":
        return [{"label": labels[row.argmax()], "score": float(row.max())} for row in scores]
    above = [np.flatnonzero(row > 0.5) for row in scores]
    return [
        {"labels": [labels[i] for i in places], "scores": [float(row[i]) for i in places]}
        for row, places in zip(scores, above, strict=True)
    ]


def scores_of(logits: np.ndarray, settings: ClassificationSettings) -> np.ndarray:
    """[n, labels] of logits: probabilities, by softmax of one label a row and by sigmoid of many; the logits themselves of
    a regression."""
    if settings.kind == "regression":
        return logits
    return _softmax(logits) if settings.kind == "single" else 1 / (1 + np.exp(-logits.astype(np.float64)))


def shown_rows(
    decoded: Sequence[Mapping[str, Any]],
    table: pa.Table,
    examples: Examples,
    labels: Sequence[str],
    settings: ClassificationSettings,
) -> dict[str, list[Any]]:
    """How rows are shown in a report: `text`, the true `label`, `predicted` and, of one label a row, its `probability`.

    `table` has the rows of the examples.
    """
    del examples, labels
    texts = table["text"].to_pylist()
    if "text_pair" in table.column_names:
        texts = [
            f"{text} | {other}" for text, other in zip(texts, table["text_pair"].to_pylist(), strict=True)
        ]
    truth = table["label"].to_pylist()
    if settings.kind == "regression":
        label, key = [float(value) for value in truth], "value"
    elif settings.kind == "single":
        label, key = [str(value) for value in truth], "label"
    else:
        label, key = labels_of_rows(table, settings), "labels"
    shown = {"text": texts, "label": label, "predicted": [row[key] for row in decoded]}
    return {**shown, "probability": [row["score"] for row in decoded]} if key == "label" else shown


class Scores:
    """How well logits tell the labels of examples; streaming. Figures are those of `raybert.evaluate.metrics`."""

    def __init__(self, labels: Sequence[str], settings: ClassificationSettings) -> None:
        self._kind = settings.kind
        self.counted: Any = (
            Regression()
            if self._kind == "regression"
            else (Confusion if self._kind == "single" else MultiLabel)(labels)
        )

    def add(self, outputs: Mapping[str, np.ndarray], examples: Examples) -> None:
        """The logits [n, labels] of n examples."""
        truth, logits = examples.targets["labels"], outputs["logits"]
        if self._kind == "regression":
            self.counted.add(truth, logits[:, 0])
        elif self._kind == "multi":
            self.counted.add(truth, logits > 0)
        else:
            self.counted.add(truth, logits.argmax(1), _softmax(logits).max(1))

    def merge(self, state: str) -> None:
        """Add the `to_json` of another worker."""
        self.counted.merge(type(self.counted).from_json(state))

    def to_json(self) -> str:
        """What was counted."""
        return self.counted.to_json()

    def result(self) -> dict[str, float]:
        """The figures. Raises ValueError if nothing was added."""
        return self.counted.result()

    def tables(self) -> Tables:
        """For a report."""
        return self.counted.tables()


def _softmax(logits: np.ndarray) -> np.ndarray:
    exp = np.exp((logits - logits.max(1, keepdims=True)).astype(np.float64))
    return exp / exp.sum(1, keepdims=True)


def _targets(
    table: pa.Table, labels: Sequence[str], settings: ClassificationSettings, reasons: Reasons
) -> np.ndarray:
    if settings.kind == "regression":
        return numbers_of(table, "label", reasons).astype(np.float32)
    named = _labels(table, settings, reasons)
    _refuse_unknown(set(chain.from_iterable(named)) - set(labels))
    number = {label: i for i, label in enumerate(labels)}
    if settings.kind == "single":
        return np.array([number[names[0]] if names else -1 for names in named], np.int64)
    found = np.zeros((len(named), len(labels)), np.float32)
    for row, names in enumerate(named):
        found[row, [number[name] for name in names]] = 1
    return found


def _refuse_unknown(unknown: set[str]) -> None:
    if unknown:
        shown = sorted(unknown)
        more = f" and {len(shown) - 10} more" if len(shown) > 10 else ""
        raise ValueError(
            f"data.label has labels that are not in the rows to train on: {', '.join(shown[:10])}{more}"
        )


def _labels(table: pa.Table, settings: ClassificationSettings, reasons: Reasons) -> list[list[str]]:
    """The labels of every row; none in a row with a reason."""
    values = column(table, "label")
    kind = values.type
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        if settings.kind == "single":
            raise ValueError("data.label holds lists of labels; set task.kind=multi")
        return _cleaned([row for row in values.to_pylist()], reasons)
    if pa.types.is_nested(kind) or pa.types.is_binary(kind):
        raise ValueError(f"data.label must hold labels, not {kind}")
    named = [None if value is None else str(value) for value in values.to_pylist()]
    if settings.kind == "multi":
        return _cleaned([_split(value, settings.separator) for value in named], reasons)
    reasons.add(np.array([value is None for value in named], bool), lambda _: "label is null")
    reasons.add(
        np.array([value is not None and not value.strip() for value in named], bool),
        lambda _: "label is empty",
    )
    good = reasons.good
    return [[value] if ok and value else [] for value, ok in zip(named, good, strict=True)]


def _split(value: str | None, separator: str) -> list[str] | None:
    """`a,b` or, as JSON lines bring it, `["a", "b"]`."""
    if value is None:
        return None
    if value.startswith("["):
        try:
            return [str(label) for label in json.loads(value)]
        except ValueError:
            pass  # a label that begins with a bracket
    return [part.strip() for part in value.split(separator) if part.strip()]


def _cleaned(rows: list[list[Any] | None], reasons: Reasons) -> list[list[str]]:
    """Rows of labels; one that is null is rejected, an empty one has no label."""
    reasons.add(np.array([row is None for row in rows], bool), lambda _: "label is null")
    holes = np.array(
        [row is not None and any(v is None or not str(v).strip() for v in row) for row in rows], bool
    )
    reasons.add(holes, lambda _: "one of its labels is empty")
    good = reasons.good
    return [[str(v) for v in row] if ok and row else [] for row, ok in zip(rows, good, strict=True)]


def _tokenize(
    tokenizer: Tokenizer, texts: list[str], pairs: list[str] | None, max_length: int
) -> tuple[Lists, np.ndarray, np.ndarray]:
    """Ids with special tokens, int32 [n] tokens before the first of type 1, and bool [n], which were cut."""
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    given: list[Any] = texts if pairs is None else [*zip(texts, pairs, strict=True)]
    encodings: list[Encoding] = []
    for at in range(0, len(given), TEXTS_PER_CALL):
        encodings += tokenizer.encode_batch(given[at : at + TEXTS_PER_CALL])
    tokenizer.no_truncation()
    lengths = np.fromiter(map(len, encodings), np.int64, len(encodings))
    total = int(lengths.sum())
    ids = np.fromiter(chain.from_iterable(e.ids for e in encodings), np.int32, total)
    types = np.fromiter(chain.from_iterable(e.type_ids for e in encodings), np.int32, total)
    offsets = offsets_of(lengths)
    later = np.concatenate([[0], np.cumsum(types)])
    boundary = (lengths - (later[offsets[1:]] - later[offsets[:-1]])).astype(np.int32)
    return Lists(ids, offsets), boundary, np.array([bool(e.overflowing) for e in encodings], bool)
