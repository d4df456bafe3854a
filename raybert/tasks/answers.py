"""Extractive question answering, as in SQuAD: rows to examples, logits to the spans of contexts that answer questions.

A sequence is [CLS] question [SEP] context [SEP]. A long context becomes overlapping windows; a window without the whole
answer, and a row without one, points at [CLS].
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from raybert.config.tasks import AnswersSettings
from raybert.tasks.answer_outputs import (
    decode,
    output_fields,
    predict,
    shown_rows,
    true_of_rows,
    with_texts,
)
from raybert.tasks.answer_rows import read_questions, true_answers
from raybert.tasks.answer_scores import AnswerScores
from raybert.tasks.examples import IGNORED, Examples, Lists
from raybert.tasks.sequences import Frame, Windows, frame, lay_out, windows, with_specials
from raybert.tasks.words import Pieces, offsets_of, tokenize_distinct

__all__ = [
    "Scores",
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
    "true_answers",
    "with_texts",
    "with_truth",
]


def columns(settings: AnswersSettings, *, labelled: bool = True) -> list[str]:
    """The columns that the task reads; of a field in a struct (`answers.text`) the whole struct."""
    names = [settings.question, settings.context]
    if labelled:
        names += [settings.answer, settings.answer_start]
    return list(dict.fromkeys(name.partition(".")[0] for name in names))


def nested(settings: AnswersSettings) -> list[str]:
    """Those of them that may hold lists or structs."""
    return [name.partition(".")[0] for name in (settings.answer, settings.answer_start)]


def main_figure(settings: AnswersSettings) -> str:
    """The figure by which models are compared; more of it is better."""
    del settings
    return "f1"


def find_labels(table: pa.Table, settings: AnswersSettings) -> list[str]:
    """The two outputs of a token, it begins the answer and it ends the answer, as transformers calls them: a head that was
    trained for other answers is gone on with."""
    del table, settings
    return ["LABEL_0", "LABEL_1"]


def prepare(
    table: pa.Table,
    tokenizer: Tokenizer,
    labels: Sequence[str] | None,
    settings: AnswersSettings,
    *,
    max_length: int,
) -> tuple[Examples, np.ndarray]:
    """Examples of at most `max_length` tokens, in the order of the rows, a row's windows in order; and reasons [rows].

    A question may take half of `max_length`; a row with a longer one is rejected.
    Targets: `starts` and `ends`, int64 [n], the positions of the answer's first and last token in the sequence, 0 for
    none; and, a value a token, `char_starts` and `char_ends`, where in the context it lies (IGNORED for others), which
    `decode` needs. With `labels` None there are no `starts` and `ends`.
    """
    if labels is None:
        questions, contexts, reasons = read_questions(table, settings)
        spans = None
    else:
        true = true_answers(table, settings)
        questions, contexts, reasons, spans = true.questions, true.contexts, true.reasons, true.spans
    specials = frame(tokenizer, pair=True)
    half = (max_length - specials.size) // 2
    if half < 1:
        raise ValueError(f"max_length={max_length} leaves no room for text; use at least {specials.size + 2}")
    asked, question = tokenize_distinct(tokenizer, questions)
    told, context = tokenize_distinct(tokenizer, contexts)
    sizes, lengths = asked.ids.lengths[question], told.ids.lengths[context]
    reasons.add(sizes == 0, lambda _: f"{settings.question} has no tokens")
    reasons.add(lengths == 0, lambda _: f"{settings.context} has no tokens")
    reasons.add(
        sizes > half,
        lambda row: (
            f"{settings.question} has {sizes[row]} tokens; max_length={max_length} has room for {half}"
        ),
    )
    tokens = None
    if spans is not None:
        first, stop = told.covering(context, spans[:, 0], spans[:, 1])
        answered = spans[:, 0] >= 0
        reasons.add(answered & (first >= stop), lambda _: f"{settings.answer} has no tokens")
        tokens = np.stack([first, stop], 1) * answered[:, None] - ~answered[:, None]
    rows = np.flatnonzero(reasons.good)
    cut = windows(lengths[rows], max_length - specials.size - sizes[rows], settings.overlap)
    places = Places(rows[cut.row], asked, question, told, context)
    return _examples(places, cut, specials, tokens), reasons.lines


@dataclass(frozen=True)
class Places:
    """The rows of sequences, and the tokens of the questions and contexts of all rows: row i has question[i] of
    `asked` and context[i] of `told`."""

    rows: np.ndarray
    asked: Pieces
    question: np.ndarray
    told: Pieces
    context: np.ndarray


def _examples(at: Places, cut: Windows, specials: Frame, tokens: np.ndarray | None) -> Examples:
    n, asked, told, rows = len(at.rows), at.asked, at.told, at.rows
    ask, tell = at.question[rows], at.context[rows]
    questions = asked.ids.lengths[ask]
    before, between, after = (len(part) for part in (specials.before, specials.between, specials.after))
    base = specials.size + asked.ids.offsets[-1] + told.ids.offsets[tell]
    starts = [0, specials.size + asked.ids.offsets[ask], before, base + cut.start, before + between]
    lengths = [before, questions, between, cut.stop - cut.start, after]
    layout = lay_out(
        *(np.stack(np.broadcast_arrays(*parts, np.empty(n))[:-1], 1) for parts in (starts, lengths))
    )
    context = before + questions + between
    targets: dict[str, np.ndarray | Lists] = {}
    no_place = np.full(len(asked.ids.values), IGNORED, np.int64)
    for name, places in (("char_starts", told.starts), ("char_ends", told.ends)):
        targets[name] = layout.lists(with_specials(specials, np.concatenate([no_place, places])))
    if tokens is not None:
        first, stop = tokens[rows].T
        whole = (first >= cut.start) & (stop <= cut.stop)
        targets["starts"] = np.where(whole, context + first - cut.start, 0)
        targets["ends"] = np.where(whole, context + stop - 1 - cut.start, 0)
    ids = layout.lists(np.concatenate([specials.ids, asked.ids.values, told.ids.values]))
    sizes = np.diff(layout.offsets)
    boundary = sizes if specials.first is None else before + questions + specials.first
    return Examples(ids, boundary, rows, targets)


def repaired_rows(table: pa.Table, labels: Sequence[str], settings: AnswersSettings) -> np.ndarray:
    """bool [rows]: rows whose answer stands elsewhere in the context than they say, and only there."""
    del labels
    return true_answers(table, settings).repaired


def with_truth(
    examples: Examples, table: pa.Table, labels: Sequence[str], settings: AnswersSettings
) -> Examples:
    """Examples of `prepare` with what `Scores` compares with: the right `answers` of their rows; and their texts."""
    del labels
    true, first = true_answers(table, settings), examples.first
    rows = examples.row[first]
    counts = np.zeros(len(examples), np.int64)
    counts[first] = [len(true.answers[row]) for row in rows]
    answers = np.array([text for row in rows for text in true.answers[row]], object)
    examples = with_texts(examples, table, settings)
    return replace(examples, truth={**examples.truth, "answers": Lists(answers, offsets_of(counts))})


class Scores:
    """How well logits find the answers of examples that have their truth; streaming. Figures are those of
    `AnswerScores`."""

    def __init__(self, labels: Sequence[str], settings: AnswersSettings) -> None:
        del labels
        self._settings = settings
        self.counted = AnswerScores()

    def add(self, outputs: Mapping[str, np.ndarray], examples: Examples) -> None:
        """The logits [tokens, 2] of all windows of some rows."""
        decoded = decode(outputs, examples, [], self._settings)
        self.counted.add(true_of_rows(examples), [row["answer"] or "" for row in decoded])

    def merge(self, state: str) -> None:
        """Add the `to_json` of another worker."""
        other = AnswerScores()
        other.sums += json.loads(state)
        self.counted.merge(other)

    def to_json(self) -> str:
        """What was counted."""
        return json.dumps(self.counted.sums.tolist())

    def result(self) -> dict[str, float]:
        """The figures."""
        return self.counted.result()
