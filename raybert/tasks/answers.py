"""Extractive question answering, as in SQuAD: rows to examples, logits to the spans of contexts that answer questions.

A sequence is [CLS] question [SEP] context [SEP]. A long context becomes overlapping windows; a window without the whole
answer, and a row without one, points at [CLS].
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from raybert.config.tasks import AnswersSettings
from raybert.tasks.answer_rows import read_questions, true_answers
from raybert.tasks.answer_scores import AnswerScores, best_scores
from raybert.tasks.columns import strings_of
from raybert.tasks.examples import IGNORED, Examples, Lists
from raybert.tasks.sequences import Frame, Windows, frame, lay_out, windows, with_specials
from raybert.tasks.words import Pieces, offsets_of, tokenize_distinct

SEQUENCES_PER_CALL = 256


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


def predict(logits: np.ndarray, examples: Examples, settings: AnswersSettings) -> dict[str, np.ndarray]:
    """The best span of every sequence, in arrays [n].

    The score of a span is the sum of the start logit of its first and the end logit of its last token; all spans of at
    most `max_answer` tokens of the context are compared (not only those of the 20 best starts and ends).

    Args:
        logits: [tokens, 2], start and end, in the order of `examples.ids.values`.

    Returns:
        `row`; `score`; `null`, the sum of the two logits at [CLS]; `start` and `end`, characters of the context.
    """
    assert logits.shape == (len(examples.ids.values), 2), "logits must be [tokens, 2]"
    best, first, last = _best_spans(logits, examples, settings.max_answer)
    at = examples.ids.offsets[:-1]
    starts, ends = examples.targets["char_starts"].values, examples.targets["char_ends"].values
    return {
        "row": examples.row,
        "score": best,
        "null": logits[at].astype(np.float64).sum(1),
        "start": starts[at + first],
        "end": ends[at + last],
    }


def output_fields(settings: AnswersSettings) -> dict[str, pa.DataType]:
    """What `decode` gives of a row."""
    del settings
    return {
        "answer": pa.string(),
        "start": pa.int32(),
        "score": pa.float32(),
        "null_difference": pa.float32(),
    }


def decode(
    outputs: Mapping[str, np.ndarray], examples: Examples, labels: Sequence[str], settings: AnswersSettings
) -> list[dict[str, Any]]:
    """The best span of every row of examples that have their texts, over all its windows, from the logits [tokens, 2].

    {answer, start, score, null_difference}: `start` is in characters of the context, `score` the sum of two logits. No
    answer scores the smallest `null` of the row's windows (as BERT's run_squad.py); `null_difference` is that less the
    score of the best span. For no answer, which `allow_unanswerable` and a difference above `null_threshold` make, answer
    and start are None.
    """
    del labels
    found = predict(outputs["logits"], replace(examples, row=examples.number), settings)
    contexts = examples.truth["context"][examples.first]
    order = np.lexsort((found["start"], -found["score"], found["row"]))
    rows, which = np.unique(found["row"][order], return_index=True)
    null = np.full(len(contexts), np.inf)
    np.minimum.at(null, found["row"], found["null"])
    decoded = []
    for row, k in zip(rows, order[which], strict=True):
        best, none = float(found["score"][k]), float(null[row])
        answer = {"answer": None, "start": None, "score": none, "null_difference": none - best}
        if not settings.allow_unanswerable or none - best <= settings.null_threshold:
            start, text = int(found["start"][k]), contexts[row][found["start"][k] : found["end"][k]]
            start += len(text) - len(text.lstrip())
            answer |= {"answer": text.strip(), "start": start, "score": best}
        decoded.append(answer)
    return decoded


def with_texts(examples: Examples, table: pa.Table, settings: AnswersSettings) -> Examples:
    """Examples of `prepare` with what `decode` needs: the `context` of their rows."""
    contexts, first = read_questions(table, settings)[1], examples.first
    given = np.full(len(examples), "", object)
    given[first] = [contexts[row] for row in examples.row[first]]
    return replace(examples, truth={**examples.truth, "context": given})


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


def shown_rows(
    decoded: Sequence[Mapping[str, Any]],
    table: pa.Table,
    examples: Examples,
    labels: Sequence[str],
    settings: AnswersSettings,
) -> dict[str, list[Any]]:
    """How rows are shown in a report: the question as `text`, the right answers as `label`, the one `predicted`, and its F1
    as `score`. `examples` have their truth."""
    del labels
    true = _true_of_rows(examples)
    found = [row["answer"] or "" for row in decoded]
    return {
        "text": strings_of(table, settings.question)[0],
        "label": [" / ".join(dict.fromkeys(texts)) or "no answer" for texts in true],
        "predicted": [text or "no answer" for text in found],
        "score": [best_scores(texts, text)[1] for texts, text in zip(true, found, strict=True)],
    }


def _true_of_rows(examples: Examples) -> list[list[str]]:
    answers = examples.truth["answers"]
    bounds = np.stack([answers.offsets[:-1], answers.offsets[1:]], 1)[examples.first]
    return [answers.values[a:b].tolist() for a, b in bounds]


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
        self.counted.add(_true_of_rows(examples), [row["answer"] or "" for row in decoded])

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


def _best_spans(
    logits: np.ndarray, examples: Examples, longest: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of every sequence the score of its best span of at most `longest` tokens, and its first and last token."""
    n = len(examples)
    scores, first, last = np.empty(n), np.empty(n, np.int64), np.empty(n, np.int64)
    context = examples.targets["char_starts"].values != IGNORED
    for begin in range(0, n, SEQUENCES_PER_CALL):
        some = np.arange(begin, min(begin + SEQUENCES_PER_CALL, n))
        lengths, offsets = examples.ids.lengths[some], examples.ids.offsets[some]
        width = int(lengths.max())
        places = np.arange(width)
        inside = places < lengths[:, None]
        flat = np.where(inside, offsets[:, None] + places, 0)
        inside &= context[flat]
        start = np.where(inside, logits[flat, 0].astype(np.float64), -np.inf)
        end = np.pad(
            np.where(inside, logits[flat, 1].astype(np.float64), -np.inf),
            ((0, 0), (0, longest - 1)),
            constant_values=-np.inf,
        )
        ahead = np.lib.stride_tricks.sliding_window_view(end, longest, axis=1)
        total = start + ahead.max(2)
        first[some] = total.argmax(1)
        rows = np.arange(len(some))
        scores[some] = total[rows, first[some]]
        last[some] = first[some] + ahead[rows, first[some]].argmax(1)
    return scores, first, last
