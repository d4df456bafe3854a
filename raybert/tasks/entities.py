"""Entities in text, or token classification: words with tags, or texts with spans, to examples; logits to entities.

The text is tokenized as it stands (words joined by spaces), so the ids are those that the model was pretrained with;
which word a token belongs to comes from the characters that it covers. Long rows become overlapping windows, never cut:
every word is predicted once, in the window where it has most context.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from raybert.config.tasks import EntitiesSettings
from raybert.tasks.columns import chosen, list_column
from raybert.tasks.entity_rows import read_words, span_fields, true_tags
from raybert.tasks.examples import IGNORED, Examples, Lists
from raybert.tasks.sequences import frame, lay_out, windows, with_specials
from raybert.tasks.tags import B, E, EntityScores, I, TagSet, all_tags, label_tags, spell, tag_set
from raybert.tasks.words import Pieces, Words, offsets_of, tokenize


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
        values[more] = _followers(label_tags(labels))[1][tags.values[(first + base)[more]]]
    return values


def _followers(tags: TagSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tags of the first, the last and the middle parts of a word, by the tag of the whole word: B is B I I, S is B E I."""
    first = np.array([0, B, I, I, B])
    last = np.array([0, I, I, E, E])
    middle = np.array([0, I, I, I, I])
    numbers = np.arange(len(tags.names))
    return tuple(
        np.where((code := tags.code(table[tags.prefixes], tags.types)) < 0, numbers, code)
        for table in (first, last, middle)
    )


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


def predict(logits: np.ndarray, examples: Examples, settings: EntitiesSettings) -> dict[str, np.ndarray]:
    """What is kept of the logits of a batch: the tag of every word that the batch predicts, in arrays of one length.

    Concatenate them over batches and workers, in any order, for `assemble` and `decode`: the windows of a row need not
    be in one batch.

    Args:
        logits: [tokens, labels], in the order of `examples.ids.values`.

    Returns:
        `row`, `word` and `word_end` (words [word, word_end) of the row), `tag` (the label of the highest logit); int64.
    """
    del settings
    assert len(logits) == len(examples.ids.values), "logits must be [tokens, labels]"
    words, ends = examples.targets["words"].values, examples.targets["words_end"].values
    at = np.flatnonzero(words != IGNORED)
    row = np.repeat(examples.row, examples.ids.lengths)[at]
    return {"row": row, "word": words[at], "word_end": ends[at], "tag": logits[at].argmax(1)}


def assemble(
    found: Mapping[str, np.ndarray], words: np.ndarray, labels: Sequence[str]
) -> tuple[np.ndarray, Lists]:
    """Rows, int64 [m] ascending, and the tags (numbers of labels) of all their words, O where no token covers a word.

    `found` is of `predict`; `words` int64, how many words every row of the table has.
    """
    known = label_tags(labels)
    rows, of_row = np.unique(found["row"], return_inverse=True)
    offsets = offsets_of(words[rows])
    tags = np.full(offsets[-1], known.names.index("O"))
    start, end, codes = found["word"] + offsets[of_row], found["word_end"] + offsets[of_row], found["tag"]
    tags[start] = codes
    first, last, middle = _followers(known)
    for k in np.flatnonzero(end - start > 1):
        a, b, code = start[k], end[k], codes[k]
        tags[a], tags[a + 1 : b - 1], tags[b - 1] = first[code], middle[code], last[code]
    return rows, Lists(tags, offsets)


def score(
    found: Mapping[str, np.ndarray], table: pa.Table, labels: Sequence[str], settings: EntitiesSettings
) -> EntityScores:
    """The scores of what `predict` found in rows of a labelled table; rows without examples are passed over."""
    true = true_tags(table, labels, settings).tags
    rows, tags = assemble(found, true.lengths, labels)
    scores = EntityScores(labels)
    scores.add(true.take(rows), tags)
    return scores


def with_truth(
    examples: Examples, table: pa.Table, labels: Sequence[str], settings: EntitiesSettings
) -> Examples:
    """Examples of `prepare` with what `Scores` compares with: the `tags` of all words of their rows, numbers of labels.

    They are more than the targets: a word may have no token of its own.
    """
    true, first = true_tags(table, labels, settings).tags, examples.first
    lengths = np.where(first, true.lengths[examples.row], 0)
    tags = Lists(true.take(examples.row[first]).values, offsets_of(lengths))
    return replace(examples, truth={"tags": tags})


class Scores:
    """How well logits find the entities of examples that have their truth; streaming. Figures are those of
    `EntityScores`."""

    def __init__(self, labels: Sequence[str], settings: EntitiesSettings) -> None:
        self._labels, self._settings = list(labels), settings
        self.counted = EntityScores(labels)

    def add(self, outputs: Mapping[str, np.ndarray], examples: Examples) -> None:
        """The logits [tokens, labels] of all windows of some rows."""
        _, first, number = np.unique(examples.row, return_index=True, return_inverse=True)
        found = predict(outputs["logits"], replace(examples, row=number), self._settings)
        true = examples.truth["tags"].take(first)
        rows, tags = assemble(found, true.lengths, self._labels)
        self.counted.add(true.take(rows), tags)

    def merge(self, state: str) -> None:
        """Add the `to_json` of another worker."""
        self.counted.merge(EntityScores.from_json(self._labels, state))

    def to_json(self) -> str:
        """What was counted."""
        return self.counted.to_json()

    def result(self) -> dict[str, float]:
        """The figures."""
        return self.counted.result()


def decode(
    found: Mapping[str, np.ndarray], table: pa.Table, labels: Sequence[str], settings: EntitiesSettings
) -> list[list[dict[str, Any]] | None]:
    """The entities of every row of the table, None for rows without examples; `found` is of `predict`.

    An entity is {start, end, label, text}: characters of the text, or words of the row where the input is words.
    """
    texts, words, _ = read_words(table, settings)
    rows, tags = assemble(found, np.diff(words.offsets), labels)
    known = label_tags(labels)
    entities = spell(known.prefixes[tags.values], known.types[tags.values], tags.offsets)
    decoded: list[list[dict[str, Any]] | None] = [None] * len(table)
    for row in rows:
        decoded[row] = []
    of_row = np.searchsorted(tags.offsets, entities.start, "right") - 1
    for number, start, stop, kind in zip(of_row, entities.start, entities.stop, entities.type, strict=True):
        row, first = rows[number], int(start - tags.offsets[number])
        last = first + int(stop - start) - 1
        place = words.offsets[row]
        begin, end = int(words.starts[place + first]), int(words.ends[place + last])
        span = (begin, end) if settings.text is not None else (first, last + 1)
        entity = {
            "start": span[0],
            "end": span[1],
            "label": known.type_names[kind],
            "text": texts[row][begin:end],
        }
        decoded[row].append(entity)
    return decoded
