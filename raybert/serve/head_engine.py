"""The model with a head of a replica: texts to examples in one thread, examples to logits in another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from raybert.config.finetune import ClassificationSettings
from raybert.predict_shard import prepare_unlabelled
from raybert.resolve_head import HeadFolder
from raybert.serve import tei
from raybert.serve.batcher import Part, measured_rate
from raybert.serve.calls import Route
from raybert.serve.errors import invalid
from raybert.serve.model import Unusable
from raybert.serve.tokens import Tokens
from raybert.tasks.classify import scores_of
from raybert.tasks.examples import Examples, Lists
from raybert.tasks.known import data_side
from raybert.tasks.words import offsets_of

SERVED_TASKS = ("classification", "entities", "selection")
"""What a head may be for."""

_KINDS = {"softmax": "single", "sigmoid": "multi", "none": "regression"}  # whose scores these functions give


@dataclass(frozen=True)
class HeadWay:
    """How a head computes: there is one way only. It has no prompt."""

    prompt: str = ""


@dataclass(frozen=True)
class Prepared:
    """Inputs as examples: a row is a sequence of them. `truncated` bool [inputs]."""

    examples: Examples
    truncated: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """int64 [rows], tokens."""
        return self.examples.ids.lengths


class HeadEngine:
    """What a `Batcher` runs for a model with a head. A row's result is float32 [labels], its logits; of entities
    [tokens, labels].

    Args:
        name: of the model, as given.
        folder: what its folder says.
        predictor: a `raybert.tasks.predictor_model.Predictor`.
        device, dtype, batch_tokens: with which it was made.
    """

    def __init__(
        self, name: str, folder: HeadFolder, predictor: Any, *, device: str, dtype: str, batch_tokens: int
    ) -> None:
        head = folder.head
        self.task, self.labels = head.task, list(head.labels)
        self.finds_entities = self.windows = head.task == "entities"
        self.pairs = not self.finds_entities
        self.max_length, self.step_tokens = folder.max_length, batch_tokens
        self.routes: Mapping[str, Route] = (
            tei.RERANKER_ROUTES if self.pairs and len(self.labels) == 1 else tei.HEAD_ROUTES
        )
        self.tokens = Tokens(folder.tokenizer, name)
        # entities are found in texts, whatever the model was trained with
        self._settings = head.settings.model_copy(update={"text": "text"} if self.finds_entities else {})
        self._head = replace(head, settings=self._settings)
        self._tokenizer = Tokenizer.from_str(folder.tokenizer)
        self._predictor = predictor
        self._about = {
            "model_id": name,
            "model_sha": folder.revision or folder.folder.digest(),
            "model_dtype": dtype,
            "device": device,
        }

    def info(self) -> dict[str, Any]:
        """What TEI's /info tells of it: one output is a reranker. `task` tells more."""
        kind = "reranker" if len(self.labels) == 1 else "classifier"
        names = {
            "id2label": {str(i): label for i, label in enumerate(self.labels)},
            "label2id": {label: i for i, label in enumerate(self.labels)},
        }
        return {
            **self._about,
            "model_type": {kind: names},
            "task": self.task,
            "max_input_length": self.max_length,
            "max_batch_tokens": self.step_tokens,
        }

    def way(self, prompt_name: str | None) -> HeadWay:
        """Raises ApiError 400 for a prompt: a head has none."""
        if prompt_name is not None:
            raise invalid("prompt_name: a model with a head has no prompts", "prompt_name")
        return HeadWay()

    def probe(self) -> tuple[list[str] | list[tuple[str, str]], HeadWay]:
        """See `raybert.serve.model.Engine`."""
        return ([("a", "a")] if self.task == "selection" else ["a"]), HeadWay()

    def tokenize(self, inputs: Sequence[str] | Sequence[tuple[str, str]], way: HeadWay) -> Prepared:
        """Texts, or pairs of them, as examples, exactly as `raybert predict` makes them. Raises `Unusable`."""
        del way
        examples, reasons = prepare_unlabelled(
            self._table(inputs), self._tokenizer, self._head, self.max_length
        )
        for place in np.flatnonzero([reason is not None for reason in reasons]):
            raise Unusable(int(place), f"cannot be read: {reasons[place]}")
        truncated = np.zeros(len(inputs), bool)
        if examples.cut is not None:
            truncated[examples.row[examples.cut]] = True
        return Prepared(examples, truncated)

    def _table(self, inputs: Sequence[Any]) -> pa.Table:
        paired = not isinstance(inputs[0], str)
        first = [pair[0] for pair in inputs] if paired else list(inputs)
        second = [pair[1] for pair in inputs] if paired else None
        names = ("text", "text_pair")
        if self.task == "selection":
            if second is None:
                raise Unusable(0, "must be a pair of texts: the model reads two together")
            names = (self._settings.context, self._settings.response)
        columns = {names[0]: pa.array(first, pa.large_string())}
        if second is not None:
            columns[names[1]] = pa.array(second, pa.large_string())
        return pa.table(columns)

    def run(self, way: HeadWay, parts: Sequence[Part]) -> list[Sequence[Any]]:
        """See `raybert.serve.batcher.Run`."""
        del way
        examples = _join(parts)
        logits = self._predictor(examples)["logits"]
        if self.finds_entities:
            logits = np.split(logits, examples.ids.offsets[1:-1])
        counts = [end - first for _, first, end in parts]
        ends = np.cumsum(counts)
        return [logits[end - count : end] for end, count in zip(ends, counts, strict=True)]

    def decode(self, found: Any) -> list[dict[str, Any]]:
        """What `raybert predict` says of every input, from the results of its rows (`raybert.serve.model.Found`)."""
        side = data_side(self.task)
        return side.decode(
            {"logits": self._logits(found)}, found.payload.examples, self.labels, self._settings
        )

    def scores(self, found: Any, function: str | None) -> np.ndarray:
        """[inputs, labels]: what `function` (sigmoid, softmax or none) makes of the logits; None: what suits the task."""
        kind = _KINDS[function] if function else getattr(self._settings, "kind", "multi")
        return scores_of(self._logits(found), ClassificationSettings(kind=kind))

    def _logits(self, found: Any) -> np.ndarray:
        return np.concatenate(found.rows) if self.finds_entities else np.stack(found.rows)

    def computed_tokens(self, lengths: np.ndarray) -> int:
        """Padding included."""
        return self._predictor.computed_tokens(lengths)

    def warm_up(self) -> float:
        """Tokens a second of full steps."""
        text = "a " * min(self.max_length // 4, 62)
        inputs: Any = [(text, text)] if self.task == "selection" else [text]
        rows = max(1, self.step_tokens // int(self.tokenize(inputs, HeadWay()).lengths.sum()))
        return measured_rate(self.run, HeadWay(), self.tokenize(inputs * rows, HeadWay()))


def _join(parts: Sequence[Part]) -> Examples:
    """The rows of some parts, one after the other, as far as a model sees them."""
    values, lengths, boundaries = [], [], []
    for prepared, first, end in parts:
        ids = prepared.examples.ids
        values.append(ids.values[ids.offsets[first] : ids.offsets[end]])
        lengths.append(ids.lengths[first:end])
        boundaries.append(prepared.examples.boundary[first:end])
    joined = Lists(np.concatenate(values), offsets_of(np.concatenate(lengths)))
    return Examples(joined, np.concatenate(boundaries), np.arange(len(joined)), {})
