"""Which documents of a corpus repeat an earlier one, exactly. The answer is kept with the job, so it never changes.

A document is known by 128 bits of its text's BLAKE2b hash. Files planned earlier come first, then the order of their
paths: what is finished stays as it is when a corpus grows. The driver holds 16 bytes a document.
"""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raybert.config import DataSettings
from raybert.corpus.ledger import OURS, Ledger, Source
from raybert.corpus.plan import Plan
from raybert.corpus.readers import Shard, read, spans
from raybert.corpus.sources import File
from raybert.corpus.texts import text_columns, texts_and_reasons, wanted_columns

_FOLDER = f"{OURS}/hashes"
_NOTHING = b"\0" * 16  # of a row without a text: no duplicate of another such


def find_duplicates(
    plan: Plan, data: DataSettings, ledger: Ledger, mapper: Callable[[Any, list[Any]], list[Any]]
) -> dict[str, np.ndarray]:
    """Row numbers of the documents that repeat an earlier one, by the id of their file; ascending.

    Reads the texts of files that were not looked at before, with `mapper` (one call a run of shards).
    """
    known = {name.removesuffix(".parquet") for name in ledger.store.sizes(_FOLDER)}
    old = [source for source in plan.sources if source.id in known]
    found = {source.id: _kept(ledger, source) for source in old}
    seen = np.concatenate([_empty(), *(hashes for hashes, _ in found.values())])
    for source in plan.sources:
        if source.id in known:
            continue
        hashes = _hashes(plan, source, data, mapper)
        repeated = _repeated(hashes, seen)
        _keep(ledger, source, hashes, repeated)
        found[source.id] = hashes, repeated
        seen = np.concatenate([seen, hashes])
    return {identity: np.flatnonzero(repeated) for identity, (_, repeated) in found.items()}


def _repeated(hashes: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """bool [n]: the text is one of `seen`, or stands earlier in `hashes`."""
    repeated = np.ones(len(hashes), bool)
    repeated[np.unique(hashes, return_index=True)[1]] = False
    repeated |= np.isin(hashes, seen)
    return repeated & (hashes != np.array(_NOTHING, "V16"))


def _hashes(plan: Plan, source: Source, data: DataSettings, mapper: Any) -> np.ndarray:
    file = plan.files[source.uri]
    runs = spans(file, source.shards, source.shards)
    parts = mapper(_Hash(file, data, plan.types), runs)
    return np.concatenate([_empty(), *(np.frombuffer(part, "V16") for part in parts)])


@dataclass(frozen=True)
class _Hash:
    """16 bytes for every row of a run of shards; a class because it travels to other machines."""

    file: File
    data: DataSettings
    types: Mapping[str, pa.DataType]

    def __call__(self, run: list[Shard]) -> bytes:
        tables = read(
            self.file,
            run,
            wanted_columns(self.data, []),
            types=dict(self.types),
            text_columns=text_columns(self.data),
            max_chars=self.data.max_chars,
        )
        return b"".join(_digest(text) for table in tables for text in texts_and_reasons(table, self.data)[0])


def _digest(text: str | None) -> bytes:
    if text is None:
        return _NOTHING
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def _keep(ledger: Ledger, source: Source, hashes: np.ndarray, repeated: np.ndarray) -> None:
    column = pa.FixedSizeBinaryArray.from_buffers(
        pa.binary(16), len(hashes), [None, pa.py_buffer(hashes.tobytes())]
    )
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"hash": column, "repeated": repeated}), sink, compression="zstd")
    ledger.store.write(f"{_FOLDER}/{source.id}.parquet", sink.getvalue(), owner=ledger.owner)


def _kept(ledger: Ledger, source: Source) -> tuple[np.ndarray, np.ndarray]:
    table = pq.read_table(
        pa.BufferReader(ledger.store.read(f"{_FOLDER}/{source.id}.parquet"))
    ).combine_chunks()
    column = table["hash"].combine_chunks()
    hashes = np.frombuffer(column.buffers()[1], "V16")[column.offset : column.offset + len(column)]
    return hashes, table["repeated"].to_numpy(zero_copy_only=False)


def _empty() -> np.ndarray:
    return np.zeros(0, "V16")
