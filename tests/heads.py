"""Tiny random models with a head, written in a second."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raybert.tasks.examples import Examples, Lists
from tests.encoder.tiny import tiny_model

LABELS = ("being", "place", "thing")


def tiny_head(
    folder: Path,
    labels: Sequence[str] = LABELS,
    *,
    family: str = "bert",
    problem: str | None = "single_label_classification",
    seed: int = 0,
) -> str:
    """A model that is sure of its predictions and gives different ones; the same arguments give the same weights."""
    import torch
    from transformers import AutoModelForSequenceClassification

    tiny_model(folder, family, st=False)
    named = {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForSequenceClassification.from_pretrained(folder, problem_type=problem, **named)
        for name, weight in model.named_parameters():
            if "classifier" in name and weight.ndim == 2:
                torch.nn.init.normal_(weight, std=0.7)
    model.save_pretrained(folder)
    return str(folder)


def tiny_task(folder: Path, settings: Any, labels: Sequence[str], *, seed: int = 0, std: float = 0.7) -> str:
    """A model for any task whose models are made from a configuration, as plain transformers saves it."""
    import torch
    from tokenizers import Tokenizer
    from transformers import AutoConfig

    from raybert.tasks.known import data_side, model_side

    tiny_model(folder, st=False)
    side, config = model_side(settings.name), AutoConfig.from_pretrained(folder)
    side.configure(config, labels, settings)
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    if hasattr(data_side(settings.name), "add_markers"):
        data_side(settings.name).add_markers(tokenizer, settings)
        tokenizer.save(str(folder / "tokenizer.json"))
    config.vocab_size = tokenizer.get_vocab_size()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = side.AUTO.from_config(config)
        for name, weight in model.named_parameters():
            if ("classifier" in name or "qa_outputs" in name) and weight.ndim == 2:
                torch.nn.init.normal_(weight, std=std)
    model.save_pretrained(folder)
    return str(folder)


def reordered(folder: str, to: Path, labels: Sequence[str]) -> str:
    """The same model with its labels in another order."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    model = AutoModelForSequenceClassification.from_pretrained(folder)
    order = [model.config.label2id[label] for label in labels]
    for tensor in (model.classifier.weight, model.classifier.bias):
        tensor.data = tensor.data[order].clone()
    model.config.id2label = dict(enumerate(labels))
    model.config.label2id = {label: i for i, label in enumerate(labels)}
    model.save_pretrained(to)
    AutoTokenizer.from_pretrained(folder).save_pretrained(to)
    return str(to)


def change_config(folder: str, **changes: Any) -> None:
    """Edit config.json; None removes a key."""
    path = Path(folder, "config.json")
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


def sequences(values: np.ndarray, lengths: np.ndarray, boundary: np.ndarray) -> Examples:
    """Examples without targets, from their ids one after the other."""
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    return Examples(Lists(values, offsets), boundary, np.arange(len(lengths)), {})
