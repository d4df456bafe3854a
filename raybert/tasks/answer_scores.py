"""Exact match and F1 of answers, as SQuAD's official script (evaluate-v2.0.py) defines them."""

import re
import string
from collections import Counter
from collections.abc import Sequence

import numpy as np

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Lower case, without ASCII punctuation and English articles, words apart by one space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(true: str, predicted: str) -> float:
    """1.0 where the two are the same once normalised, else 0.0."""
    return float(normalize_answer(true) == normalize_answer(predicted))


def word_f1(true: str, predicted: str) -> float:
    """F1 of the words, once normalised; where one has no words, 1.0 if neither has."""
    a, b = normalize_answer(true).split(), normalize_answer(predicted).split()
    if not a or not b:
        return float(a == b)
    common = (Counter(a) & Counter(b)).total()
    # 2PR / (P + R) with P = common / |b| and R = common / |a|
    return 2 * common / (len(a) + len(b))


def best_scores(answers: Sequence[str], text: str) -> tuple[float, float]:
    """Exact match and F1 of a predicted answer ("" for none), each the best over all right ones ([] for none)."""
    right = [answer for answer in answers if normalize_answer(answer)] or [""]
    return max(exact_match(answer, text) for answer in right), max(word_f1(answer, text) for answer in right)


class AnswerScores:
    """Means over rows of the best of a row's right answers. Streaming: sums only. From 0 to 1 (SQuAD says 0 to 100).

    `result()`: `exact_match f1`, and the same of rows with and without an answer: `has_answer_exact_match
    has_answer_f1 has_answer_support no_answer_exact_match no_answer_f1 no_answer_support` (0 where there are none).
    """

    def __init__(self) -> None:
        # rows without and with an answer: exact matches, F1, number
        self.sums = np.zeros((2, 3))

    def add(self, true: Sequence[Sequence[str]], predicted: Sequence[str]) -> None:
        """All right answers of every row ([] for none), and the predicted one ("" for none)."""
        for answers, text in zip(true, predicted, strict=True):
            self.sums[int(bool(answers))] += *best_scores(answers, text), 1

    def merge(self, other: "AnswerScores") -> None:
        """Add the sums of another worker."""
        self.sums += other.sums

    def result(self) -> dict[str, float]:
        """All scores by name; those of the class's docstring."""
        both = self.sums.sum(0)
        scores = {"exact_match": both[0] / max(both[2], 1), "f1": both[1] / max(both[2], 1)}
        for name, (exact, f1, count) in (("has_answer", self.sums[1]), ("no_answer", self.sums[0])):
            scores |= {f"{name}_exact_match": exact / max(count, 1), f"{name}_f1": f1 / max(count, 1)}
            scores[f"{name}_support"] = count
        return {name: float(value) for name, value in scores.items()}
