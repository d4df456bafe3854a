"""The batches of a run: the stream of a phase, and what is held out."""

from collections.abc import Mapping
from typing import Any

from raybert.config.training import PretrainConfig
from raybert.pretrain.masking import Masking
from raybert.pretrain.stream import BatchStream, Cursor
from raybert.train.job import tokens_path
from raybert.train.step import Micros, even_out


def make_stream(
    config: PretrainConfig, phase: Mapping[str, Any], part: str, batch_tokens: int
) -> BatchStream:
    """The batches of a phase: of its `train` shards, or one packed batch at a time of those `held` out."""
    held = part == "held"
    return BatchStream(
        tokens_path(config, phase["number"]),
        seed=config.train.seed,
        global_batch_tokens=batch_tokens if held else phase["global_batch_tokens"],
        batch_tokens=batch_tokens,
        masking=Masking(config.train.mask_probability, config.train.mask),
        padded=config.train.padded,
        fixed_masks=held,
        shards=phase[part],
    )


def held_out(
    config: PretrainConfig, phase: Mapping[str, Any], batch_tokens: int, rank: int, world: int
) -> Micros:
    """This rank's share of the first `train.evaluate.batches` packed batches of the held-out shards, once through."""
    stream, cursor = make_stream(config, phase, "held", batch_tokens), Cursor()
    own: list[Any] = []
    count = 0
    while count < config.train.evaluate.batches and cursor.epoch == 0:
        batch = stream.read(cursor)
        if count % world == rank:
            own.append((count, batch.micro[0][1]))
        count, cursor = count + 1, batch.cursor
    return even_out(own, count, world)
