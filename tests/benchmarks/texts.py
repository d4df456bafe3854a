"""What the benchmarks embed: real docstrings of the installed packages, in three lengths."""

import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from tokenizers import Tokenizer

REPO = Path(__file__).parent.parent.parent
MAX_LENGTH = {"short": 128, "mixed": 256, "long": 512}  # tokens, special ones included
SHORT_MEDIAN = 15

# Texts of a round: 10 to 20 s of sentence-transformers in float32 on two cores with AVX-512 and no AMX, less where
# fastembed, which does not sort, would take minutes over its padding.
COUNTS = {
    "minilm": {"short": 1536, "mixed": 768, "long": 96},
    "base": {"short": 192, "mixed": 64, "long": 16},
}


def make_texts(kind: str, count: int, docstrings: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """`count` different texts in random order, the same ones every time. ValueError if there are too few.

    short: first paragraphs, median 15 tokens. mixed: docstrings as they are. long: consecutive docstrings, joined
    until they fill 512 tokens. Equal texts are left out, for raybert computes them once and the others do not.
    """
    dice = random.Random(0)
    if kind == "long":
        found = _joined(docstrings, count, tokenizer, dice)
    else:
        sample = dice.sample(list(dict.fromkeys(docstrings)), min(3 * count, len(docstrings)))
        found = _short(sample, tokenizer) if kind == "short" else sample
        dice.shuffle(found)
    if len(found) < count:
        raise ValueError(f"the installed packages give {len(found)} texts of kind {kind}; {count} are needed")
    return found[:count]


def _short(docstrings: Sequence[str], tokenizer: Tokenizer) -> list[str]:
    """First paragraphs, each on one line; as many of the longest or shortest left out as bring the median to 15."""
    found = list(dict.fromkeys(" ".join(text.split("\n\n")[0].split()) for text in docstrings))
    lengths = lengths_of(found, tokenizer)
    order = np.argsort(lengths, kind="stable")
    below, above = int((lengths < SHORT_MEDIAN).sum()), int((lengths > SHORT_MEDIAN).sum())
    surplus = max(abs(below - above), 0)
    kept = order[surplus:] if below > above else order[: len(order) - surplus]
    return [found[i] for i in kept]


def _joined(docstrings: Sequence[str], count: int, tokenizer: Tokenizer, dice: random.Random) -> list[str]:
    """Runs of docstrings that are at least 512 tokens long, from random places of the corpus."""
    texts = []
    for start in dice.sample(range(len(docstrings)), min(2 * count, len(docstrings))):
        parts, tokens = [], 0
        for text in docstrings[start : start + MAX_LENGTH["long"]]:
            parts.append(text)
            tokens += int(lengths_of([text], tokenizer)[0]) - 2  # without [CLS] and [SEP]
            if tokens >= MAX_LENGTH["long"]:
                texts.append("\n\n".join(parts))
                break
    return list(dict.fromkeys(texts))


def lengths_of(texts: Sequence[str], tokenizer: Tokenizer) -> np.ndarray:
    """Tokens of every text, special tokens included, not cut."""
    return np.array([len(encoding) for encoding in tokenizer.encode_batch_fast(texts)], np.int64)


def read_docstrings(folder: Path, limit: int = 40_000) -> list[str]:
    """Docstrings of the installed packages, in the order of the sources."""
    script = REPO / "jobs/docstrings.py"
    words = [f"output={folder}", f"limit={limit}"]
    subprocess.run([sys.executable, script, *words], check=True, stdout=subprocess.DEVNULL)
    return pq.read_table(folder)["text"].to_pylist()


def load_tokenizer(folder: Path) -> Tokenizer:
    """The folder's tokenizer, without cutting and padding."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer
