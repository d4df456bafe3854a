"""The model that a run's settings ask for, checked against the tokens."""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from raybert.config.training import PretrainModelSettings
from raybert.train.pretraining_model import build_model

# theirs keep positions up to padding_idx + 1 free
_OFFSET_POSITIONS = ("roberta",)


def run_model(
    settings: PretrainModelSettings, tokens: Mapping[str, Any], *, pairs: bool, seed: int
) -> PreTrainedModel:
    """A new model of the settings' shape for the tokens' vocabulary, or the named one.

    Raises ValueError if a named model has too few ids or positions for the tokens.
    """
    torch.manual_seed(seed)
    if not settings.name:
        return build_model(new_config(settings, tokens), pairs=pairs)
    model = build_model(
        settings.name, pairs=pairs, revision=settings.revision, trust_remote_code=settings.trust_remote_code
    )
    config = model.config
    if config.vocab_size < tokens["vocabulary"]:
        raise ValueError(
            f"model.name={settings.name} knows {config.vocab_size:,} ids, the tokens in data.path have "
            f"{tokens['vocabulary']:,}; prepare them with the model's own tokenizer"
        )
    positions = config.max_position_embeddings
    if config.model_type in ("roberta", "xlm-roberta", "camembert"):
        positions -= config.pad_token_id + 1
    if positions < tokens["max_length"]:
        raise ValueError(
            f"model.name={settings.name} takes {positions} tokens, data.path has sequences of up to "
            f"{tokens['max_length']}; prepare the tokens with prepare.max_length={positions}"
        )
    return model


def new_config(settings: PretrainModelSettings, tokens: Mapping[str, Any]) -> PreTrainedConfig:
    """The shape of a new model: the settings' layers, the tokens' vocabulary and longest sequence."""
    inner = settings.intermediate or 4 * settings.hidden
    shape: dict[str, Any] = {
        "hidden_size": settings.hidden,
        "num_hidden_layers": settings.layers,
        "num_attention_heads": settings.heads,
        "intermediate_size": inner,
        "hidden_dropout_prob": settings.dropout,
        "attention_probs_dropout_prob": settings.attention_dropout,
    }
    if settings.family == "distilbert":
        shape = {"dim": settings.hidden, "n_layers": settings.layers, "n_heads": settings.heads}
        shape |= {"hidden_dim": inner, "dropout": settings.dropout}
        shape["attention_dropout"] = settings.attention_dropout
    if settings.family == "electra":
        shape["embedding_size"] = settings.hidden
    pad = tokens.get("pad_id", 0)
    free = pad + 1 if settings.family in _OFFSET_POSITIONS else 0
    return AutoConfig.for_model(
        settings.family,
        vocab_size=tokens["vocabulary"],
        max_position_embeddings=tokens["max_length"] + free,
        pad_token_id=pad,
        **shape,
    )
