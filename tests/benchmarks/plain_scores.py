"""Scores of entities, relations and answers, written apart from raybert's; entities are checked by seqeval where it is
installed."""

import re
import string
from collections import Counter

import numpy as np


def entity_scores(true: list[list[str]], found: list[list[str]]) -> dict[str, float]:
    """Micro precision, recall and F1 of whole entities, read as conlleval does: I- after another type begins one."""
    spans = [[{(i, *span) for i, tags in enumerate(of) for span in _spans(tags)}] for of in (true, found)]
    (a,), (b,) = spans
    right = len(a & b)
    scores = {
        "f1": 2 * right / max(1, len(a) + len(b)),
        "precision": right / max(1, len(b)),
        "recall": right / max(1, len(a)),
    }
    try:
        from seqeval.metrics import f1_score
    except ImportError:
        return scores
    assert abs(scores["f1"] - f1_score(true, found)) < 1e-9, "seqeval counts otherwise"
    return scores


def _spans(tags: list[str]) -> list[tuple[str, int, int]]:
    found, start = [], 0
    for i, (tag, before) in enumerate(zip([*tags, "O"], ["O", *tags], strict=True)):
        continues = tag.startswith("I-") and tag[2:] == before[2:]
        if before != "O" and not continues:
            found.append((before[2:], start, i))
        if not continues:
            start = i
    return found


def relation_scores(true: list[str], found: list[str]) -> dict[str, float]:
    """Macro F1 of SemEval-2010 task 8: over the relations without Other, right only with the right direction."""
    from sklearn.metrics import accuracy_score

    def relation(label: str) -> str:
        return label.partition("(")[0]

    truths, claims = Counter(map(relation, true)), Counter(map(relation, found))
    right = Counter(relation(a) for a, b in zip(true, found, strict=True) if a == b)
    f1 = [2 * right[name] / (truths[name] + claims[name]) for name in truths if name != "Other"]
    return {"macro_f1": float(np.mean(f1)), "accuracy": float(accuracy_score(true, found))}


def answer_words(text: str) -> list[str]:
    """As SQuAD's evaluate-v2.0.py normalises answers."""
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


def word_f1(true: list[str], found: list[str]) -> float:
    """F1 of the words, repeated ones as often as they occur."""
    if not true or not found:
        return float(true == found)
    return 2 * sum((Counter(true) & Counter(found)).values()) / (len(true) + len(found))
