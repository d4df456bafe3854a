"""Entities in text, or token classification: words with tags, or texts with spans, to examples; logits to entities.

The text is tokenized as it stands (words joined by spaces), so the ids are those that the model was pretrained with;
which word a token belongs to comes from the characters that it covers. Long rows become overlapping windows, never cut:
every word is predicted once, in the window where it has most context.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from raybert.config.tasks import EntitiesSettings
from raybert.evaluate.scores import Tables
from raybert.tasks.columns import chosen, list_column
from raybert.tasks.entity_outputs import (
    assemble,
    decode,
    followers,
    output_fields,
    predict,
    shown_rows,
    tags_of_words,
    with_texts,
)
from raybert.tasks.entity_rows import read_words, span_fields, true_tags
from raybert.tasks.examples import IGNORED, Examples, Lists
from raybert.tasks.sequences import frame, lay_out, windows, with_specials
from raybert.tasks.tags import EntityScores, all_tags, label_tags, tag_set
from raybert.tasks.words import Pieces, Words, offsets_of, tokenize

__all__ = [
    "Scores",
    "assemble",
    "columns",
    "decode",
    "find_labels",
    "main_figure",
    "nested",
    "output_fields",
    "predict",
    "prepare",
    "repaired_rows",
    "shown_rows",
    "with_texts",
    "with_truth",
]


def columns(settings: EntitiesSettings, *, labelled: bool = True) -> list[str]:
    """The columns that the task reads."""
    if settings.text is not None:
        return [settings.text, *([settings.spans] if labelled else [])]
    return [settings.tokens, *([settings.tags] if labelled else [])]


def nested(settings: EntitiesSettings) -> list[str]:
    """Those of them that hold lists or structs."""
    return [settings.spans] if settings.text is not None else [settings.tokens, settings.tags]


def main_figure(settings: EntitiesSettings) -> str:
    """The figure by which models are compared; more of it is better."""
    del settings
    return "f1"


def find_labels(table: pa.Table, settings: EntitiesSettings) -> list[str]:
    """O, then the sorted tags, in `settings.scheme`, of all types in the table.

    Raises ValueError where the table names no type.
    """
    if settings.text is not None:
        spans = list_column(table, settings.spans, "structs {start, end, label}").values
        types = sorted(set(span_fields(spans, settings)[2].drop_null().unique().to_pylist()) - {""})
    else:
        names = list_column(table, settings.tags, "strings").values.drop_null().unique().to_pylist()
        types = tag_set(names).type_names
    if not types:
        raise ValueError(
            f"column {columns(settings)[1]!r} names no entity in any row; there is nothing to learn"
        )
    return all_tags(types, settings.scheme)


def prepare(
    table: pa.Table,
    tokenizer: Tokenizer,
    labels: Sequence[str] | None,
    settings: EntitiesSettings,
    *,
    max_length: int,
) -> tuple[Examples, np.ndarray]:
    """Examples of at most `max_length` tokens, in the order of the rows, and reasons [rows].

    Targets, each a value a token: `labels` (IGNORED but on the first piece of every word, or on all its pieces with
    `label_all`); `words` and `words_end`, the words [words, words_end) of the row that the token predicts, IGNORED for
    none. A token predicts more than one word where a piece runs on into the next. With `labels` None there is no
    target `labels`.
    """
    if labels is None:
        texts, words, found = read_words(table, settings)
        tags, reasons = None, found.lines
    else:
        true = true_tags(table, labels, settings)
        texts, words, tags, reasons = true.texts, true.words, true.tags, true.reasons
    rows = np.flatnonzero(chosen(reasons))
    pieces = tokenize(tokenizer, [texts[row] for row in rows])
    words = Words(words.starts, words.ends, words.offsets[np.append(rows, len(reasons))])
    first, stop = pieces.words(words)
    base = words.offsets[pieces.rows]
    lead = np.maximum(first + base, np.maximum.accumulate(np.append(0, (stop + base)[:-1]))) - base
    predicts = lead < stop
    none = np.bincount(pieces.rows[predicts], minlength=len(rows)) == 0
    reasons[rows[none]] = "no word has tokens"
    per_token = {
        "words": np.where(predicts, lead, IGNORED),
        "words_end": np.where(predicts, stop, IGNORED),
    }
    if tags is not None:
        per_token["labels"] = _labels(tags, labels, base, first, stop, lead, settings)
    lengths = np.where(none, 0, pieces.ids.lengths)
    return _examples(tokenizer, pieces, lengths, rows, per_token, settings, max_length), reasons


def _labels(
    tags: Lists,
    labels: Sequence[str],
    base: np.ndarray,
    first: np.ndarray,
    stop: np.ndarray,
    lead: np.ndarray,
    settings: EntitiesSettings,
) -> np.ndarray:
    values = np.full(len(base), IGNORED)
    predicts = lead < stop
    values[predicts] = tags.values[(lead + base)[predicts]]
    if settings.label_all:
        more = ~predicts & (first < stop)
        values[more] = followers(label_tags(labels))[1][tags.values[(first + base)[more]]]
    return values


def _examples(
    tokenizer: Tokenizer,
    pieces: Pieces,
    lengths: np.ndarray,
    rows: np.ndarray,
    per_token: dict[str, np.ndarray],
    settings: EntitiesSettings,
    max_length: int,
) -> Examples:
    specials = frame(tokenizer)
    room = max_length - specials.size
    if room < 1:
        raise ValueError(f"max_length={max_length} leaves no room for text; use at least {specials.size + 1}")
    cut = windows(lengths, np.full(len(rows), room), settings.overlap)
    n, begin = len(cut.row), pieces.ids.offsets[cut.row] + specials.size
    before, after = len(specials.before), len(specials.after)
    starts = np.stack([np.zeros(n, np.int64), begin + cut.start, np.full(n, before)], 1)
    counts = np.stack([np.full(n, before), cut.stop - cut.start, np.full(n, after)], 1)
    layout = lay_out(starts, counts)
    sizes = np.diff(layout.offsets)
    place = layout.places - np.repeat(begin, sizes)
    owned = (place >= np.repeat(cut.own_start, sizes)) & (place < np.repeat(cut.own_stop, sizes))
    targets = {}
    for name, values in per_token.items():
        laid = layout.lists(with_specials(specials, values)).values
        targets[name] = Lists(np.where(owned, laid, IGNORED), layout.offsets)
    ids = layout.lists(np.concatenate([specials.ids, pieces.ids.values]))
    return Examples(ids, sizes, rows[cut.row], targets)


def repaired_rows(table: pa.Table, labels: Sequence[str], settings: EntitiesSettings) -> np.ndarray:
    """bool [rows]: rows whose tags or spans `errors: repair` changed."""
    return true_tags(table, labels, settings).repaired


def with_truth(
    examples: Examples, table: pa.Table, labels: Sequence[str], settings: EntitiesSettings
) -> Examples:
    """Examples of `prepare` with what `Scores` compares with: the `tags` of all words of their rows, numbers of labels.

    They are more than the targets: a word may have no token of its own.
    """
    true, first = true_tags(table, labels, settings).tags, examples.first
    lengths = np.where(first, true.lengths[examples.row], 0)
    tags = Lists(true.take(examples.row[first]).values, offsets_of(lengths))
    return replace(examples, truth={**examples.truth, "tags": tags})


class Scores:
    """How well logits find the entities of examples that have their truth; streaming. Figures are those of
    `EntityScores`."""

    def __init__(self, labels: Sequence[str], settings: EntitiesSettings) -> None:
        self._labels, self._settings = list(labels), settings
        self.counted = EntityScores(labels)

    def add(self, outputs: Mapping[str, np.ndarray], examples: Examples) -> None:
        """The logits [tokens, labels] of all windows of some rows."""
        true = examples.truth["tags"].take(np.flatnonzero(examples.first))
        tags, _ = tags_of_words(outputs["logits"], examples, true.lengths, self._labels, self._settings)
        self.counted.add(true, tags)

    def merge(self, state: str) -> None:
        """Add the `to_json` of another worker."""
        self.counted.merge(EntityScores.from_json(self._labels, state))

    def to_json(self) -> str:
        """What was counted."""
        return self.counted.to_json()

    def result(self) -> dict[str, float]:
        """The figures."""
        return self.counted.result()

    def tables(self) -> Tables:
        """For a report."""
        return Tables(labels=self.counted.tags.type_names, per_label=self.counted.per_label())
