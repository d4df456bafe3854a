"""The relation between two marked places in a text, as in SemEval-2010 task 8: rows to examples, logits to relations.

Four tokens are added to the vocabulary and put around the two places, [E1] .. [/E1] and [E2] .. [/E2]; the classifier
reads the encoder at the two start markers ("entity markers, entity start" of Baldini Soares et al. 2019, Matching the
Blanks). The text between the markers is tokenized as if they were not there, so its ids are those of pretraining.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import AddedToken, Tokenizer

from raybert.config.tasks import RelationsSettings
from raybert.evaluate.metrics import Confusion
from raybert.evaluate.scores import Tables
from raybert.tasks.columns import Reasons, column, refuse_unknown, string_column
from raybert.tasks.examples import Examples
from raybert.tasks.relation_rows import read_places
from raybert.tasks.relation_scores import RelationScores
from raybert.tasks.sequences import Frame, frame, lay_out
from raybert.tasks.words import Pieces, tokenize


def columns(settings: RelationsSettings, *, labelled: bool = True) -> list[str]:
    """The columns that the task reads."""
    places = [settings.first, settings.second] if settings.spans else []
    return [settings.text, *places, *([settings.label] if labelled else [])]


def nested(settings: RelationsSettings) -> list[str]:
    """Those of them that hold lists or structs."""
    return [settings.first, settings.second] if settings.spans else []


def main_figure(settings: RelationsSettings) -> str:
    """The figure by which models are compared; more of it is better."""
    del settings
    return "macro_f1"


def find_labels(table: pa.Table, settings: RelationsSettings) -> list[str]:
    """The sorted relations of a table. Raises ValueError where there are fewer than two."""
    names = {name for name in string_column(table, settings.label).to_pylist() if name and not name.isspace()}
    if len(names) < 2:
        raise ValueError(
            f"column {settings.label!r} has {len(names)} different labels; at least 2 are needed"
        )
    return sorted(names)


def add_markers(tokenizer: Tokenizer, settings: RelationsSettings) -> list[int]:
    """Add the four markers to the tokenizer as special tokens and return their ids, the same when called again.

    The model's embedding must have as many rows as the tokenizer then has tokens.
    """
    missing = [marker for marker in settings.markers if tokenizer.token_to_id(marker) is None]
    tokenizer.add_special_tokens([AddedToken(marker, special=True, normalized=False) for marker in missing])
    return [tokenizer.token_to_id(marker) for marker in settings.markers]


def prepare(
    table: pa.Table,
    tokenizer: Tokenizer,
    labels: Sequence[str] | None,
    settings: RelationsSettings,
    *,
    max_length: int,
) -> tuple[Examples, np.ndarray]:
    """One example of at most `max_length` tokens a row, and reasons [rows]; the tokenizer must have the markers.

    A longer row keeps the tokens around its two places; one whose places do not fit together is rejected.
    Targets, int64 [n]: `first` and `second`, the positions of the start markers; `labels` unless `labels` is None.

    Raises ValueError for unknown labels and for a tokenizer without the markers (see `add_markers`).
    """
    markers = _marker_ids(tokenizer, settings)
    marked = read_places(table, settings)
    reasons, codes = marked.reasons, None
    if labels is not None:
        codes = _codes(table, labels, reasons, settings)
    pieces = tokenize(tokenizer, marked.texts)
    everyone = np.arange(len(table))
    places = [pieces.covering(everyone, marked.spans[:, k, 0], marked.spans[:, k, 1]) for k in (0, 1)]
    for name, (first, stop) in zip((settings.first, settings.second), places, strict=True):
        reasons.add(first >= stop, lambda _, n=name: f"{n} has no tokens")
    order = places[1][0] < places[0][0]  # the second place comes first in the text
    early = [np.where(order, places[1][k], places[0][k]) for k in (0, 1)]
    late = [np.where(order, places[0][k], places[1][k]) for k in (0, 1)]
    reasons.add(early[1] > late[0], lambda _: f"{settings.first} and {settings.second} share a token")
    specials = frame(tokenizer)
    room = max_length - specials.size - len(markers)
    reasons.add(
        late[1] - early[0] > room,
        lambda row: (
            f"from {settings.first} to {settings.second} are {late[1][row] - early[0][row]} tokens; "
            f"max_length={max_length} has room for {room}"
        ),
    )
    rows = np.flatnonzero(reasons.good)
    cuts = _cut_around(early[0][rows], late[1][rows], pieces.ids.lengths[rows], room)
    bounds = [cuts[0], early[0][rows], early[1][rows], late[0][rows], late[1][rows], cuts[1]]
    targets = {} if codes is None else {"labels": codes[rows]}
    made = _examples(pieces, rows, bounds, order[rows], specials, markers, targets)
    return replace(made, cut=cuts[1] - cuts[0] < pieces.ids.lengths[rows]), reasons.lines


def _marker_ids(tokenizer: Tokenizer, settings: RelationsSettings) -> list[int]:
    ids = [tokenizer.token_to_id(marker) for marker in settings.markers]
    if None in ids:
        raise ValueError(
            f"the tokenizer has no token {settings.markers[ids.index(None)]}; add task.markers first"
        )
    return ids


def _codes(
    table: pa.Table, labels: Sequence[str], reasons: Reasons, settings: RelationsSettings
) -> np.ndarray:
    names = string_column(table, settings.label).to_pylist()
    empty = np.array([not name or name.isspace() for name in names], bool)
    reasons.add(empty, lambda _: f"{settings.label} is empty")
    refuse_unknown(
        [name for name, none in zip(names, empty, strict=True) if not none], labels, settings.label
    )
    numbers = {label: number for number, label in enumerate(labels)}
    return np.array([numbers.get(name, -1) for name in names], np.int64)


def _cut_around(
    start: np.ndarray, stop: np.ndarray, lengths: np.ndarray, room: int
) -> tuple[np.ndarray, np.ndarray]:
    """Windows of `room` tokens with [start, stop) in their middle, moved to lie in the text; all of it where it fits."""
    begin = np.clip(start - (room - (stop - start)) // 2, 0, np.maximum(lengths - room, 0))
    return begin, np.minimum(begin + room, lengths)


def _examples(
    pieces: Pieces,
    rows: np.ndarray,
    bounds: list[np.ndarray],
    swapped: np.ndarray,
    specials: Frame,
    markers: list[int],
    targets: dict[str, np.ndarray],
) -> Examples:
    """Sequences of specials, text [bounds 0, 1), marker, [1, 2), marker, [2, 3), ... [4, 5), specials."""
    n, before, after = len(rows), len(specials.before), len(specials.after)
    pool = np.concatenate([specials.ids, np.array(markers, np.int32), pieces.ids.values])
    base = pieces.ids.offsets[rows] + specials.size + len(markers)
    marker = specials.size + np.where(swapped[:, None], [2, 3, 0, 1], [0, 1, 2, 3])
    starts = [np.zeros(n, np.int64), base + bounds[0]]
    lengths = [np.full(n, before), bounds[1] - bounds[0]]
    for k in range(4):
        starts += [marker[:, k], base + bounds[k + 1]]
        lengths += [np.ones(n, np.int64), bounds[k + 2] - bounds[k + 1]]
    starts, lengths = [*starts, np.full(n, before)], [*lengths, np.full(n, after)]
    layout = lay_out(np.stack(starts, 1), np.stack(lengths, 1))
    early = before + bounds[1] - bounds[0]
    late = early + 2 + bounds[3] - bounds[1]
    first, second = np.where(swapped, late, early), np.where(swapped, early, late)
    sizes = np.diff(layout.offsets)
    return Examples(layout.lists(pool), sizes, rows, {**targets, "first": first, "second": second})


def output_fields(settings: RelationsSettings) -> dict[str, pa.DataType]:
    """What `decode` gives of a row."""
    del settings
    return {"label": pa.string(), "score": pa.float32()}


def decode(
    outputs: Mapping[str, np.ndarray],
    examples: Examples,
    labels: Sequence[str],
    settings: RelationsSettings,
) -> list[dict[str, Any]]:
    """{label, score} of every row, from the logits [n, labels]; the score is the softmax probability."""
    del examples, settings
    logits = outputs["logits"]
    numbers, scores = logits.argmax(1), _probabilities(logits)
    return [
        {"label": labels[number], "score": float(score)}
        for number, score in zip(numbers, scores, strict=True)
    ]


def shown_rows(
    decoded: Sequence[Mapping[str, Any]],
    table: pa.Table,
    examples: Examples,
    labels: Sequence[str],
    settings: RelationsSettings,
) -> dict[str, list[Any]]:
    """How rows are shown in a report: `text`, the true `label`, the one `predicted` and its `probability`."""
    del examples, labels
    texts = string_column(table, settings.text).to_pylist()
    if settings.spans:
        places = [column(table, name).to_pylist() for name in (settings.first, settings.second)]
        texts = [
            f"{text} | {text[a['start'] : a['end']]} | {text[b['start'] : b['end']]}"
            for text, a, b in zip(texts, *places, strict=True)
        ]
    return {
        "text": texts,
        "label": string_column(table, settings.label).to_pylist(),
        "predicted": [row["label"] for row in decoded],
        "probability": [row["score"] for row in decoded],
    }


class Scores:
    """How well logits tell the relations of examples; streaming. Figures are those of `RelationScores`, and the calibration
    error `ece`."""

    def __init__(self, labels: Sequence[str], settings: RelationsSettings) -> None:
        self._labels, self._settings = list(labels), settings
        self.confusion = Confusion(labels)

    @property
    def counted(self) -> RelationScores:
        """The official scores of what was added."""
        made = RelationScores(self._labels, other=self._settings.other)
        made.counts += self.confusion.matrix
        return made

    def add(self, outputs: Mapping[str, np.ndarray], examples: Examples) -> None:
        """The logits [n, labels] of n examples."""
        logits = outputs["logits"]
        self.confusion.add(examples.targets["labels"], logits.argmax(1), _probabilities(logits))

    def merge(self, state: str) -> None:
        """Add the `to_json` of another worker."""
        self.confusion.merge(Confusion.from_json(state))

    def to_json(self) -> str:
        """What was counted."""
        return self.confusion.to_json()

    def result(self) -> dict[str, float]:
        """The figures. Raises ValueError if nothing was added."""
        return {**self.counted.result(), "ece": self.confusion.result()["ece"]}

    def tables(self) -> Tables:
        """For a report: the relations as the official scores count them, the confusion of all labels."""
        return replace(self.confusion.tables(), per_label=self.counted.per_label())


def _probabilities(logits: np.ndarray) -> np.ndarray:
    """[n], the softmax probability of the highest logit."""
    return 1 / np.exp((logits - logits.max(1, keepdims=True)).astype(np.float64)).sum(1)
