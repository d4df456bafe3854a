"""Response selection: rows of contexts and responses to examples, logits to the order of candidates, and their scores.

A row is a sequence [CLS] context [SEP] response [SEP] for its right response, and one for each wrong one: given in a list
column, or drawn from the responses of other rows. Its model is a reranker, too.
"""

import json
import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from raybert.config.pair_tasks import SelectionSettings
from raybert.tasks.columns import Reasons, strings_of
from raybert.tasks.examples import Examples, Lists
from raybert.tasks.pair_rows import is_list, lists_of, numbered, room_of, separator_of, turns_of
from raybert.tasks.sequences import frame, lay_out
from raybert.tasks.words import tokenize_distinct

GROUPS = "bin"
"""The sequences of a row are trained on in one forward pass."""


def columns(settings: SelectionSettings, *, labelled: bool = True) -> list[str]:
    """The columns that the task reads."""
    more = [settings.candidates] if labelled and settings.candidates else []
    return [settings.context, settings.response, *more]


def nested(settings: SelectionSettings) -> list[str]:
    """Those of them that may hold lists."""
    return [settings.context, *([settings.candidates] if settings.candidates else [])]


def texts_too(settings: SelectionSettings) -> list[str]:
    """Those that may hold texts instead."""
    return [settings.context]


def main_figure(settings: SelectionSettings) -> str:
    """The figure by which models are compared; more of it is better."""
    del settings
    return "recall_at_1"


def find_labels(table: pa.Table, settings: SelectionSettings) -> list[str]:
    """The one output, as transformers calls it: a reranker is gone on with."""
    del table, settings
    return ["LABEL_0"]


def prepare(
    table: pa.Table,
    tokenizer: Tokenizer,
    labels: Sequence[str] | None,
    settings: SelectionSettings,
    *,
    max_length: int,
) -> tuple[Examples, np.ndarray]:
    """Examples of at most `max_length` tokens, a row's right response first; reasons [rows].

    A response may take half of the room for text, more where the context leaves it; it loses its end. A context loses its
    end, one of several turns (a list) its beginning: the newest turns are kept.
    Targets, int64 [n]: `labels`, 1 of the right response and 0 of wrong ones; `example`, the row. With `labels` None there
    are no wrong ones.

    Raises ValueError where there are too few responses to draw from.
    """
    reasons = Reasons(len(table))
    separator = separator_of(tokenizer)[0] if is_list(table, settings.context) else ""
    contexts, turns = turns_of(table, settings.context, separator, reasons)
    responses, _ = strings_of(table, settings.response, reasons)
    rows = np.flatnonzero(reasons.good)
    wrong: list[list[str]] = [[] for _ in range(len(table))]
    if labels is not None and settings.candidates:
        wrong = _given(table, settings, responses, reasons)
        rows = np.flatnonzero(reasons.good)
    elif labels is not None:
        drawn = _drawn([contexts[row] for row in rows], [responses[row] for row in rows], settings)
        for row, texts in zip(rows, drawn, strict=True):
            wrong[row] = texts
    counts = np.array([1 + len(wrong[row]) for row in rows], np.int64)
    place, row = numbered(counts), np.repeat(rows, counts)
    told = [text for row in rows for text in (responses[row], *wrong[row])]
    ids, boundary, cut = _sequences(tokenizer, [contexts[i] for i in row], told, max_length, keep_end=turns)
    targets = {"labels": (place == 0).astype(np.int64), "example": row}
    return Examples(ids, boundary, row, targets, cut=cut), reasons.lines


def decode(
    outputs: Mapping[str, np.ndarray],
    examples: Examples,
    labels: Sequence[str],
    settings: SelectionSettings,
) -> list[dict[str, Any]]:
    """{score} of every row: the logit of its response, the higher the better it fits."""
    del labels, settings
    return [{"score": float(value)} for value in outputs["logits"][examples.first, 0]]


def output_fields(settings: SelectionSettings) -> dict[str, pa.DataType]:
    """What predict writes for a row."""
    del settings
    return {"score": pa.float32()}


