"""Gradients of a loss over more sequences than fit in memory at once: GradCache (Gao et al. 2021, arXiv 2101.06983).

A contrastive loss needs the vectors of a whole batch; their graphs need not live together. Vectors are computed chunk
by chunk without graphs, the loss gives their gradients, and every chunk is computed again with its graph.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

Chunk = TypeVar("Chunk")


class RandomState:
    """The state of torch's generators (CPU, and the current GPU if there is one), to draw the same numbers again."""

    def __init__(self) -> None:
        self._cpu = torch.get_rng_state()
        self._gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    def restore(self) -> None:
        """Set the generators back to this state."""
        torch.set_rng_state(self._cpu)
        if self._gpu is not None:
            torch.cuda.set_rng_state(self._gpu)


def grad_cache(
    embed: Callable[[Chunk], Tensor],
    chunks: Sequence[Chunk],
    loss_of: Callable[[Tensor], Tensor],
    *,
    backward: Callable[[Tensor], object] = Tensor.backward,
    seed: Callable[[int], None] | None = None,
) -> Tensor:
    """Accumulate the gradients of `loss_of(vectors of all chunks)`; any number of chunks gives the same ones.

    There is one forward pass with a graph and one `backward` a chunk, so under data parallelism every rank needs equally
    many chunks. What `backward` takes is no loss: only its gradient means something.

    Args:
        embed: chunk -> [n, width]. Called twice a chunk, with the same dropout.
        loss_of: [sum of n, width] -> [], this rank's share of the loss. It may gather vectors of other ranks.
        backward: DeepSpeed's `engine.backward` with its scale, for one.
        seed: seeds dropout for chunk i (see `raybert.train.step.seed_dropout`). Without it dropout goes on from where
            torch's generators are, and their state is kept for the second pass.

    Returns:
        The loss [], detached.
    """
    states, vectors = [], []
    with torch.no_grad():
        for i, chunk in enumerate(chunks):
            if seed is not None:
                seed(i)
            states.append(RandomState())
            vectors.append(embed(chunk))
    leaf = torch.cat(vectors).requires_grad_()
    loss = loss_of(leaf)
    (gradient,) = torch.autograd.grad(loss, leaf)
    parts = gradient.split([len(part) for part in vectors])
    for chunk, state, part in zip(chunks, states, parts, strict=True):
        state.restore()
        found = embed(chunk)
        backward((found * part).sum())
    return loss.detach()
