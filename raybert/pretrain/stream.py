"""The order of training data: a function of the seed and the epoch, the same for any number of workers."""

import json
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pyarrow.parquet as pq

from raybert.corpus.store import Store
from raybert.corpus.vectors import KEY
from raybert.pretrain.counter import mix, permutation
from raybert.pretrain.masking import Masking
from raybert.pretrain.windows import DATA, MicroBatch, Vocabulary, Window, load_window

WINDOW_INSTANCES = (
    32_768  # enough to fill the bins and to mix, few enough to lie in memory (80 MB of 512 tokens)
)

# Names of the independent streams of random numbers
_SHARDS, _BINS, _SPLIT = range(3)


@dataclass(frozen=True)
class Cursor:
    """A place in the stream: epoch, window of shards in the epoch, bin in the window. JSON: `dataclasses.asdict`."""

    epoch: int = 0
    window: int = 0
    bin: int = 0


@dataclass(frozen=True)
class GlobalBatch:
    """What one optimizer step is made from.

    `micro`: the batches of one rank, each with its number among the `bins` of the global batch; none, where there
    are fewer bins than ranks. `cursor`: where the next global batch begins.
    """

    micro: list[tuple[int, MicroBatch]]
    bins: int
    cursor: Cursor


class BatchStream:
    """Global batches of the token shards `path/data/*.parquet`, without end: one epoch runs over into the next.

    In each epoch the shards are permuted and taken in windows of about 32,768 instances; those of a window are packed
    in bins of `batch_tokens` (with `padded`, rows x longest are at most that), which come in random order. A global
    batch is the next max(1, round(global_batch_tokens / batch_tokens)) bins; bin i is rank (i % world)'s. So the
    content depends on the arguments here and the cursor alone, and any place is reached without replay. Masks are
    drawn anew in each epoch, unless the shards hold them. `fixed_masks` is for held-out data: order and masks of
    every epoch are those of the first. `shards` are the names of the files to use, default all.

    Raises ValueError where there are no shards or rows, for unknown names, for shards of different tokenizers,
    and in `read` for a sequence longer than `batch_tokens`.
    """

    def __init__(
        self,
        path: str,
        *,
        seed: int,
        global_batch_tokens: int,
        batch_tokens: int,
        masking: Masking,
        padded: bool = False,
        fixed_masks: bool = False,
        shards: list[str] | None = None,
    ) -> None:
        if batch_tokens < 1:
            raise ValueError(f"batch_tokens is {batch_tokens}; it must be at least 1")
        self._store = Store(path)
        self._seed, self._masking, self._fixed = seed, masking, fixed_masks
        self.bins = max(1, round(global_batch_tokens / batch_tokens))
        self._names = _choose(_shard_names(self._store, path), shards, path)
        self.instances, self.tokens, self._words = _describe(self._store, self._names)
        if not self.instances:
            raise ValueError(f"the token shards in {path}/{DATA} have no rows")
        self._size = max(1, round(WINDOW_INSTANCES * len(self._names) / self.instances))
        self._load = partial(load_window, self._store, self._words, batch_tokens=batch_tokens, padded=padded)
        self._budget = batch_tokens
        self._thread = ThreadPoolExecutor(1)
        self._windows: dict[tuple[int, int], Future[Window]] = {}

    @property
    def steps_per_epoch(self) -> int:
        """Global batches in an epoch, if bins were full; of `padded` bins there are some more."""
        return max(1, round(self.tokens / (self.bins * self._budget)))

    def cursor(self, **place: int) -> Cursor:
        """The place of these fields; without any the beginning."""
        return Cursor(**place)

    def read(self, cursor: Cursor, rank: int = 0, world: int = 1) -> GlobalBatch:
        """The part of one of `world` ranks of the global batch that begins at `cursor`."""
        if not 0 <= rank < world:
            raise ValueError(
                f"rank is {rank} of {world}; it must be at least 0 and less than the number of ranks"
            )
        micro = []
        for number in range(self.bins):
            window = self._window(cursor)
            while cursor.bin >= len(window.bins):
                cursor = self._next_window(cursor)
                window = self._window(cursor)
            if number % world == rank:
                epoch = self._epoch(cursor)
                batch = window.micro_batch(cursor.bin, self._masking, self._seed, epoch)
                micro.append((number, batch))
            cursor = Cursor(cursor.epoch, cursor.window, cursor.bin + 1)
            if cursor.bin == len(window.bins):
                cursor = self._next_window(cursor)
        return GlobalBatch(micro, self.bins, cursor)

    def _epoch(self, cursor: Cursor) -> int:
        return 0 if self._fixed else cursor.epoch

    def _next_window(self, cursor: Cursor) -> Cursor:
        if (cursor.window + 1) * self._size < len(self._names):
            return Cursor(cursor.epoch, cursor.window + 1)
        return Cursor(cursor.epoch + 1)

    def _window(self, cursor: Cursor) -> Window:
        """The window at the cursor; the one after it is read meanwhile."""
        following = self._next_window(cursor)
        wanted = [(self._epoch(place), place.window) for place in (cursor, following)]
        self._windows = {
            key: self._windows.get(key) or self._thread.submit(self._read_window, *key) for key in wanted
        }
        try:
            return self._windows[wanted[0]].result()
        except BaseException:
            self._windows = {}  # an error of the network may not come again
            raise

    def _read_window(self, epoch: int, window: int) -> Window:
        order = permutation(len(self._names), self._seed, epoch, _SHARDS)
        numbers = order[window * self._size : (window + 1) * self._size]
        if not len(numbers):
            raise ValueError(f"there is no window {window} in these token shards")
        names = [self._names[number] for number in numbers]
        return self._load(names, seed=mix(self._seed, epoch, window, _BINS))


