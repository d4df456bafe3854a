"""Some token shards in memory and the packed batches that are made of them."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raybert.corpus.store import Store
from raybert.encoder.batching import plan_batches
from raybert.pretrain.counter import bits, mix, permutation
from raybert.pretrain.masking import Masking, mask
from raybert.pretrain.packing import pack

DATA = "data"
NO_PAIR = -100  # the label that losses pass over

_COLUMNS = ["ids", "starts", "boundary", "label"]
_MASKS = ["masked_positions", "masked_labels"]


@dataclass(frozen=True)
class MicroBatch:
    """One packed forward pass of n sequences.

    `ids` int64 [tokens], masked; `lengths` int64 [n]; `types` int64 [tokens], token type ids; `positions` int64 [m],
    where in `ids` predictions are made; `labels` int64 [m], the true ids there; `pair_labels` int64 [n], 0, 1, or
    -100 without a pair. `digest`: 63 bits of a hash of all that, for comparing runs.
    """

    ids: np.ndarray
    lengths: np.ndarray
    types: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    pair_labels: np.ndarray
    digest: int

    @property
    def per_sequence(self) -> Mapping[str, np.ndarray]:
        """What is to be learnt of sequences."""
        return {"pair_labels": self.pair_labels}

    @property
    def per_token(self) -> Mapping[str, np.ndarray]:
        """What is to be learnt of all tokens: nothing."""
        return {}

    @property
    def per_position(self) -> Mapping[str, np.ndarray]:
        """What is to be learnt at `positions`."""
        return {"labels": self.labels}


@dataclass(frozen=True)
class Vocabulary:
    """What masking must know: number of ids, id of [MASK], ids never chosen; `static` where shards hold the masks."""

    size: int
    mask_id: int
    special_ids: tuple[int, ...]
    static: bool


@dataclass(frozen=True)
class Lists:
    """A list column: values of all rows, and offsets int64 [n + 1]."""

    values: np.ndarray
    offsets: np.ndarray

    def rows(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Values of some rows one after the other, and the lengths of these rows."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        ends = np.cumsum(lengths)
        places = np.arange(ends[-1] if len(ends) else 0)
        places += np.repeat(self.offsets[rows] - (ends - lengths), lengths)
        return self.values[places], lengths


@dataclass(frozen=True)
class Window:
    """Instances of some shards, unmasked, and the bins (arrays of row numbers) that they are packed in.

    `keys` uint64 [n] name an instance by its file and row; `masks`, positions and labels, where the shards hold them.
    """

    ids: Lists
    starts: Lists
    boundary: np.ndarray
    label: np.ndarray
    keys: np.ndarray
    masks: tuple[Lists, Lists] | None
    bins: list[np.ndarray]
    words: Vocabulary

    def micro_batch(self, number: int, masking: Masking, seed: int, epoch: int) -> MicroBatch:
        """Bin `number`, masked."""
        rows = self.bins[number]
        values, lengths = self.ids.rows(rows)
        offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        if self.masks is None:
            ids, positions = self._mask(rows, values, offsets, masking, seed, epoch)
            labels = values[positions]
        else:
            ids = values
            positions, counts = self.masks[0].rows(rows)
            positions = positions + np.repeat(offsets[:-1], counts)
            labels = self.masks[1].rows(rows)[0]
        place = np.arange(len(values)) - np.repeat(offsets[:-1], lengths)
        types = place >= np.repeat(self.boundary[rows], lengths)
        pairs = np.where(self.label[rows] < 0, NO_PAIR, self.label[rows])
        parts = [part.astype(np.int64) for part in (ids, lengths, types, positions, labels, pairs)]
        batch = MicroBatch(*parts, digest=0)
        return replace(batch, digest=digest(batch))

    def _mask(
        self,
        rows: np.ndarray,
        values: np.ndarray,
        offsets: np.ndarray,
        masking: Masking,
        seed: int,
        epoch: int,
    ) -> tuple[np.ndarray, np.ndarray]:
        return mask(
            values,
            self.starts.rows(rows)[0],
            offsets,
            self.keys[rows],
            masking=masking,
            seed=seed,
            epoch=epoch,
            vocabulary=self.words.size,
            mask_id=self.words.mask_id,
            special_ids=np.array(self.words.special_ids),
        )


def load_window(
    store: Store, words: Vocabulary, names: list[str], *, batch_tokens: int, padded: bool, seed: int
) -> Window:
    """Read shards and pack their instances in random bins of `batch_tokens`; `padded`: rows x longest are at most that.

    Raises ValueError if an instance is longer.
    """
    wanted = _COLUMNS + (_MASKS if words.static else [])
    tables = [pq.read_table(pa.BufferReader(store.read(f"{DATA}/{name}")), columns=wanted) for name in names]
    keys = [bits(_name_key(name), np.arange(len(table))) for name, table in zip(names, tables, strict=True)]
    table = pa.concat_tables(tables)
    ids = _lists(table["ids"])
    lengths = np.diff(ids.offsets)
    if len(lengths) and lengths.max() > batch_tokens:
        raise ValueError(
            f"batch_tokens={batch_tokens} is smaller than the longest sequence ({lengths.max()})"
        )
    return Window(
        ids=ids,
        starts=_lists(table["starts"]),
        boundary=table["boundary"].to_numpy(),
        label=table["label"].to_numpy(),
        keys=np.concatenate(keys),
        masks=(_lists(table[_MASKS[0]]), _lists(table[_MASKS[1]])) if words.static else None,
        bins=_pack_padded(lengths, batch_tokens, seed) if padded else pack(lengths, batch_tokens, seed=seed),
        words=words,
    )


def digest(batch: MicroBatch) -> int:
    """63 bits of a hash of the arrays of a batch and their sizes."""
    state = hashlib.blake2b(digest_size=8)
    for part in (batch.ids, batch.lengths, batch.types, batch.positions, batch.labels, batch.pair_labels):
        state.update(len(part).to_bytes(8, "little"))
        state.update(part.astype("<i8", copy=False).tobytes())
    return int.from_bytes(state.digest(), "little") >> 1


def _name_key(name: str) -> int:
    """64 bits for the name of a file."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


def _pack_padded(lengths: np.ndarray, batch_tokens: int, seed: int) -> list[np.ndarray]:
    order = permutation(len(lengths), seed, 0)
    bins = plan_batches(lengths[order], batch_tokens, padded=True)
    return [order[bins[i]] for i in permutation(len(bins), mix(seed, 1))]


def _lists(column: pa.ChunkedArray) -> Lists:
    lengths = pc.list_value_length(column).to_numpy().astype(np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
    return Lists(pc.list_flatten(column).to_numpy(), offsets)
