"""How many tokens a second one process can deal: the stream of training batches, of which every worker reads all.

    python tests/benchmarks/scale_stream.py [instances=200000] [length=128] [workers=64]

Token shards of random ids are read by one of `workers` as `raybert pretrain` reads them: windows, packing, its share of the
batches, masks. Whatever the number of workers, none goes faster than this, and each reads every byte.
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from raybert.corpus.vectors import to_parquet
from raybert.pretrain.instances import Instances
from raybert.pretrain.masking import Masking
from raybert.pretrain.shards import to_table, token_schema
from raybert.pretrain.stream import BatchStream, Cursor

_ROWS, _VOCABULARY = 32_768, 30_522


def main(argv: list[str]) -> int:
    """Measure and print."""
    asked = {"instances": 200_000, "length": 128, "workers": 64}
    asked |= {key: int(value) for key, value in (word.split("=") for word in argv)}
    with tempfile.TemporaryDirectory() as where:
        size, tokens = write(Path(where), asked["instances"], asked["length"])
        rate = deal(where, asked["workers"])
    print(f"{'bytes_per_token':24} {size / tokens:14.2f}")
    print(f"{'stream_tokens_per_second':24} {rate:14,.0f}")
    return 0


def deal(path: str, workers: int) -> float:
    """Tokens of the whole stream that go past one worker in a second, in an epoch."""
    stream = BatchStream(
        path, seed=0, global_batch_tokens=1 << 20, batch_tokens=4096, masking=Masking(0.15, "token")
    )
    steps, cursor = stream.steps_per_epoch, Cursor()
    started = time.monotonic()
    for _ in range(steps):
        cursor = stream.read(cursor, 0, workers).cursor
    return stream.tokens / (time.monotonic() - started)


def write(folder: Path, count: int, longest: int) -> tuple[int, int]:
    """Shards of `count` instances; (bytes, tokens). Lengths are even between half of `longest` and all."""
    known = {"vocabulary": _VOCABULARY, "mask_id": 4, "special_ids": [0, 1, 2, 3, 4], "pad_id": 0}
    schema = token_schema({**known, "max_length": longest, "objective": "full"})
    (folder / "data").mkdir()
    size = tokens = 0
    for shard, first in enumerate(range(0, count, _ROWS)):
        rng, rows = np.random.default_rng(shard), min(_ROWS, count - first)
        lengths = rng.integers(longest // 2, longest + 1, rows)
        values = _words(rng, int(lengths.sum()))
        made = Instances(
            values=values,
            starts=np.ones(len(values), bool),
            offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            boundary=lengths.astype(np.int32),
            label=np.full(rows, -1, np.int8),
            document=np.arange(rows, dtype=np.int64),
        )
        file = folder / "data" / f"part-{shard:05d}.parquet"
        file.write_bytes(to_parquet(to_table(made, [f"{shard}-{i}" for i in range(rows)], schema)))
        size, tokens = size + file.stat().st_size, tokens + len(values)
    return size, tokens


def _words(rng: np.random.Generator, count: int) -> np.ndarray:
    """Ids as rare as words are: by Zipf."""
    return (5 + np.minimum(rng.zipf(1.2, count), _VOCABULARY - 6)).astype(np.int32)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
