"""Tags of words and the entities they spell: BIO, BIOES and BILOU, their errors, and the scores of entities.

An entity is a run of words with one type. Where tags break their scheme they are read as conlleval.pl (CoNLL-2000)
reads them: an entity begins at B or S, after O, after E or S, and where the type changes; it ends before these.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raybert.evaluate.scores import LabelScore, label_scores
from raybert.tasks.examples import Lists

_PREFIXES = "OBIES"
O, B, I, E, S = range(5)  # noqa: E741
_LETTERS = {"B": B, "I": I, "E": E, "S": S, "L": E, "U": S}


@dataclass(frozen=True)
class TagSet:
    """The tags of a model or of a column: their names, and of each the prefix (O, B, I, E, S; -1: none known) and the
    type (number in `types`; -1 for O)."""

    names: list[str]
    prefixes: np.ndarray
    types: np.ndarray
    type_names: list[str]

    def code(self, prefixes: np.ndarray, types: np.ndarray) -> np.ndarray:
        """The number of each tag (prefix, type); -1 where there is no such tag."""
        table = np.full((len(_PREFIXES), len(self.type_names) + 1), -1, np.int64)
        known = self.prefixes >= 0
        table[self.prefixes[known], self.types[known]] = np.flatnonzero(known)
        return table[prefixes, types]


def tag_set(names: Sequence[str], type_names: Sequence[str] | None = None) -> TagSet:
    """Parse tags; types are numbered as in `type_names`, by default in the order of their names."""
    parts = [name.partition("-") if name != "O" else ("O", "", "") for name in names]
    known = [
        (name == "O") or (head in _LETTERS and bool(tail))
        for name, (head, _, tail) in zip(names, parts, strict=True)
    ]
    prefixes = [(_LETTERS.get(head, O) if ok else -1) for ok, (head, _, _) in zip(known, parts, strict=True)]
    if type_names is None:
        type_names = sorted({tail for ok, (_, _, tail) in zip(known, parts, strict=True) if ok and tail})
    numbers = {name: number for number, name in enumerate(type_names)}
    types = [numbers[tail] if ok and tail else -1 for ok, (_, _, tail) in zip(known, parts, strict=True)]
    return TagSet(list(names), np.array(prefixes, np.int64), np.array(types, np.int64), list(type_names))


def label_tags(labels: Sequence[str]) -> TagSet:
    """The tags that are a model's labels. Raises ValueError for a label that is no tag, and where there is no O."""
    tags = tag_set(labels)
    if (tags.prefixes < 0).any() or "O" not in labels:
        wrong = [name for name, prefix in zip(labels, tags.prefixes, strict=True) if prefix < 0]
        problem = f"{wrong[0]!r} is not one" if wrong else "there is no O"
        raise ValueError(f"labels of entities must be O, B-type, I-type ...; {problem}")
    return tags


def all_tags(types: Sequence[str], scheme: str) -> list[str]:
    """O, then the sorted tags of all types."""
    return ["O", *sorted(f"{prefix}-{name}" for prefix in scheme.upper() if prefix != "O" for name in types)]


def scheme_of(names: Sequence[str]) -> str:
    """bio, bioes or bilou, by the prefixes that occur. Raises ValueError where E or S and L or U do."""
    heads = {name.partition("-")[0] for name in names if "-" in name}
    if heads & {"E", "S"} and heads & {"L", "U"}:
        raise ValueError("tags mix BIOES (E-, S-) and BILOU (L-, U-); use one scheme")
    return "bioes" if heads & {"E", "S"} else "bilou" if heads & {"L", "U"} else "bio"


@dataclass(frozen=True)
class Entities:
    """Entities of rows of words, one after the other: words [start, stop) counted over all rows, and a type."""

    start: np.ndarray
    stop: np.ndarray
    type: np.ndarray


def spell(prefixes: np.ndarray, types: np.ndarray, offsets: np.ndarray) -> Entities:
    """The entities that the tags of words [total] of rows with `offsets` spell (see the module)."""
    begins, ends = _borders(prefixes, types, offsets)
    start = np.flatnonzero(begins)
    # every place where an entity ends has an open one, so the two lists pair up in order
    return Entities(start, np.flatnonzero(ends) + 1, types[start])


