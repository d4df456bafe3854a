"""Columns of texts that are compared with one another: texts, turns of dialogues, lists of texts; as token ids."""

import hashlib
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from raybert.tasks.columns import Reasons, column, list_column, strings_of
from raybert.tasks.examples import Lists
from raybert.tasks.sequences import Frame, frame, lay_out
from raybert.tasks.words import offsets_of, tokenize_distinct


def is_list(table: pa.Table, name: str) -> bool:
    """Whether a column holds lists."""
    kind = column(table, name).type
    return pa.types.is_list(kind) or pa.types.is_large_list(kind)


def turns_of(table: pa.Table, name: str, separator: str, reasons: Reasons) -> tuple[list[str], bool]:
    """Texts, and whether they are of several turns: lists are joined by the separator token, the oldest turn first.

    "" for rows without text, which get a reason. Raises ValueError for a column of neither texts nor lists of them.
    """
    if not is_list(table, name):
        return strings_of(table, name, reasons)[0], False
    rows = lists_of(table, name)
    texts = [f" {separator} ".join(turn for turn in row if turn and not turn.isspace()) for row in rows]
    reasons.add(np.array([not text for text in texts], bool), lambda _: f"{name} has no text")
    return texts, True


def lists_of(table: pa.Table, name: str) -> list[list[str | None]]:
    """A column of lists of texts; a null list is empty. Raises ValueError for another type."""
    found = list_column(table, name, "strings")
    values, offsets = found.values.to_pylist(), found.offsets.tolist()
    return [values[a:b] for a, b in pairwise(offsets)]


def separator_of(tokenizer: Tokenizer) -> tuple[str, int]:
    """The token that a tokenizer ends a text with, and its id: [SEP], </s>. Raises ValueError where there is none."""
    after = frame(tokenizer).after
    if not after:
        raise ValueError(
            "model.name: its tokenizer puts no token behind a text, so turns cannot be told apart"
        )
    return str(tokenizer.id_to_token(after[0])), after[0]


def framed(
    tokenizer: Tokenizer, texts: Sequence[str], max_length: int, *, keep_end: np.ndarray | None = None
) -> tuple[Lists, np.ndarray]:
    """Ids of every text with its special tokens, at most `max_length`, and bool [n], those that are cut: they lose their end.

    keep_end: bool [n], of texts that lose their beginning instead: what was said last matters most in a dialogue.
    """
    specials = frame(tokenizer)
    room = room_of(specials, max_length)
    pieces, which = tokenize_distinct(tokenizer, texts)
    whole = pieces.ids.lengths[which]
    lengths = np.minimum(whole, room)
    starts = specials.size + pieces.ids.offsets[which]
    if keep_end is not None:
        starts = starts + np.where(keep_end, whole - lengths, 0)
    before, after, n = len(specials.before), len(specials.after), len(texts)
    layout = lay_out(
        np.stack([np.zeros(n, np.int64), starts, np.full(n, before)], 1),
        np.stack([np.full(n, before), lengths, np.full(n, after)], 1),
    )
    return layout.lists(np.concatenate([specials.ids, pieces.ids.values])), lengths < whole


def room_of(specials: Frame, max_length: int) -> int:
    """Tokens of text in a sequence. Raises ValueError where there is none."""
    if max_length <= specials.size:
        raise ValueError(f"max_length={max_length} leaves no room for text; use at least {specials.size + 1}")
    return max_length - specials.size


def keys_of(texts: Sequence[str]) -> np.ndarray:
    """int64 [n]: 62 bits of a hash, equal for equal texts."""
    known: dict[str, int] = {}
    for text in texts:
        if text not in known:
            digest = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
            known[text] = int.from_bytes(digest, "little") >> 2
    return np.fromiter((known[text] for text in texts), np.int64, len(texts))


def numbered(counts: np.ndarray) -> np.ndarray:
    """0, 1, ... counts[0] - 1, 0, 1, ...: the place of every element in its list."""
    return np.arange(int(counts.sum())) - np.repeat(offsets_of(counts)[:-1], counts)
