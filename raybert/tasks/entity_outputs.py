"""Logits of token classification to the entities of rows, as they are written and shown."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from raybert.config.tasks import EntitiesSettings
from raybert.tasks.entity_rows import read_words
from raybert.tasks.examples import IGNORED, Examples, Lists
from raybert.tasks.tags import B, E, I, TagSet, label_tags, spell
from raybert.tasks.words import offsets_of


def followers(tags: TagSet) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tags of the first, the last and the middle parts of a word, by the tag of the whole word: B is B I I, S is B E I."""
    first = np.array([0, B, I, I, B])
    last = np.array([0, I, I, E, E])
    middle = np.array([0, I, I, I, I])
    numbers = np.arange(len(tags.names))
    return tuple(
        np.where((code := tags.code(table[tags.prefixes], tags.types)) < 0, numbers, code)
        for table in (first, last, middle)
    )


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
    first, last, middle = followers(known)
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
    tags, sure = tags_of_words(outputs["logits"], examples, words, labels, settings)
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


def tags_of_words(
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
