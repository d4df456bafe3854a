"""Elastic weights (EWC) of a run: what an earlier task needs is found out once, by all ranks, and kept in the run's folder.

A run that goes on reads it there: numbers of other hardware would be others.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor

from raybert.corpus.store import Store
from raybert.tasks.examples import Examples
from raybert.train.example_stream import ExampleMicro
from raybert.train.packed import pack
from raybert.train.regularizers import ElasticWeights, fisher
from raybert.train.step import seed_dropout

KEPT = "_raybert/ewc.safetensors"
_FISHER, _ANCHOR = "fisher", "anchor"


def elastic_weights(
    start: Callable[[], Any],
    examples: Callable[[], Examples],
    store: Store,
    *,
    strength: float,
    seed: int,
) -> ElasticWeights:
    """The penalty of a run, for the parameters of a task's model by their names. Every rank calls it.

    Args:
        start: makes a task's model (`raybert.tasks.base_model.TaskModel`) with the weights that the run began with; called
            where the folder has nothing yet, as is `examples`.
        examples: those of the earlier task; of their labels it matters only which targets are asked of.
        store: the run's folder.
        seed: of the labels that are drawn.
    """
    known = store.exists(KEPT)
    dist.barrier()  # all have looked before one of them writes
    if not known:
        model = start()
        information = _information(model, examples(), seed)
        if dist.get_rank() == 0:
            anchor = {name: p.detach() for name, p in model.named_parameters() if name in information}
            found = {f"{_FISHER}/{name}": value for name, value in information.items()}
            found |= {f"{_ANCHOR}/{name}": value for name, value in anchor.items()}
            store.write(KEPT, safetensors.torch.save(found))
        dist.barrier()
    parts: dict[str, dict[str, Tensor]] = {_FISHER: {}, _ANCHOR: {}}
    for key, value in safetensors.torch.load(store.read(KEPT)).items():
        part, _, name = key.partition("/")
        parts[part][name] = value
    return ElasticWeights(parts[_ANCHOR], parts[_FISHER], strength)


def _information(model: Any, examples: Examples, seed: int) -> dict[str, Tensor]:
    """The diagonal of the Fisher information over all examples, on every rank; on the CPU."""
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")
    generator = torch.Generator(device)
    own = range(dist.get_rank(), len(examples), dist.get_world_size())

    def batches() -> Iterator[Any]:
        for number in own:
            seed_dropout(seed, 0, number)  # labels do not depend on which rank draws them
            generator.manual_seed(torch.initial_seed())
            yield pack(ExampleMicro(examples.take(np.array([number]))), device)

    model.to(device)
    found = fisher(
        model, batches(), lambda batch: model.logits(batch)[model.asked(batch)], generator=generator
    )
    for value in found.values():
        value *= len(own) / len(examples)  # the mean over all from the means over each rank's
        dist.all_reduce(value)
    model.to("cpu")
    return {name: value.cpu() for name, value in found.items()}
