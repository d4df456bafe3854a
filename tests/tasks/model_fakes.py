"""What the tests of the tasks' models share: rows alone through plain transformers, gradients, overfitting."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch

from raybert.tasks.examples import Examples, Lists
from raybert.train.example_stream import ExampleMicro, nothing
from raybert.train.packed import pack
from raybert.train.step import train_step
from raybert.train.task_objective import TaskObjective
from tests.train.fakes import VOCABULARY, config


def sequences(seed: int = 0, n: int = 6, *, pairs: bool = False) -> Examples:
    """Random sequences of 5 to 14 tokens, in the order of their lengths, without targets."""
    rng = np.random.default_rng(seed)
    lengths = np.sort(rng.integers(5, 15, n))
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(5, VOCABULARY, offsets[-1]).astype(np.int32)
    boundary = lengths // 2 if pairs else lengths
    return Examples(Lists(ids, offsets), boundary.astype(np.int32), np.arange(n), {})


def plain(task, labels, settings, family="bert", *, dropout=0.0, vocabulary=VOCABULARY):
    """A random transformers model with the head of a task; the same every time."""
    shape = config(family, dropout=dropout)
    shape.vocab_size = vocabulary
    task.configure(shape, labels, settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return task.AUTO.from_config(shape)


def alone(model, examples: Examples):
    """What each sequence is given to a transformers model with, by itself."""
    types = ExampleMicro(examples).types
    for a, b in pairwise(examples.ids.offsets):
        given = {"input_ids": torch.tensor(examples.ids.values[a:b], dtype=torch.int64)[None]}
        yield {**given, "token_type_ids": torch.tensor(types[a:b])[None]}


def gradients(model, batch) -> dict[str, torch.Tensor]:
    """Of the loss of a batch, by parameter."""
    model.zero_grad()
    model(batch).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def delta_of(model, examples: Examples) -> torch.Tensor:
    """Zeros in the shape of a change of the word embeddings, with gradients."""
    lengths = examples.ids.lengths
    shape = (len(lengths), int(lengths.max())) if model.padded else (1, int(lengths.sum()))
    return torch.zeros((*shape, 32), requires_grad=True)


def change_of_loss(model, examples: Examples) -> tuple[float, float]:
    """How the loss changes with a small step of the embeddings along its gradient, and what the gradient says."""
    batch, delta = pack(ExampleMicro(examples)), delta_of(model, examples)
    (gradient,) = torch.autograd.grad(model(batch, delta).loss, delta)
    with torch.no_grad():
        step = 1e-3 * gradient / gradient.norm()
        change = model(batch, step).loss - model(batch, -step).loss
    return float(change), float(2e-3 * gradient.norm())


def learnt(model, side, labels, settings, examples: Examples, *, steps: int = 60) -> dict[str, float]:
    """The figures on some examples after training on them, all in one batch."""
    order = np.argsort(examples.ids.lengths, kind="stable")  # the order of packing
    examples = examples.take(order)
    micro = ExampleMicro(replace(examples, truth={}))
    objective = TaskObjective(model.sums_type(settings), model.targets, nothing(examples))
    optimizer = torch.optim.AdamW(model.parameters())
    model.train()
    for step in range(steps):
        figures = train_step(
            model, optimizer, [(0, micro)], lr=5e-3, seed=0, step=step, clip=1.0, objective=objective
        )
    assert figures.values["accuracy"] == 1
    model.eval()
    with torch.no_grad():
        _, outputs = model(pack(micro), outputs=True)
    scores = side.Scores(labels, settings)
    scores.add({name: value.numpy() for name, value in outputs.items()}, examples)
    return scores.result()