def _borders(prefixes: np.ndarray, types: np.ndarray, offsets: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """bool [total] each: the first words of entities, and the last."""
    total = len(prefixes)
    before, types_before = np.full(total, O), np.full(total, -1)
    before[1:], types_before[1:] = prefixes[:-1], types[:-1]
    first = offsets[:-1][offsets[:-1] < offsets[1:]]
    before[first], types_before[first] = O, -1
    inside = prefixes != O
    apart = (before == O) | (before == E) | (before == S) | (types_before != types)
    apart |= (prefixes == B) | (prefixes == S)
    begins = inside & apart
    goes_on = np.zeros(total, bool)
    goes_on[:-1] = (inside & ~apart)[1:]
    return begins, inside & ~goes_on


def write(entities: Entities, total: int, scheme: str) -> tuple[np.ndarray, np.ndarray]:
    """Prefixes and types of `total` words in which these entities lie: the inverse of `spell`."""
    prefixes, types = np.full(total, O), np.full(total, -1)
    lengths = entities.stop - entities.start
    before = np.cumsum(lengths) - lengths
    places = np.arange(lengths.sum()) + np.repeat(entities.start - before, lengths)
    prefixes[places], types[places] = I, np.repeat(entities.type, lengths)
    prefixes[entities.start] = B
    if scheme == "bioes":
        single = lengths == 1
        prefixes[entities.stop[~single] - 1] = E
        prefixes[entities.start[single]] = S
    return prefixes, types


def broken(prefixes: np.ndarray, types: np.ndarray, offsets: np.ndarray, scheme: str) -> np.ndarray:
    """bool [total]: tags that break the scheme, that is, are not those that their entities are written with."""
    written, _ = write(spell(prefixes, types, offsets), len(prefixes), "bio" if scheme == "bio" else "bioes")
    return written != prefixes


class EntityScores:
    """Entity-level precision, recall and F1 as conlleval and seqeval define them: an entity is right when its first
    word, its last word and its type are. Streaming: counts only.

    `result()`: `precision recall f1` (micro: over all entities), `macro_precision macro_recall macro_f1` (means over
    the types that occur), `accuracy` (of the tags of words), and `<type>_precision` ... `<type>_support`. 0 where a
    denominator is 0.
    """

    def __init__(self, labels: Sequence[str]):
        self.tags = label_tags(labels)
        self.right, self.predicted, self.true = np.zeros((3, len(self.tags.type_names)), np.int64)
        self.words = self.right_words = 0

    def add(self, true: Lists, predicted: Lists) -> None:
        """Rows of numbers of tags, the same words in both."""
        assert (true.offsets == predicted.offsets).all(), "true and predicted must have the same words"
        sides = [self._entities(side) for side in (true, predicted)]
        for counts, side in zip((self.true, self.predicted), sides, strict=True):
            counts += np.bincount(side.type, minlength=len(counts))
        ends = np.full(len(true.values), -1)
        ends[sides[0].start] = sides[0].stop
        kinds = np.full(len(true.values), -1)
        kinds[sides[0].start] = sides[0].type
        found = sides[1]
        hit = (ends[found.start] == found.stop) & (kinds[found.start] == found.type)
        self.right += np.bincount(found.type[hit], minlength=len(self.right))
        self.words += len(true.values)
        self.right_words += int((true.values == predicted.values).sum())

    def merge(self, other: "EntityScores") -> None:
        """Add the counts of another worker."""
        assert self.tags.names == other.tags.names, "scores of different labels"
        self.right += other.right
        self.predicted += other.predicted
        self.true += other.true
        self.words += other.words
        self.right_words += other.right_words

    def to_json(self) -> str:
        """What was counted."""
        counts = {name: getattr(self, name).tolist() for name in ("right", "predicted", "true")}
        return json.dumps({**counts, "words": self.words, "right_words": self.right_words})

    @classmethod
    def from_json(cls, labels: Sequence[str], state: str) -> "EntityScores":
        """The inverse of `to_json`."""
        made, counts = cls(labels), json.loads(state)
        made.right, made.predicted, made.true = (
            np.array(counts[name], np.int64) for name in ("right", "predicted", "true")
        )
        made.words, made.right_words = counts["words"], counts["right_words"]
        return made

    def result(self) -> dict[str, float]:
        """All scores by name; those of the class's docstring."""
        totals = [counts.sum(keepdims=True) for counts in (self.right, self.predicted, self.true)]
        scores = {name: float(values[0]) for name, values in _ratios(*totals).items()}
        each = _ratios(self.right, self.predicted, self.true)
        occurs = (self.true + self.predicted) > 0
        scores |= {
            f"macro_{name}": float(values[occurs].mean()) if occurs.any() else 0.0
            for name, values in each.items()
        }
        scores["accuracy"] = self.right_words / max(self.words, 1)
        for number, kind in enumerate(self.tags.type_names):
            scores |= {f"{kind}_{name}": float(values[number]) for name, values in each.items()}
            scores[f"{kind}_support"] = float(self.true[number])
        return scores

    def per_label(self) -> list[LabelScore]:
        """Precision, recall, F1 and support of every type."""
        return label_scores(self.tags.type_names, self.right, self.predicted, self.true)

    def _entities(self, rows: Lists) -> Entities:
        return spell(self.tags.prefixes[rows.values], self.tags.types[rows.values], rows.offsets)


def _ratios(right: np.ndarray, predicted: np.ndarray, true: np.ndarray) -> dict[str, np.ndarray]:
    precision, recall = right / np.maximum(predicted, 1), right / np.maximum(true, 1)
    return {"precision": precision, "recall": recall, "f1": 2 * right / np.maximum(predicted + true, 1)}
