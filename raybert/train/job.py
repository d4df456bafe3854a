"""What decides a run's numbers: resolved once, kept in the folder, and compared when the run goes on. Without torch."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import pyarrow.parquet as pq

from raybert.config import refuse_differences
from raybert.config.training import PhaseSettings, PretrainConfig, TrainSettings
from raybert.corpus.filesystems import public_uri
from raybert.corpus.store import Store
from raybert.pretrain.masking import Masking
from raybert.pretrain.stream import BatchStream, split
from raybert.train.combinations import refuse_combinations
from raybert.train.tracking import refuse_missing

_PAIRED = ("nsp", "sop")
# what may be another when a run goes on
FREE = ("zero", "offload", "recompute", "on_spike", "spike", "checkpoint", "log_every", "restarts")


def make_job(config: PretrainConfig) -> dict[str, Any]:
    """What decides the numbers: the settings, the phases with their shards, what the tokens say of themselves."""
    train = config.train
    phases = train.phases or [PhaseSettings(steps=train.steps or 1)]
    resolved, facts = [], []
    for number, phase in enumerate(phases):
        path = tokens_path(config, number)
        names, held = _split(path, train)
        facts.append(tokens_metadata(path, names[0]))
        resolved.append(
            {
                "number": number,
                "path": public_uri(path),
                "steps": phase.steps,
                "lr": phase.lr or train.lr,
                "global_batch_tokens": phase.global_batch_tokens or train.global_batch_tokens,
                "train": names,
                "held": held,
                "digest": _shards_digest(path),
            }
        )
    if any(fact["tokens"] != facts[0]["tokens"] for fact in facts):
        raise ValueError("train.phases: their token shards were made with different tokenizers")
    longest = max(fact["max_length"] for fact in facts)
    tokens = {**facts[-1]["all"], "max_length": longest}
    pairs = any(fact["all"]["objective"] in _PAIRED for fact in facts)
    if pairs and not config.model.name and config.model.family != "bert":
        raise ValueError(
            f"model.family={config.model.family} has no head for the sentence pairs in {public_uri(config.data.path)}; "
            "prepare tokens with prepare.objective=full, or set model.family=bert"
        )
    return {"requested": deciding_settings(config), "phases": resolved, "tokens": tokens, "pairs": pairs}


def tokens_path(config: PretrainConfig, number: int) -> str:
    """The token shards of a phase. What is kept of a job names them without credentials."""
    phases = config.train.phases
    return (phases[number].path if phases else None) or config.data.path


def _split(path: str, train: TrainSettings) -> tuple[list[str], list[str]]:
    """Names of the shards to train on and of those held out."""
    share = train.evaluate.share if train.evaluate.every else 0
    every, _ = split(path, 0, train.seed)
    if len(every) == 1 and "share" not in train.evaluate.model_fields_set:
        return every, []  # nobody asked for it
    try:
        return split(path, share, train.seed)
    except ValueError as error:
        raise ValueError(f"train.evaluate.share={share:g}: {error}; set train.evaluate.share=0") from None


def tokens_metadata(path: str, name: str) -> dict[str, Any]:
    """What a token shard says of itself. Raises ValueError if it is none."""
    store = Store(path)
    with store.fs.open_input_file(store.path(f"data/{name}")) as file:
        known = json.loads((pq.read_schema(file).metadata or {}).get(b"raybert", b"{}"))
    for key in ("vocabulary", "mask_id", "special_ids", "max_length", "objective"):
        if key not in known:
            raise ValueError(
                f"data.path={public_uri(path)}: {name} has no {key}; make token shards with raybert prepare"
            )
    tokens = {key: known[key] for key in ("vocabulary", "mask_id", "special_ids")}
    return {"all": known, "tokens": tokens, "max_length": known["max_length"]}


def deciding_settings(config: PretrainConfig) -> dict[str, Any]:
    """The settings on which the weights depend."""
    values = config.model_dump(mode="json", exclude={"workers", "dry_run", "track", "data", "output"})
    for name in FREE:
        values["train"].pop(name)
    for phase in values["train"]["phases"]:
        phase.pop("path")  # shards may move; their names and sizes are compared
    values["train"]["evaluate"] = {"share": values["train"]["evaluate"]["share"]}
    return values


def refuse_other_job(was: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    """Raise ValueError if the folder was started with settings or tokens that give another model."""
    refuse_differences(where, was["requested"], now["requested"])
    for before, after in zip(was["phases"], now["phases"], strict=True):
        if before["digest"] != after["digest"]:
            raise ValueError(
                f"{where} was started with other token shards than are in {after['path']} now; "
                "restore them, or use another output.path to start afresh"
            )


def complete_job(
    job: dict[str, Any], config: PretrainConfig, *, gpu: bool, precision: str = "float32"
) -> None:
    """Fill in what depends on the hardware, and the length of the run. Raises ValueError for what does not fit it.

    `precision` is what train.precision=auto stands for there.
    """
    train = config.train
    job["batch_tokens"] = (32768 if gpu else 4096) if config.batch_tokens == "auto" else config.batch_tokens
    job["precision"] = precision if train.precision == "auto" else train.precision
    if job["precision"] == "float16" and not gpu:
        raise ValueError("train.precision=float16 needs GPUs; set train.precision=auto")
    for phase in job["phases"]:
        if train.epochs is not None:
            stream = BatchStream(
                tokens_path(config, phase["number"]),
                seed=train.seed,
                global_batch_tokens=phase["global_batch_tokens"],
                batch_tokens=job["batch_tokens"],
                masking=Masking(train.mask_probability, train.mask),
                padded=train.padded,
                shards=phase["train"],
            )
            phase["steps"] = max(1, round(train.epochs * stream.steps_per_epoch))
        steps = phase["steps"]
        phase["schedule"] = {
            "name": train.schedule,
            "steps": steps,
            "lr": phase["lr"],
            "warmup": steps_of(train.warmup, steps),
            "decay": steps_of(train.decay, steps),
            "final": train.final,
        }
    _check_steps(train, job)


def steps_of(amount: float, steps: int) -> int:
    """A number of steps; below 1 it is a share of them."""
    return round(amount * steps) if amount < 1 else round(amount)


def refuse_settings(config: PretrainConfig) -> None:
    """Raise ValueError for what could only fail later."""
    train = config.train
    if train.steps is None and train.epochs is None and not train.phases:
        raise ValueError("train.steps is missing: give it, train.epochs or train.phases")
    refuse_combinations(
        optimizer=train.optimizer, zero=train.zero, offload=train.offload, precision=train.precision
    )
    refuse_missing(config.track)


def _check_steps(train: TrainSettings, job: Mapping[str, Any]) -> None:
    for phase in job["phases"]:
        schedule = phase["schedule"]
        tail = schedule["decay"] if schedule["name"] == "wsd" else 0
        if schedule["warmup"] + tail > phase["steps"]:
            raise ValueError(
                f"train.warmup={train.warmup:g} and train.decay={train.decay:g} are longer than the "
                f"{phase['steps']} steps of the run; lower them"
            )


def _shards_digest(path: str) -> str:
    sizes = sorted(Store(path).sizes("data").items())
    return hashlib.blake2b(json.dumps(sizes).encode(), digest_size=16).hexdigest()
