"""Logits of extractive question answering to the answers of rows, as they are written and shown."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa

from raybert.config.tasks import AnswersSettings
from raybert.tasks.answer_rows import read_questions
from raybert.tasks.answer_scores import best_scores
from raybert.tasks.columns import strings_of
from raybert.tasks.examples import IGNORED, Examples

SEQUENCES_PER_CALL = 256


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
    true = true_of_rows(examples)
    found = [row["answer"] or "" for row in decoded]
    return {
        "text": strings_of(table, settings.question)[0],
        "label": [" / ".join(dict.fromkeys(texts)) or "no answer" for texts in true],
        "predicted": [text or "no answer" for text in found],
        "score": [best_scores(texts, text)[1] for texts, text in zip(true, found, strict=True)],
    }


def true_of_rows(examples: Examples) -> list[list[str]]:
    answers = examples.truth["answers"]
    bounds = np.stack([answers.offsets[:-1], answers.offsets[1:]], 1)[examples.first]
    return [answers.values[a:b].tolist() for a, b in bounds]


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
