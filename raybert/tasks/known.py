"""The tasks: for each its data side, without torch, and its models."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from raybert.tasks.examples import Examples

DATA = {
    "classification": "raybert.tasks.classify",
    "entities": "raybert.tasks.entities",
    "relations": "raybert.tasks.relations",
    "answers": "raybert.tasks.answers",
    "similarity": "raybert.tasks.similarity",
    "retrieval": "raybert.tasks.retrieval",
    "selection": "raybert.tasks.selection",
    "generation": "raybert.tasks.generation",
}
MODELS = {
    "classification": "raybert.tasks.classify_model",
    "entities": "raybert.tasks.entities_model",
    "relations": "raybert.tasks.relations_model",
    "answers": "raybert.tasks.answers_model",
    "similarity": "raybert.tasks.similarity_model",
    "retrieval": "raybert.tasks.retrieval_model",
    "selection": "raybert.tasks.selection_model",
    "generation": "raybert.tasks.generation_model",
}


class Scores(Protocol):
    """A metric over a stream of examples."""

    def add(self, outputs: Mapping[str, np.ndarray], examples: Examples) -> None:
        """What the model gave for examples: arrays [n, ...] of sequences or [tokens, ...] of tokens, in their order. The
        sequences of a row come together."""

    def merge(self, state: str) -> None:
        """Add the `to_json` of another worker."""

    def to_json(self) -> str:
        """What was counted."""

    def result(self) -> dict[str, float]:
        """The figures."""


class DataSide(Protocol):
    """A module of `DATA`. `settings` are those of the task.

    It may have more: `weigh(examples, labels, settings)` gives examples to train on their weights;
    `with_texts(examples, table, settings)` gives examples what `decode` needs of their rows, and
    `with_truth(examples, table, labels, settings)` what `Scores` compares with, both in `truth`;
    `repaired_rows(table, labels, settings)` tells (bool [rows]) whose truth was put right; `add_markers(tokenizer, settings)`
    adds tokens; and `shown_rows(decoded, table, examples, labels, settings)` tells a report of
    rows that changed their `text`, their true `label`, what was `predicted` and, where a row is right or wrong, the
    `probability` of that, else its `score`: 1 where all is right, less where less is; lists, of the rows of the table,
    which are those of the examples.

    `settle(settings, folder, tables)` gives the settings with what their defaults stand for in a model folder and in
    tables by the settings that name them. `GROUPS` says what becomes of the sequences of a row in training (see
    `raybert.train.example_stream.ExampleStream`).

    `texts_too(settings)` names columns among `nested` that may hold texts instead.

    A task without `columns` and `nested` has the columns that the group `data` names: `text`, `text_pair`, `label`.
    """

    Scores: Any
    """(labels, settings) -> `Scores`. It may have `tables()`, which gives `raybert.evaluate.scores.Tables`."""

    def main_figure(self, settings: Any) -> str:
        """The figure of `Scores` by which models are compared; more of it is better."""

    def columns(self, settings: Any, *, labelled: bool = True) -> list[str]:
        """The columns that the task reads; with `labelled` those of the truth too."""

    def nested(self, settings: Any) -> list[str]:
        """Those of them that hold lists or structs."""

    def find_labels(self, table: pa.Table, settings: Any) -> list[str]:
        """The labels of a table to train on."""

    def prepare(
        self,
        table: pa.Table,
        tokenizer: Tokenizer,
        labels: Sequence[str] | None,
        settings: Any,
        *,
        max_length: int,
    ) -> tuple[Examples, np.ndarray]:
        """Examples, and reasons [rows]: None, or why a row is rejected. Without targets where `labels` is None."""

    def decode(
        self, outputs: Mapping[str, np.ndarray], examples: Examples, labels: Sequence[str], settings: Any
    ) -> list[dict[str, Any]]:
        """What a model's outputs (see `Scores.add`) say of every row of the examples, in their order. All sequences of a
        row are among the examples, one after the other."""

    def output_fields(self, settings: Any) -> dict[str, pa.DataType]:
        """What `decode` gives of a row, as it is stored."""


class ModelSide(Protocol):
    """A module of `MODELS`.

    `Model(plain, settings, regularize, padded=...)` is a torch module with `plain`, `padded` and `autocast`. Its
    `forward(batch, delta=None, outputs=False)` gives a NamedTuple of sums, the loss first, others that are means over the
    targets under their own names; with `outputs` also arrays by name, for `Scores`. `Model.sums_type(settings)` is the
    NamedTuple, `Model.targets(micro)` counts the targets of a batch. A loss that compares the sequences of a global batch is
    in `Model.share` (see `raybert.tasks.bi_encoder_model.BiEncoder`); then `forward` gives vectors.

    It may have two things more: `finish(made, model, settings, max_length)` adds to a finished folder, and `Predictor` is
    used instead of `raybert.tasks.predictor_model.Predictor`.
    """

    AUTO: Any  # AutoModelFor... of transformers, or the like: its models then have `loaded_by` and `note` for the card
    Model: Any

    def configure(self, config: Any, labels: Sequence[str], settings: Any) -> None:
        """Write the labels into a model's configuration."""


def data_side(task: str) -> Any:
    """The module that makes examples and scores (see `DataSide`)."""
    return import_module(DATA[task])


def model_side(task: str) -> Any:
    """The module that makes models (see `ModelSide`); imports torch."""
    return import_module(MODELS[task])
