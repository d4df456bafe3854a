"""The transformers model that a task begins with: a pretrained encoder and a head for the task."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from raybert.config.finetune import FinetuneModelSettings
from raybert.encoder.folders import read_folder, resolve

_DROPOUT = (
    "hidden_dropout_prob",
    "dropout",
    "classifier_dropout",
    "classifier_dropout_prob",
    "seq_classif_dropout",
)
_DROPOUT += ("embedding_dropout", "mlp_dropout", "embd_pdrop", "resid_pdrop")
_ATTENTION_DROPOUT = ("attention_probs_dropout_prob", "attention_dropout")


def make_plain(
    settings: FinetuneModelSettings,
    task: Any,
    labels: Sequence[str],
    task_settings: Any,
    *,
    vocabulary: int = 0,
) -> PreTrainedModel:
    """The named model with the task's head, float32; weights that it lacks are random, from torch's global generator.

    A head that was trained for the same labels is gone on with; one for others is not used.

    Args:
        task: the model side of a task, with `AUTO` and `configure` (see `raybert.tasks.known.model_side`).
        vocabulary: tokens that the tokenizer has; the task may have added some.
    """
    logging.disable_progress_bar()
    logging.set_verbosity_error()  # it tells of every head that is new
    folder, _ = resolve(settings.name, settings.revision, code=settings.trust_remote_code)
    path = read_folder(folder).transformer
    config = AutoConfig.from_pretrained(path, trust_remote_code=settings.trust_remote_code)
    same_head = dict(config.label2id or {}) == {label: i for i, label in enumerate(labels)}
    task.configure(config, labels, task_settings)
    set_dropout(config, settings)
    found = task.AUTO.from_pretrained(
        path,
        config=config,
        dtype=torch.float32,
        use_safetensors=True,
        trust_remote_code=settings.trust_remote_code,
        ignore_mismatched_sizes=True,
    )
    if not same_head:
        fresh = task.AUTO.from_config(config, trust_remote_code=settings.trust_remote_code).float()
        fresh.base_model.load_state_dict(found.base_model.state_dict())
        found = fresh
    if vocabulary > found.get_input_embeddings().num_embeddings:
        found.resize_token_embeddings(vocabulary, mean_resizing=False)
    return found


def set_dropout(config: PreTrainedConfig, settings: FinetuneModelSettings) -> None:
    """Write the dropout of the settings, where they name one, into a model's configuration."""
    for names, value in ((_DROPOUT, settings.dropout), (_ATTENTION_DROPOUT, settings.attention_dropout)):
        if value is None:
            continue
        for name in names:
            if getattr(config, name, None) is not None:
                setattr(config, name, value)
