"""Rows of questions, contexts and answers, and what is wrong with the others."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from raybert.config.tasks import AnswersSettings
from raybert.tasks.columns import Reasons, column, strings_of


@dataclass(frozen=True)
class TrueAnswers:
    """Questions, contexts and what answers them.

    Attributes:
        spans: int64 [rows, 2], characters [start, end) of the first answer; -1 where there is none.
        answers: all right answers of every row; none: [].
        repaired: bool [rows], rows whose answer stood elsewhere in the context than they said, and only there.
    """

    questions: list[str]
    contexts: list[str]
    spans: np.ndarray
    answers: list[list[str]]
    reasons: Reasons
    repaired: np.ndarray


def read_questions(table: pa.Table, settings: AnswersSettings) -> tuple[list[str], list[str], Reasons]:
    """Questions and contexts; "" in a row with a reason."""
    questions, reasons = strings_of(table, settings.question)
    contexts, _ = strings_of(table, settings.context, reasons)
    good = reasons.good
    return (
        [text if ok else "" for text, ok in zip(questions, good, strict=True)],
        [text if ok else "" for text, ok in zip(contexts, good, strict=True)],
        reasons,
    )


def true_answers(table: pa.Table, settings: AnswersSettings) -> TrueAnswers:
    """The answers of a labelled table. Raises ValueError for columns of the wrong type."""
    questions, contexts, reasons = read_questions(table, settings)
    answers = _lists(table, settings.answer, pa.types.is_string, pa.types.is_large_string, "strings")
    starts = _lists(table, settings.answer_start, pa.types.is_integer, pa.types.is_integer, "whole numbers")
    spans, repaired = np.full((len(table), 2), -1, np.int64), np.zeros(len(table), bool)
    kept: list[list[str]] = []
    for row, (context, texts, places) in enumerate(zip(contexts, answers, starts, strict=True)):
        kept.append([text for text in texts if text and not text.isspace()])
        if reasons.lines[row] is not None:
            continue
        if not kept[row]:
            if not settings.allow_unanswerable:
                reasons.lines[row] = (
                    f"{settings.answer} is empty; task.allow_unanswerable=true learns such rows"
                )
            continue
        first = texts.index(kept[row][0])
        place, repaired[row], problem = _locate(
            context, texts[first], places[first] if first < len(places) else None
        )
        if problem:
            reasons.lines[row] = f"{settings.answer} {problem}"
            continue
        text = texts[first]
        spans[row] = place + len(text) - len(text.lstrip()), place + len(text.rstrip())
    return TrueAnswers(questions, contexts, spans, kept, reasons, repaired)


def _locate(context: str, text: str, start: int | None) -> tuple[int, bool, str | None]:
    """Where the answer begins, whether that is elsewhere than `start`, and what is wrong if it is nowhere or unclear."""
    if start is not None and start >= 0 and context.startswith(text, start):
        return start, False, None
    shown = text if len(text) <= 60 else text[:57] + "..."
    place = context.find(text)
    if place >= 0 and context.find(text, place + 1) < 0:
        return place, True, None
    times = "does not occur in the context" if place < 0 else "occurs more than once in the context"
    if start is None:
        return -1, False, f"{shown!r} has no start, and {times}"
    stands = context[start : start + len(text)][:60] if start >= 0 else ""
    return -1, False, f"{shown!r} is not at character {start}, where {stands!r} stands, and {times}"


def _lists(table: pa.Table, name: str, fits: Any, fits_too: Any, what: str) -> list[list[Any]]:
    """Values of a column of single values or of lists, null as []."""
    values = column(table, name)
    kind = values.type
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    inner = kind.value_type if listed else kind
    if not (fits(inner) or fits_too(inner) or pa.types.is_null(inner)):
        raise ValueError(f"column {name!r} must hold {what}, or lists of them, not {kind}")
    if listed:
        return [row or [] for row in values.to_pylist()]
    return [[] if row is None else [row] for row in values.to_pylist()]
