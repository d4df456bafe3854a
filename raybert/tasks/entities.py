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
from raybert.evaluate.scores import Tables
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
    """The tag of every word that the examples predict, in arrays of one length.

    Args:
        logits: [tokens, labels], in the order of `examples.ids.values`.

    Returns:
        `row`, `word` and `word_end` (words [word, word_end) of the row), `tag` (the label of the highest logit), int64;
        `score`, its softmax probability.
    """
    del settings
    assert len(logits) == len(examples.ids.values), "logits must be [tokens, labels]"
    words, ends = examples.targets["words"].values, examples.targets["words_end"].values
    at = np.flatnonzero(words != IGNORED)
    row = np.repeat(examples.row, examples.ids.lengths)[at]
    kept = logits[at].astype(np.float64)
    score = 1 / np.exp(kept - kept.max(1, keepdims=True)).sum(1) if len(at) else np.zeros(0)
    return {"row": row, "word": words[at], "word_end": ends[at], "tag": kept.argmax(1), "score": score}


def assemble(
    found: Mapping[str, np.ndarray], words: np.ndarray, labels: Sequence[str]
) -> tuple[np.ndarray, Lists, np.ndarray]:
    """Rows, int64 [m] ascending; the tags (numbers of labels) of all their words, O where no token covers a word; and the
    probability of each of these tags, 1 of such an O.

    `found` is of `predict`, of all windows of some rows; `words` int64, how many words each of the rows counted there has.
    """
    known = label_tags(labels)
    rows, of_row = np.unique(found["row"], return_inverse=True)
    offsets = offsets_of(words[rows])
    tags, sure = np.full(offsets[-1], known.names.index("O")), np.ones(offsets[-1])
    start, end, codes = found["word"] + offsets[of_row], found["word_end"] + offsets[of_row], found["tag"]
    tags[start], sure[start] = codes, found["score"]
    first, last, middle = _followers(known)
    for k in np.flatnonzero(end - start > 1):
        a, b, code = start[k], end[k], codes[k]
        tags[a], tags[a + 1 : b - 1], tags[b - 1] = first[code], middle[code], last[code]
        sure[a:b] = found["score"][k]
    return rows, Lists(tags, offsets), sure


def with_texts(examples: Examples, table: pa.Table, settings: EntitiesSettings) -> Examples:
    """Examples of `prepare` with what `decode` needs: the `text` of their rows, and the characters of all its words,
    `word_starts` and `word_ends`."""
    texts, words, _ = read_words(table, settings)
    first = examples.first
    rows, given = examples.row[first], np.full(len(examples), "", object)
    given[first] = [texts[row] for row in rows]
    starts, ends = (Lists(x, words.offsets).take(rows).values for x in (words.starts, words.ends))
    offsets = offsets_of(np.where(first, np.diff(words.offsets)[examples.row], 0))
    more = {"text": given, "word_starts": Lists(starts, offsets), "word_ends": Lists(ends, offsets)}
    return replace(examples, truth={**examples.truth, **more})


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
        tags, _ = _tags(outputs["logits"], examples, true.lengths, self._labels, self._settings)
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


def output_fields(settings: EntitiesSettings) -> dict[str, pa.DataType]:
    """What `decode` gives of a row."""
    del settings
    entity = [
        ("start", pa.int32()),
        ("end", pa.int32()),
        ("label", pa.string()),
        ("score", pa.float32()),
        ("text", pa.string()),
    ]
    return {"entities": pa.list_(pa.struct(entity))}


def decode(
    outputs: Mapping[str, np.ndarray],
    examples: Examples,
    labels: Sequence[str],
    settings: EntitiesSettings,
) -> list[dict[str, Any]]:
    """{entities} of every row of examples that have their texts, from the logits [tokens, labels] of all its windows.

    An entity is {start, end, label, score, text}: in characters of the text, or in words of the row where the input is
    words; the end is exclusive. The score is the mean probability of the tags of its words.
    """
    words = examples.truth["word_starts"].take(np.flatnonzero(examples.first)).lengths
    tags, sure = _tags(outputs["logits"], examples, words, labels, settings)
    return [{"entities": found} for found in _entities(tags, sure, examples, labels, settings)]


def shown_rows(
    decoded: Sequence[Mapping[str, Any]],
    table: pa.Table,
    examples: Examples,
    labels: Sequence[str],
    settings: EntitiesSettings,
) -> dict[str, list[Any]]:
    """How rows are shown in a report: `text`, the entities that are the `label` and those `predicted`, and as `score` their
    F1, 1 where there are none in either. `examples` have their texts and their truth."""
    del table
    first = np.flatnonzero(examples.first)
    tags = examples.truth["tags"].take(first)
    true = _entities(tags, np.ones(len(tags.values)), examples, labels, settings)
    pairs = [(a, row["entities"]) for a, row in zip(true, decoded, strict=True)]
    return {
        "text": examples.truth["text"][first].tolist(),
        "label": [_told(a) for a, _ in pairs],
        "predicted": [_told(b) for _, b in pairs],
        "score": [_f1(a, b) for a, b in pairs],
    }


def _told(found: Sequence[Mapping[str, Any]]) -> str:
    return ", ".join(f"{one['text']} ({one['label']})" for one in found) or "none"


def _f1(true: Sequence[Mapping[str, Any]], found: Sequence[Mapping[str, Any]]) -> float:
    a, b = ({(one["start"], one["end"], one["label"]) for one in side} for side in (true, found))
    return 2 * len(a & b) / (len(a) + len(b)) if a or b else 1.0


def _entities(
    tags: Lists, sure: np.ndarray, examples: Examples, labels: Sequence[str], settings: EntitiesSettings
) -> list[list[dict[str, Any]]]:
    """The entities that the tags of all words of every row spell."""
    first = np.flatnonzero(examples.first)
    starts, ends = (examples.truth[name].take(first) for name in ("word_starts", "word_ends"))
    texts, known = examples.truth["text"][first], label_tags(labels)
    found = spell(known.prefixes[tags.values], known.types[tags.values], tags.offsets)
    decoded: list[list[dict[str, Any]]] = [[] for _ in first]
    of_row = np.searchsorted(tags.offsets, found.start, "right") - 1
    for row, start, stop, kind in zip(of_row, found.start, found.stop, found.type, strict=True):
        begin, end = int(starts.values[start]), int(ends.values[stop - 1])
        in_words = int(start - tags.offsets[row]), int(stop - tags.offsets[row])
        span = (begin, end) if settings.text is not None else in_words
        entity = {"start": span[0], "end": span[1], "label": known.type_names[kind]}
        entity |= {"score": float(sure[start:stop].mean()), "text": texts[row][begin:end]}
        decoded[row].append(entity)
    return decoded


def _tags(
    logits: np.ndarray,
    examples: Examples,
    words: np.ndarray,
    labels: Sequence[str],
    settings: EntitiesSettings,
) -> tuple[Lists, np.ndarray]:
    """Tags and their probabilities of all words of all rows, `words` of them in every row (see `assemble`)."""
    found = predict(logits, replace(examples, row=examples.number), settings)
    rows, tags, sure = assemble(found, words, labels)
    assert len(rows) == len(words), "every row has a token that predicts"
    return tags, sure
