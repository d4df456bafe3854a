"""What the driver finds out for sequence to sequence: what the decoder begins with, and whether it can. Without torch."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from raybert.config.finetune import FinetuneConfig
from raybert.config.tasks import GenerationSettings
from raybert.encoder.folders import read_folder, resolve
from raybert.pretrain.tokenizer_folder import TokenizerFolder, read_tokenizer
from raybert.tasks.generation import TARGET_TOKENIZER, refuse_missing, target_tokenizer
from raybert.tasks.heads import longest_input

DECODERS = ("bert", "camembert", "electra", "roberta", "xlm-roberta")
"""Families that transformers can put a causal mask and cross attention in."""


def refuse_generation(config: FinetuneConfig) -> None:
    """Raise ValueError for settings that do not go with an encoder-decoder, or need a package that is missing."""
    task = config.task
    assert isinstance(task, GenerationSettings)
    if config.adapter.name != "none":
        raise ValueError(
            f"adapter.name={config.adapter.name} does not go with task.name=generation: cross attention is new and is "
            "trained whole; leave the group adapter out"
        )
    if task.share and (config.freeze.layers or config.freeze.embeddings):
        raise ValueError(
            "task.share=true makes the encoder's layers the decoder's; leave the group freeze out"
        )
    if task.generate == "evaluations" and config.train.zero == 3:
        raise ValueError(
            "task.generate=evaluations needs whole weights, train.zero=3 cuts them up; set task.generate=end or "
            "train.zero=2"
        )
    refuse_missing(task)


def describe_decoder(config: FinetuneConfig) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The decoder in JSON, and the files of the target's tokenizer, by their paths in the model's folder.

    `name` and `revision`: where its weights are. `start`, `end`, `pad`: ids. `vocabulary`: tokens of the target's tokenizer;
    `known_words`: the named model was trained with them. `own_tokenizer`: it is not the source's.

    Raises:
        ValueError: a model that cannot be a decoder, or has too few layers or positions.
    """
    task = config.task
    assert isinstance(task, GenerationSettings)
    setting, name, revision = "task.decoder", task.decoder, None
    if name is None:
        setting, name, revision = "model.name", config.model.name, config.model.revision
    path = read_folder(resolve(name, revision, code=False)[0]).transformer
    shape = json.loads((path / "config.json").read_text())
    _refuse_model(task, shape, f"{setting}={name}")
    source, _ = resolve(config.model.name, config.model.revision, code=config.model.trust_remote_code)
    words = read_tokenizer(read_folder(source).transformer)
    written = words
    if task.target_tokenizer is not None:
        target_tokenizer(task)  # it says which setting is wrong
        written = read_tokenizer(Path(task.target_tokenizer).expanduser())
    trained_with = words if task.decoder is None else read_tokenizer(path)
    known = _vocabulary(written) == _vocabulary(trained_with) and written.size <= int(shape["vocab_size"])
    own = _vocabulary(written) != _vocabulary(words)
    facts = {
        "name": os.path.abspath(os.path.expanduser(name))
        if os.path.isdir(os.path.expanduser(name))
        else name,
        "revision": revision,
        "start": written.cls,
        "end": written.sep,
        "pad": written.pad,
        "vocabulary": written.size,
        "known_words": known,
        "own_tokenizer": own,
    }
    files = (
        {f"{TARGET_TOKENIZER}/{file}": text.encode() for file, text in written.files.items()} if own else {}
    )
    return facts, files


def _refuse_model(task: GenerationSettings, shape: Mapping[str, Any], where: str) -> None:
    family, layers = shape["model_type"], shape.get("num_hidden_layers", 0)
    if family not in DECODERS:
        raise ValueError(
            f"{where} is a {family} model, which cannot be a decoder; set task.decoder to one of {', '.join(DECODERS)}"
        )
    if task.decoder_layers is not None and task.decoder_layers > layers:
        raise ValueError(f"task.decoder_layers={task.decoder_layers}, but {where} has {layers} layers")
    positions = longest_input(shape, None, None, where)
    for key, tokens in (
        ("max_target_length", task.max_target_length),
        ("max_new_tokens", task.longest_output),
    ):
        if tokens > positions:
            raise ValueError(f"task.{key}={tokens}, but {where} takes {positions} tokens")


def _vocabulary(tokenizer: TokenizerFolder) -> Any:
    """Tokens and their ids."""
    found = json.loads(tokenizer.json)
    return found["model"].get("vocab"), [(token["id"], token["content"]) for token in found["added_tokens"]]
