"""Rows of words with tags, or of texts with spans, as words and entities; and what is wrong with the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raybert.config.tasks import EntitiesSettings
from raybert.tasks.columns import Reasons, list_column, refuse_unknown, string_column, strings_of
from raybert.tasks.examples import Lists
from raybert.tasks.tags import Entities, broken, label_tags, scheme_of, spell, tag_set, write
from raybert.tasks.words import Words, find_words, offsets_of, overlapping


@dataclass(frozen=True)
class TrueTags:
    """Labelled words of rows.

    Attributes:
        texts: the text of every row.
        words: where the words lie in it; a rejected row has none.
        tags: numbers of labels, a word each.
        reasons: object [rows], None or why a row is rejected.
        repaired: bool [rows], rows that `errors: repair` changed.
    """

    texts: list[str]
    words: Words
    tags: Lists
    reasons: np.ndarray
    repaired: np.ndarray


def true_tags(table: pa.Table, labels: Sequence[str], settings: EntitiesSettings) -> TrueTags:
    """The words and tags of a labelled table, in the scheme of `labels`.

    Raises ValueError for types that `labels` do not know, and for columns of the wrong type.
    """
    texts, words, reasons = read_words(table, settings)
    read = _read_tags if settings.text is None else _read_spans
    entities, types, repaired = read(table, words, reasons, settings)
    target = label_tags(labels)
    kept = np.repeat(reasons.good, np.diff(words.offsets))
    entities, kept_words = _keep(entities, words, kept, reasons.good)
    refuse_unknown(
        [types[i] for i in np.unique(entities.type)],
        target.type_names,
        settings.tags if settings.text is None else settings.spans,
    )
    numbers = np.array([target.type_names.index(t) if t in target.type_names else -1 for t in types] or [-1])
    entities = Entities(entities.start, entities.stop, numbers[entities.type])
    scheme = "bio" if scheme_of(labels) == "bio" else "bioes"
    prefixes, kinds = write(entities, len(kept_words.starts), scheme)
    codes = target.code(prefixes, kinds)
    if (codes < 0).any():
        at = int(np.argmax(codes < 0))
        missing = f"{'OBIES'[prefixes[at]]}-{target.type_names[kinds[at]]}" if prefixes[at] else "O"
        raise ValueError(f"the labels have no tag {missing!r}; they are {', '.join(labels)}")
    repaired &= reasons.good
    return TrueTags(texts, kept_words, Lists(codes, kept_words.offsets), reasons.lines, repaired)


def read_words(table: pa.Table, settings: EntitiesSettings) -> tuple[list[str], Words, Reasons]:
    """Text and words of every row; a row with a reason has the text "" and no words."""
    if settings.text is not None:
        texts, reasons = strings_of(table, settings.text)
        words = find_words(texts)
        reasons.add(np.diff(words.offsets) == 0, lambda _: f"{settings.text} has no words")
        return texts, words, reasons
    tokens = list_column(table, settings.tokens, "strings")
    reasons = Reasons(len(table))
    reasons.add(tokens.null, lambda _: f"{settings.tokens} is null")
    reasons.add(np.diff(tokens.offsets) == 0, lambda _: f"{settings.tokens} is an empty list")
    reasons.add_at(
        pc.is_null(tokens.values).to_numpy(zero_copy_only=False),
        tokens.offsets,
        lambda at, row: f"word {at - tokens.offsets[row] + 1} of {settings.tokens} is null",
    )
    lengths = pc.fill_null(pc.utf8_length(tokens.values), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    starts = offsets_of(lengths + 1)[:-1]
    row = np.repeat(np.arange(len(table)), np.diff(tokens.offsets))
    starts = starts - offsets_of(lengths + 1)[tokens.offsets[row]]
    joined = pc.fill_null(pc.binary_join(tokens.lists, " "), "").to_pylist()
    kept = np.repeat(reasons.good, np.diff(tokens.offsets))
    counts = np.where(reasons.good, np.diff(tokens.offsets), 0)
    texts = [text if good else "" for text, good in zip(joined, reasons.good, strict=True)]
    return texts, Words(starts[kept], (starts + lengths)[kept], offsets_of(counts)), reasons


def _keep(entities: Entities, words: Words, kept: np.ndarray, good: np.ndarray) -> tuple[Entities, Words]:
    """Drop the words, and the entities in them, of rows that are not good."""
    moved = offsets_of(kept)
    stays = kept[entities.start] if len(entities.start) else np.zeros(0, bool)
    left = Entities(moved[entities.start[stays]], moved[entities.stop[stays]], entities.type[stays])
    counts = np.where(good, np.diff(words.offsets), 0)
    return left, Words(words.starts[kept], words.ends[kept], offsets_of(counts))


def _read_tags(
    table: pa.Table, words: Words, reasons: Reasons, settings: EntitiesSettings
) -> tuple[Entities, list[str], np.ndarray]:
    """Entities of rows of tags (words counted as in `words`), the names of their types, and the repaired rows."""
    given = list_column(table, settings.tags, "strings")
    lengths = pc.fill_null(pc.list_value_length(table[settings.tokens]), 0).to_numpy()
    counts = np.diff(given.offsets)
    reasons.add(given.null, lambda _: f"{settings.tags} is null")
    reasons.add(
        counts != lengths,
        lambda row: f"{settings.tokens} has {lengths[row]} words, but {settings.tags} has {counts[row]} tags",
    )
    encoded = given.values.dictionary_encode()
    names = encoded.dictionary.to_pylist()
    numbers = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    tags = tag_set(names)
    scheme = scheme_of(names)
    prefixes = np.append(tags.prefixes, -1)[numbers]
    types = np.append(tags.types, -1)[numbers]

    def place(at: int, row: int) -> str:
        return f"tag {at - given.offsets[row] + 1}"

    def unknown(at: int, row: int) -> str:
        name = names[numbers[at]] if numbers[at] >= 0 else None
        return f"{place(at, row)} is {name!r}; tags are O and {_shape(scheme)}"

    reasons.add_at(prefixes < 0, given.offsets, unknown)
    prefixes = np.maximum(prefixes, 0)
    wrong = broken(prefixes, types, given.offsets, scheme)
    if settings.errors == "reject":
        reasons.add_at(
            wrong, given.offsets, lambda at, row: _broken_line(at, row, given.offsets, names, numbers)
        )
    repaired = np.zeros(len(table), bool)
    repaired[np.repeat(np.arange(len(table)), counts)[wrong]] = True
    # rows without words in `words`, and those with another number of tags, are rejected: leave their tags out
    fits = counts == np.diff(words.offsets)
    kept = np.repeat(fits, counts)
    prefixes, types = prefixes[kept], types[kept]
    entities = spell(prefixes, types, offsets_of(np.where(fits, counts, 0)))
    to_words = np.flatnonzero(np.repeat(fits, np.diff(words.offsets)))
    start, stop = (to_words[entities.start], to_words[entities.stop - 1] + 1)
    return Entities(start, stop, entities.type), tags.type_names, repaired


def _shape(scheme: str) -> str:
    return ", ".join(f"{letter}-type" for letter in scheme.upper() if letter != "O")


def _broken_line(at: int, row: int, offsets: np.ndarray, names: list[str], numbers: np.ndarray) -> str:
    """What is wrong with tag `at`: it begins no entity, or does not end one."""

    def name(place: int, end: str) -> str:
        return names[numbers[place]] if offsets[row] <= place < offsets[row + 1] else end

    tag, before, after = names[numbers[at]], name(at - 1, "nothing"), name(at + 1, "nothing")
    number = at - offsets[row] + 1
    if tag[0] in "IEL" and (before[0] not in "BI" or before[2:] != tag[2:]):
        return f"tag {number} is {tag} after {before}; an entity begins with B-{tag[2:]} (or set task.errors=repair)"
    return f"tag {number} is {tag} before {after}, which does not end the entity (or set task.errors=repair)"


def span_fields(spans: pa.Array, settings: EntitiesSettings) -> tuple[np.ndarray, np.ndarray, pa.Array]:
    """start, end (int64; -1 for null) and label of spans. Raises ValueError where spans are something else."""
    if pa.types.is_null(spans.type):  # all lists are empty
        return *np.zeros((2, 0), np.int64), pa.array([], pa.string())
    try:
        start, end, label = (pc.struct_field(spans, name) for name in ("start", "end", "label"))
        numbers = [pc.fill_null(x.cast(pa.int64()), -1).to_numpy(zero_copy_only=False) for x in (start, end)]
        return numbers[0], numbers[1], label.cast(pa.string())
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
        raise ValueError(
            f"column {settings.spans!r} must hold lists of {{start, end, label}}, not of {spans.type}"
        ) from None


def _read_spans(
    table: pa.Table, words: Words, reasons: Reasons, settings: EntitiesSettings
) -> tuple[Entities, list[str], np.ndarray]:
    """As `_read_tags`, of spans of characters."""
    given = list_column(table, settings.spans, "structs {start, end, label}")
    reasons.add(given.null, lambda _: f"{settings.spans} is null; an empty list says that there is no entity")
    start, end, label = span_fields(given.values, settings)
    text_lengths = pc.fill_null(pc.utf8_length(string_column(table, settings.text)), 0).to_numpy()
    row = np.repeat(np.arange(len(table)), np.diff(given.offsets))
    encoded = label.dictionary_encode()
    types = encoded.dictionary.to_pylist()
    kinds = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)

    def line(problem: str) -> Any:
        return lambda at, r: f"entity {at - given.offsets[r] + 1} ({start[at]}:{end[at]}) {problem}"

    nameless = (kinds < 0) | (kinds == (types.index("") if "" in types else -1))
    reasons.add_at(nameless, given.offsets, line("has no label"))
    outside = (start < 0) | (end <= start) | (end > text_lengths[row])
    reasons.add_at(outside, given.offsets, line("does not lie in the text"))
    usable = ~outside & (np.diff(words.offsets) > 0)[row]
    if not usable.any():
        return Entities(*np.zeros((3, 0), np.int64)), types, np.zeros(len(table), bool)
    first, stop = overlapping(
        words.starts, words.ends, words.offsets, row[usable], start[usable], end[usable]
    )
    at = np.flatnonzero(usable)
    empty = first >= stop
    reasons.add_at(_scatter(at[empty], len(start)), given.offsets, line("holds no word"))
    at, first, stop = (
        at[~empty],
        first[~empty] + words.offsets[row[at[~empty]]],
        stop[~empty] + words.offsets[row[at[~empty]]],
    )
    inside = (words.starts[first] < start[at]) | (words.ends[stop - 1] > end[at])
    if settings.errors == "reject":
        cut = line("begins or ends inside of a word (task.errors=repair widens it)")
        reasons.add_at(_scatter(at[inside], len(start)), given.offsets, cut)
    order = np.lexsort((stop, first))
    at, first, stop, inside = at[order], first[order], stop[order], inside[order]
    clash = np.flatnonzero(first[1:] < np.maximum.accumulate(stop)[:-1]) + 1
    reasons.add_at(_scatter(at[clash], len(start)), given.offsets, line("shares words with another entity"))
    repaired = np.zeros(len(table), bool)
    repaired[row[at[inside]]] = True
    return Entities(first, stop, kinds[at]), types, repaired


def _scatter(places: np.ndarray, size: int) -> np.ndarray:
    flags = np.zeros(size, bool)
    flags[places] = True
    return flags
