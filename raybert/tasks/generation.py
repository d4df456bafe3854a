"""Sequence to sequence, translation or summarisation: rows to examples, and what a model wrote to texts.

A source is framed as the encoder's tokenizer does, [CLS] source [SEP]. A target is its tokens and the tokenizer's last
special token, which ends it; the first special token is what the decoder begins with.
"""

import importlib.util
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from raybert.config.tasks import GenerationSettings
from raybert.tasks.columns import strings_of
from raybert.tasks.examples import IGNORED, TARGET_IDS, Examples, Lists
from raybert.tasks.generation_scores import GenerationScores as Scores
from raybert.tasks.sequences import frame
from raybert.tasks.words import TEXTS_PER_CALL, offsets_of

__all__ = ["Scores"]

TARGET_TOKENIZER = "target_tokenizer"
"""Folder, in that of a model, of a target's tokenizer where it is not the source's."""

_PACKAGES = ("sacrebleu", "torchmetrics")


def columns(settings: GenerationSettings, *, labelled: bool = True) -> list[str]:
    """The columns that the task reads."""
    return [settings.source, *([settings.target] if labelled else [])]


def nested(settings: GenerationSettings) -> list[str]:
    """None of them hold lists or structs."""
    del settings
    return []


def main_figure(settings: GenerationSettings) -> str:
    """BLEU where it is known at every evaluation; else the loss, of which less is better."""
    return "bleu" if settings.generate == "evaluations" else "loss"


def find_labels(table: pa.Table, settings: GenerationSettings) -> list[str]:
    """None: a vocabulary has no labels."""
    del table, settings
    return []


def refuse_missing(settings: GenerationSettings) -> None:
    """Raise ValueError where the scores of written texts need packages that are not installed."""
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if settings.generate != "never" and missing:
        raise ValueError(
            f"BLEU, chrF and ROUGE need {' and '.join(missing)}: pip install 'raybert[generation]', or set "
            "task.generate=never"
        )


def prepare(
    table: pa.Table,
    tokenizer: Tokenizer,
    labels: Sequence[str] | None,
    settings: GenerationSettings,
    *,
    max_length: int,
) -> tuple[Examples, np.ndarray]:
    """One example a row, and reasons [rows]; sources and targets that are too long lose their end.

    Target unless `labels` is None: TARGET_IDS, int32 [n, longest], IGNORED behind the last. A few very long targets make
    it large: rows x `task.max_target_length` x 4 bytes at most.
    """
    sources, reasons = strings_of(table, settings.source)
    targets = None if labels is None else strings_of(table, settings.target, reasons)[0]
    source_ids = _encode(tokenizer, sources, max_length)
    reasons.add(source_ids.lengths <= frame(tokenizer).size, lambda _: f"{settings.source} has no tokens")
    given: dict[str, Any] = {}
    if targets is not None:
        written = target_tokenizer(settings) or tokenizer
        target_ids = _encode(written, targets, settings.max_target_length - 1, special=False)
        reasons.add(target_ids.lengths == 0, lambda _: f"{settings.target} has no tokens")
        given = {TARGET_IDS: _ended(target_ids, ends_of(written)[1])}
    rows = np.flatnonzero(reasons.good)
    ids = source_ids.take(rows)
    if given:
        longest = int((given[TARGET_IDS][rows] != IGNORED).sum(1).max(initial=1))
        given = {TARGET_IDS: np.ascontiguousarray(given[TARGET_IDS][rows, :longest])}
    return Examples(ids, ids.lengths.astype(np.int32), rows, given), reasons.lines


def with_truth(
    examples: Examples, table: pa.Table, labels: Sequence[str], settings: GenerationSettings
) -> Examples:
    """Examples of `prepare` with what `Scores` compares with: `reference`, the text of the target."""
    del labels
    texts = np.array(strings_of(table, settings.target)[0], object)
    return replace(examples, truth={"reference": texts[examples.row]})


def decode(
    outputs: Mapping[str, np.ndarray],
    examples: Examples,
    labels: Sequence[str],
    settings: GenerationSettings,
) -> list[dict[str, Any]]:
    """{text} of every row, from `text` [n], what the model wrote."""
    del examples, labels, settings
    return [{"text": str(text)} for text in outputs["text"]]


def output_fields(settings: GenerationSettings) -> dict[str, pa.DataType]:
    """What is written of a row."""
    del settings
    return {"text": pa.string()}


def texts_of(tokens: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """object [n], the texts of token ids [n, longest] with IGNORED behind the last; without special tokens."""
    rows = [row[row != IGNORED].tolist() for row in tokens]
    return np.array(tokenizer.decode_batch(rows, skip_special_tokens=True), object)


def target_tokenizer(settings: GenerationSettings) -> Tokenizer | None:
    """The tokenizer of `task.target_tokenizer`; None where the source's is meant. Raises ValueError for a folder without."""
    return None if settings.target_tokenizer is None else _read(settings.target_tokenizer)


@lru_cache(2)
def _read(folder: str) -> Tokenizer:
    path = Path(folder).expanduser() / "tokenizer.json"
    if not path.is_file():
        raise ValueError(
            f"task.target_tokenizer={folder} holds no tokenizer.json; make one with raybert vocabulary"
        )
    tokenizer = Tokenizer.from_file(str(path))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def ends_of(tokenizer: Tokenizer) -> tuple[int, int]:
    """The ids that a target begins and ends with: the first and the last special token of a text, [CLS] and [SEP].

    Raises ValueError for a tokenizer that does not put one before and one after a text.
    """
    found = frame(tokenizer)
    if not found.before or not found.after:
        raise ValueError(
            "the target's tokenizer puts no special token before and after a text, as [CLS] and [SEP]; the decoder "
            "begins and ends with them"
        )
    return found.before[0], found.after[-1]


def _encode(tokenizer: Tokenizer, texts: list[str], longest: int, *, special: bool = True) -> Lists:
    """Ids of at most `longest` tokens, with or without special tokens."""
    tokenizer.no_padding()
    tokenizer.enable_truncation(longest)
    found: list[list[int]] = []
    for at in range(0, len(texts), TEXTS_PER_CALL):
        some = tokenizer.encode_batch(texts[at : at + TEXTS_PER_CALL], add_special_tokens=special)
        found += [encoding.ids for encoding in some]
    tokenizer.no_truncation()
    lengths = np.fromiter(map(len, found), np.int64, len(found))
    values = np.fromiter(chain.from_iterable(found), np.int32, int(lengths.sum()))
    return Lists(values, offsets_of(lengths))


def _ended(ids: Lists, end: int) -> np.ndarray:
    """int32 [n, longest + 1]: the ids, `end`, IGNORED."""
    lengths = ids.lengths
    found = np.full((len(ids), int(lengths.max(initial=0)) + 1), IGNORED, np.int32)
    at = np.arange(found.shape[1])
    found[at < lengths[:, None]] = ids.values
    found[at == lengths[:, None]] = end
    return found
