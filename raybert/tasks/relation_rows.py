"""Rows of texts with two marked places, and what is wrong with the others."""

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raybert.config.tasks import RelationsSettings
from raybert.tasks.columns import Reasons, column, strings_of


@dataclass(frozen=True)
class MarkedTexts:
    """Texts without marks; `spans` int64 [rows, 2, 2] are the characters [start, end) of the two places."""

    texts: list[str]
    spans: np.ndarray
    reasons: Reasons


def read_places(table: pa.Table, settings: RelationsSettings) -> MarkedTexts:
    """The two places of every row. Raises ValueError for columns of the wrong type."""
    texts, reasons = strings_of(table, settings.text)
    if settings.spans:
        spans = np.stack(
            [_span_column(table, name, reasons) for name in (settings.first, settings.second)], 1
        )
        lengths = np.array([len(text) for text in texts], np.int64)
        for k, name in enumerate((settings.first, settings.second)):
            start, end = spans[:, k, 0], spans[:, k, 1]
            outside = (start < 0) | (end <= start) | (end > lengths)
            reasons.add(
                outside, lambda row, s=start, e=end, n=name: f"{n} ({s[row]}:{e[row]}) is not in the text"
            )
    else:
        texts, spans = _unmark(texts, reasons, settings)
    good = reasons.good
    texts = [text if ok else "" for text, ok in zip(texts, good, strict=True)]
    spans = np.where(good[:, None, None], spans, 0)
    overlap = (spans[:, 0, 0] < spans[:, 1, 1]) & (spans[:, 1, 0] < spans[:, 0, 1])
    reasons.add(overlap, lambda _: f"{settings.first} and {settings.second} overlap")
    return MarkedTexts(texts, spans, reasons)


def _unmark(texts: list[str], reasons: Reasons, settings: RelationsSettings) -> tuple[list[str], np.ndarray]:
    """Texts without <e1> </e1> <e2> </e2>, and where the places between them lie."""
    names = [settings.first, settings.second]
    tags = [f"<{slash}{name}>" for name in names for slash in ("", "/")]
    pattern = re.compile("|".join(map(re.escape, tags)))
    spans, plain = np.zeros((len(texts), 2, 2), np.int64), []
    good = reasons.good
    for row, text in enumerate(texts):
        marks = list(pattern.finditer(text)) if good[row] else []
        found = [mark.group() for mark in marks]
        if good[row] and (problem := _marks_problem(found, tags)):
            reasons.lines[row] = problem
            marks = []
        parts = pattern.split(text) if marks else [""]
        removed = 0
        for mark in marks:
            which = tags.index(mark.group())
            spans[row, which // 2, which % 2] = mark.start() - removed
            removed += len(mark.group())
        plain.append("".join(parts))
        for k, name in enumerate(names):
            start, end = _strip(plain[row], *spans[row, k])
            spans[row, k] = start, end
            if marks and start == end and reasons.lines[row] is None:
                reasons.lines[row] = f"there is nothing between <{name}> and </{name}>"
    return plain, spans


def _strip(text: str, start: int, end: int) -> tuple[int, int]:
    inner = text[start:end]
    left = len(inner) - len(inner.lstrip())
    return start + left, start + left + len(inner.strip())


def _marks_problem(found: list[str], tags: list[str]) -> str | None:
    for tag in tags:
        if found.count(tag) != 1:
            return f"{tag} occurs {found.count(tag)} times; each of {' '.join(tags)} must occur once"
    places = [found.index(tag) for tag in tags]
    for k in (0, 2):
        if places[k] > places[k + 1]:
            return f"{tags[k + 1]} comes before {tags[k]}"
    if abs(places[0] - places[1]) > 1 or abs(places[2] - places[3]) > 1:
        return f"{tags[0]}..{tags[1]} and {tags[2]}..{tags[3]} cross"
    return None


def _span_column(table: pa.Table, name: str, reasons: Reasons) -> np.ndarray:
    """int64 [rows, 2]."""
    spans = column(table, name)
    if pa.types.is_null(spans.type):  # no row has a value
        spans = spans.cast(pa.struct([("start", pa.int64()), ("end", pa.int64())]))
    try:
        ends = [pc.fill_null(pc.struct_field(spans, end).cast(pa.int64()), -1) for end in ("start", "end")]
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError):
        raise ValueError(f"column {name!r} must hold {{start, end}}, not {spans.type}") from None
    reasons.add(pc.is_null(spans).to_numpy(zero_copy_only=False), lambda _: f"{name} is null")
    return np.stack([end.to_numpy(zero_copy_only=False) for end in ends], 1)
