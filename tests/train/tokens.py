"""A folder of token shards as `raybert prepare` leaves it, in no time."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from raybert.pretrain.instances import Instances
from raybert.pretrain.shards import to_table, token_schema
from tests.encoder.tiny import tiny_model

CLS, SEP, MASK, VOCABULARY = 2, 3, 4, 60


def token_folder(
    folder: Path, *, objective: str = "nsp", shards: int = 4, rows: int = 60, vocabulary: int = VOCABULARY
) -> str:
    """Sentences of a simple rule: every word follows from the one before it. Half of the pairs are of two rules."""
    metadata = {"vocabulary": vocabulary, "mask_id": MASK, "special_ids": [0, 1, CLS, SEP, MASK], "pad_id": 0}
    schema = token_schema({**metadata, "max_length": 32, "objective": objective})
    (folder / "data").mkdir(parents=True)
    for shard in range(shards):
        made = _instances(np.random.default_rng(shard), rows, objective in ("nsp", "sop"))
        table = to_table(made, [f"{shard}-{i}" for i in range(rows)], schema)
        pq.write_table(table, folder / "data" / f"part-{shard:05d}.parquet")
    model = tiny_model(folder.parent / f"{folder.name}-model", st=False)
    (folder / "tokenizer").mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / "tokenizer" / name).write_bytes((model / name).read_bytes())
    return str(folder)


def _instances(rng: np.random.Generator, rows: int, paired: bool) -> Instances:
    sequences, boundary, labels = [], [], []
    for _ in range(rows):
        first, second = (_sentence(rng, int(rng.integers(3, 14))) for _ in range(2))
        label = int(rng.integers(0, 2))
        if label == 0:
            second = (first[-1] - 5 + 7 * np.arange(1, len(second) + 1)) % (VOCABULARY - 5) + 5
        sequence = [CLS, *first, SEP, *second, SEP] if paired else [CLS, *first, SEP]
        sequences.append(sequence)
        boundary.append(len(first) + 2)
        labels.append(label if paired else -1)
    lengths = [len(sequence) for sequence in sequences]
    values = np.concatenate(sequences).astype(np.int32)
    return Instances(
        values=values,
        starts=np.ones(len(values), dtype=bool),
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        boundary=np.array(boundary, dtype=np.int32),
        label=np.array(labels, dtype=np.int8),
        document=np.arange(rows, dtype=np.int64),
    )


def _sentence(rng: np.random.Generator, length: int) -> np.ndarray:
    return (int(rng.integers(0, 50)) + 7 * np.arange(length)) % (VOCABULARY - 5) + 5


def settings(tokens: str, output: Path, **changes) -> dict:
    """Of a small run on two workers."""
    small = {"model.layers": 2, "model.hidden": 32, "model.heads": 4, "model.dropout": 0.1}
    train = {"steps": 12, "global_batch_tokens": 1024, "lr": 3e-3, "checkpoint.steps": 4, "log_every": 2}
    train |= {"evaluate.every": 6, "evaluate.share": 0.25, "warmup": 2, "precision": "float32"}
    out = {**small, **{f"train.{k}": v for k, v in train.items()}, "batch_tokens": 256, "workers.count": 2}
    return {**out, "data.path": tokens, "output.path": str(output), **changes}