def split(path: str, share: float, seed: int) -> tuple[list[str], list[str]]:
    """Names of the token shards to train on and of those held out: about `share` of the shards, at least one of each.

    With a share of 0 none is held out. Raises ValueError for a share below 0 or not below 1, for a folder without
    shards, and if there is only one and a share is asked.
    """
    if not 0 <= share < 1:
        raise ValueError(f"the held-out share is {share}; it must be at least 0 and less than 1")
    names = _shard_names(Store(path), path)
    if not share:
        return names, []
    if len(names) == 1:
        raise ValueError(
            f"{path}/{DATA} has one token shard; whole shards are held out, so that needs two or more"
        )
    held = min(max(1, round(share * len(names))), len(names) - 1)
    chosen = set(permutation(len(names), seed, _SPLIT)[:held].tolist())
    return (
        [name for i, name in enumerate(names) if i not in chosen],
        [name for i, name in enumerate(names) if i in chosen],
    )


def _shard_names(store: Store, path: str) -> list[str]:
    names = sorted(name for name in store.sizes(DATA) if name.endswith(".parquet"))
    if not names:
        raise ValueError(f"there are no token shards (*.parquet) in {path}/{DATA}")
    return names


def _choose(names: list[str], wanted: list[str] | None, path: str) -> list[str]:
    """Those of the names that are wanted, in their own order."""
    if wanted is None:
        return names
    if unknown := sorted(set(wanted) - set(names)):
        raise ValueError(f"there is no token shard {unknown[0]} in {path}/{DATA}")
    if not wanted:
        raise ValueError("the list of token shards to use is empty")
    return [name for name in names if name in set(wanted)]


def _describe(store: Store, names: list[str]) -> tuple[int, int, Vocabulary]:
    """Rows and tokens of the shards, from the ends of the files, and what their metadata says of the vocabulary."""

    def footer(name: str) -> pq.FileMetaData:
        with store.fs.open_input_file(store.path(f"{DATA}/{name}")) as file:
            return pq.read_metadata(file)

    with ThreadPoolExecutor(16) as pool:
        footers = list(pool.map(footer, names))
    first = _vocabulary(footers[0], names[0])
    for found, name in zip(footers, names, strict=True):
        if _vocabulary(found, name) != first:
            raise ValueError(f"the token shards {names[0]} and {name} were made with different tokenizers")
    rows = sum(found.num_rows for found in footers)
    return rows, sum(map(_count_tokens, footers)), first


def _vocabulary(footer: pq.FileMetaData, name: str) -> Vocabulary:
    info = json.loads((footer.metadata or {}).get(KEY, b"{}"))
    if missing := {"vocabulary", "mask_id", "special_ids"} - set(info):
        raise ValueError(f"{name} is not a token shard: its metadata has no {min(missing)}")
    names = {footer.schema.column(i).path.partition(".")[0] for i in range(footer.num_columns)}
    return Vocabulary(
        info["vocabulary"], info["mask_id"], tuple(info["special_ids"]), static="masked_positions" in names
    )


def _count_tokens(footer: pq.FileMetaData) -> int:
    groups = (footer.row_group(i) for i in range(footer.num_row_groups))
    columns = (group.column(i) for group in groups for i in range(group.num_columns))
    return sum(column.num_values for column in columns if column.path_in_schema.startswith("ids."))