class Scores:
    """How well logits [n, 1] tell the right response from the other candidates of its row; streaming.

    Figures, means over rows: recall_at_1 and mrr, and candidates, how many a row has. A wrong candidate with the logit of the
    right one stands before it.
    """

    def __init__(self, labels: Sequence[str], settings: SelectionSettings) -> None:
        del labels, settings
        self._sums = np.zeros(4)

    def add(self, outputs: Mapping[str, np.ndarray], examples: Examples) -> None:
        """The logits of all candidates of some rows."""
        logits, right = outputs["logits"][:, 0].astype(np.float64), examples.targets["labels"] == 1
        _, row = np.unique(examples.row, return_inverse=True)
        true = np.full(row.max(initial=-1) + 1, np.nan)
        true[row[right]] = logits[right]
        if not np.isfinite(logits).all():
            raise ValueError("logits must be finite")
        rank = np.bincount(row, logits >= true[row], len(true))
        self._sums += [len(rank), (rank == 1).sum(), (1 / rank).sum(), len(row)]

    def merge(self, state: str) -> None:
        """Add the `to_json` of another worker."""
        self._sums += json.loads(state)

    def to_json(self) -> str:
        """What was counted."""
        return json.dumps(self._sums.tolist())

    def result(self) -> dict[str, float]:
        """The figures. Raises ValueError if nothing was added."""
        rows, first, reciprocal, candidates = self._sums.tolist()
        if not rows:
            raise ValueError("there are no rows to evaluate")
        return {"recall_at_1": first / rows, "mrr": reciprocal / rows, "candidates": candidates / rows}


def _given(
    table: pa.Table, settings: SelectionSettings, responses: list[str], reasons: Reasons
) -> list[list[str]]:
    """The wrong responses of every row; copies of the right one are none."""
    assert settings.candidates is not None
    found = [
        list(dict.fromkeys(text for text in row if text and not text.isspace() and text != right))
        for row, right in zip(lists_of(table, settings.candidates), responses, strict=True)
    ]
    reasons.add(
        np.array([not row for row in found], bool), lambda _: f"{settings.candidates} has no wrong response"
    )
    return found


def _drawn(contexts: list[str], responses: list[str], settings: SelectionSettings) -> list[list[str]]:
    """For every row different responses that are right for no row with its context; a function of the seed and the row."""
    known = list(dict.fromkeys(responses))
    right: dict[str, set[str]] = {}
    for context, response in zip(contexts, responses, strict=True):
        right.setdefault(context, set()).add(response)
    most = max(map(len, right.values()), default=0)
    if known and len(known) - most < settings.negatives:
        raise ValueError(
            f"task.negatives={settings.negatives} wrong responses are drawn for a row, and for some row there are "
            f"{len(known) - most}; lower it, or give more rows"
        )
    found = []
    for row, context in enumerate(contexts):
        own = right[context]
        rng = random.Random(settings.seed << 40 | row)
        others = (known[i] for i in rng.sample(range(len(known)), settings.negatives + len(own)))
        found.append([text for text in others if text not in own][: settings.negatives])
    return found


def _sequences(
    tokenizer: Tokenizer, contexts: list[str], responses: list[str], max_length: int, *, keep_end: bool
) -> tuple[Lists, np.ndarray, np.ndarray]:
    """Ids of pairs with their special tokens, int32 [n] tokens before the first of type 1, and bool [n], those cut."""
    specials = frame(tokenizer, pair=True)
    room = room_of(specials, max_length)
    if room < 2:
        raise ValueError(f"max_length={max_length} leaves no room for text; use at least {specials.size + 2}")
    asked, ask = tokenize_distinct(tokenizer, contexts)
    told, tell = tokenize_distinct(tokenizer, responses)
    context, response = asked.ids.lengths[ask], told.ids.lengths[tell]
    kept_response = np.minimum(response, np.maximum(room // 2, room - context))
    kept_context = np.minimum(context, room - kept_response)
    start = specials.size + asked.ids.offsets[ask] + (context - kept_context if keep_end else 0)
    other = specials.size + int(asked.ids.offsets[-1]) + told.ids.offsets[tell]
    before, between, after = (len(part) for part in (specials.before, specials.between, specials.after))
    n = np.zeros(len(contexts), np.int64)
    layout = lay_out(
        np.stack([n, start, n + before, other, n + before + between], 1),
        np.stack([n + before, kept_context, n + between, kept_response, n + after], 1),
    )
    ids = layout.lists(np.concatenate([specials.ids, asked.ids.values, told.ids.values]))
    boundary = ids.lengths if specials.first is None else before + kept_context + specials.first
    cut = (kept_context < context) | (kept_response < response)
    return ids, boundary.astype(np.int32), cut
