"""How alike two texts are (STS): rows of two texts and a number to examples, vectors to cosines, and their scores.

A row is two sequences, its texts, each by itself.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from raybert.config.pair_tasks import SimilaritySettings
from raybert.encoder.folders import Folder
from raybert.evaluate.metrics import Regression
from raybert.tasks.bi_encoder import default_prompt, settle_pooling, settle_prompts
from raybert.tasks.columns import Reasons, numbers_of, strings_of
from raybert.tasks.examples import Examples
from raybert.tasks.pair_rows import framed

GROUPS = "bin"
"""The sequences of a row are trained on in one forward pass."""


def columns(settings: SimilaritySettings, *, labelled: bool = True) -> list[str]:
    """The columns that the task reads."""
    return [settings.first, settings.second, *([settings.score] if labelled else [])]


def nested(settings: SimilaritySettings) -> list[str]:
    """None of them holds lists."""
    del settings
    return []


def main_figure(settings: SimilaritySettings) -> str:
    """The figure by which models are compared; more of it is better."""
    del settings
    return "spearman"


def find_labels(table: pa.Table, settings: SimilaritySettings) -> list[str]:
    """None: there is a number to learn."""
    del table, settings
    return []


def settle(
    settings: SimilaritySettings, folder: Folder | None, tables: Mapping[str, pa.Table]
) -> SimilaritySettings:
    """The settings with what their defaults stand for: pooling and prompt of a model folder, the ends of the scores.

    Args:
        tables: of rows, by the setting that names them; without any the ends stay open.

    Raises ValueError for scores beyond the ends that are set, or that are all alike.
    """
    if folder is not None:
        settings = settle_pooling(settle_prompts(settings, folder, prompt=default_prompt(folder)), folder)
    ends = [settings.low, settings.high]
    lowest, highest = math.inf, -math.inf
    for setting, table in tables.items():
        found = numbers_of(table, settings.score, Reasons(len(table)))
        _refuse_beyond(found, setting, settings)
        lowest = min(lowest, np.nanmin(found, initial=math.inf))
        highest = max(highest, np.nanmax(found, initial=-math.inf))
    if not lowest <= highest:
        return settings
    low, high = (float(e) if s is None else s for s, e in zip(ends, (lowest, highest), strict=True))
    if low >= high:
        raise ValueError(
            f"task.score={settings.score}: all scores are {lowest:g}; there is nothing to tell apart"
            if lowest == highest
            else f"task.low={low:g} must be less than task.high={high:g}"
        )
    return settings.model_copy(update={"low": low, "high": high})


def prepare(
    table: pa.Table,
    tokenizer: Tokenizer,
    labels: Sequence[str] | None,
    settings: SimilaritySettings,
    *,
    max_length: int,
) -> tuple[Examples, np.ndarray]:
    """Two examples of at most `max_length` tokens a row, and reasons [rows]; longer texts lose their end.

    Targets: `role` int64 [n], 0 of the first and 1 of the second text; `example` int64 [n], the row; and, unless `labels`
    is None, `labels` float32 [n], the score, brought to 0..1 where both ends of the scores are known.
    """
    first, reasons = strings_of(table, settings.first)
    second, _ = strings_of(table, settings.second, reasons)
    scores = None if labels is None else numbers_of(table, settings.score, reasons)
    rows = np.flatnonzero(reasons.good)
    prompt = settings.prompt or ""
    texts = [prompt + text for row in rows for text in (first[row], second[row])]
    ids, cut = framed(tokenizer, texts, max_length)
    row = np.repeat(rows, 2)
    targets = {"role": np.tile(np.arange(2), len(rows)), "example": row}
    if scores is not None:
        targets["labels"] = _scaled(scores, settings)[row]
    return Examples(ids, ids.lengths.astype(np.int32), row, targets, cut=cut), reasons.lines


def decode(
    outputs: Mapping[str, np.ndarray],
    examples: Examples,
    labels: Sequence[str],
    settings: SimilaritySettings,
) -> list[dict[str, Any]]:
    """{score} of every row: the cosine of the vectors of its texts."""
    del labels, settings
    return [{"score": float(value)} for value in cosines(outputs["vectors"], examples)]


def output_fields(settings: SimilaritySettings) -> dict[str, pa.DataType]:
    """What predict writes for a row."""
    del settings
    return {"score": pa.float32()}


def shown_rows(
    decoded: Sequence[Mapping[str, Any]],
    table: pa.Table,
    examples: Examples,
    labels: Sequence[str],
    settings: SimilaritySettings,
) -> dict[str, list[Any]]:
    """What a report tells of rows: their texts, their score and the cosine. A row is the better, the nearer the cosine is
    to its score, brought to 0..1."""
    del examples, labels
    truth = numbers_of(table, settings.score, Reasons(len(table)))
    if settings.low is None or settings.high is None:  # of a model that raybert did not train
        ends = {"low": float(truth.min()), "high": max(float(truth.max()), float(truth.min()) + 1e-9)}
        settings = settings.model_copy(update=ends)
    found = [row["score"] for row in decoded]
    texts = zip(*(table[name].to_pylist() for name in (settings.first, settings.second)), strict=True)
    near = 1 - np.abs(_scaled(truth, settings) - found)
    return {
        "text": [" | ".join(pair) for pair in texts],
        "label": truth.tolist(),
        "predicted": found,
        "score": near.tolist(),
    }


def cosines(vectors: np.ndarray, examples: Examples) -> np.ndarray:
    """float32 [rows], of the vectors [n, width] of rows whose sequences 0 and 1 stand one after the other."""
    role = examples.targets["role"]
    assert isinstance(role, np.ndarray)
    first, second = np.flatnonzero(role == 0), np.flatnonzero(role == 1)
    assert np.array_equal(examples.row[first], examples.row[second]), "a row has a first and a second text"
    unit = vectors.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    return (unit[first] * unit[second]).sum(1).astype(np.float32)


class Scores:
    """How well cosines follow the scores of rows; streaming: two numbers a row are kept.

    Figures: spearman, pearson, and the loss of training, that of CoSENT over all rows together.
    """

    def __init__(self, labels: Sequence[str], settings: SimilaritySettings) -> None:
        del labels
        self._settings = settings
        self.counted = Regression()

    def add(self, outputs: Mapping[str, np.ndarray], examples: Examples) -> None:
        """The vectors [n, width] of n examples."""
        truth, role = examples.targets["labels"], examples.targets["role"]
        assert isinstance(truth, np.ndarray)
        self.counted.add(truth[role == 0], cosines(outputs["vectors"], examples))

    def merge(self, state: str) -> None:
        """Add the `to_json` of another worker."""
        self.counted.merge(Regression.from_json(state))

    def to_json(self) -> str:
        """What was counted."""
        return self.counted.to_json()

    def result(self) -> dict[str, float]:
        """The figures. Raises ValueError if nothing was added."""
        found = self.counted.result()
        loss = found.pop("mse")
        if self._settings.loss == "cosent":
            rows = json.loads(self.counted.to_json())
            loss = cosent(np.array(rows["truth"]), np.array(rows["predicted"]), self._settings.scale)
        return {"spearman": found["spearman"], "pearson": found["pearson"], "loss": loss}


def cosent(truth: np.ndarray, cosine: np.ndarray, scale: float) -> float:
    """log(1 + sum over rows i, j with truth_i > truth_j of exp(scale (cos_j - cos_i))), in the time of a sort.

    CoSENT (Su Jianlin 2022, https://kexue.fm/archives/8847, equation 6).
    """
    order = np.argsort(truth, kind="stable")
    truth, x = truth[order], scale * cosine[order].astype(np.float64)
    lower = np.searchsorted(truth, truth, "left")  # so many rows have a lower score
    above = lower > 0
    # of the rows below each, the log of the sum of exp(scale cos)
    below = np.logaddexp.accumulate(x)[lower[above] - 1]
    terms = below - x[above]
    return float(np.logaddexp.reduce(np.append(terms, 0.0)))


def _scaled(scores: np.ndarray, settings: SimilaritySettings) -> np.ndarray:
    low, high = settings.low, settings.high
    if low is None or high is None:
        return scores.astype(np.float32)
    return ((scores - low) / (high - low)).astype(np.float32)


def _refuse_beyond(found: np.ndarray, setting: str, settings: SimilaritySettings) -> None:
    low = -math.inf if settings.low is None else settings.low
    high = math.inf if settings.high is None else settings.high
    beyond = np.flatnonzero((found < low) | (found > high))
    if len(beyond):
        row = int(beyond[0])
        raise ValueError(
            f"{setting}: {settings.score} of row {row} is {found[row]:g}, which is not in task.low={low:g} to "
            f"task.high={high:g} ({len(beyond):,} such rows); correct them or the settings"
        )
