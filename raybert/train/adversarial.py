"""Adversarial training: FGM, PGD, FreeLB and SMART, on the output of the word embedding.

The usual code edits the embedding matrix and reads its `.grad`; ZeRO cuts both into pieces. Here the perturbation is a
tensor of its own, `model(batch, delta=...)`, whose gradient is that of the word embedding's output: every ZeRO stage
works, and every sequence has its own norm. Sequences are perturbed, not words of the vocabulary.

`model` must have `plain` (the transformers model) and `padded` (whether batches are padded for its forward pass).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from raybert.train.grad_cache import RandomState
from raybert.train.packed import PackedBatch
from raybert.train.regularizers import symmetric_kl

S = TypeVar("S")


class Adversarial(Protocol):
    """Settings of a method; those that a method has not are not read.

    What they are unless given is in `raybert.config.levers`. Much code takes for FGM epsilon 1, for PGD epsilon 1,
    alpha 0.3, 3 steps, but as the norm for a whole batch; here it is that of a row. Papers, or their code, take for
    FreeLB alpha 0.1, init 0.6, 2 steps without a bound (ALBERT on SST-2; RoBERTa: epsilon 0.6, init 1); for SMART alpha
    1e-5 or 1e-3, init 1e-5, epsilon 1, 1 step, weight 1 (mt-dnn, which moves embeddings after their norm; words are
    smaller, of 0.04, and so is our epsilon).

    Attributes:
        name: fgm, pgd, freelb or smart.
        epsilon: bound of a sequence's perturbation; in FreeLB 0 is no bound; in SMART the largest element.
        alpha: length of an ascent step.
        steps: ascent steps K.
        init: magnitude of the random start: FreeLB's `mag`, SMART's noise.
        weight: factor of SMART's divergence, its alpha.
    """

    name: str
    epsilon: float
    alpha: float
    steps: int
    init: float
    weight: float


@contextmanager
def with_delta(plain: nn.Module, delta: Tensor | None) -> Iterator[None]:
    """While it lasts, `delta` is added to what the word embedding of a transformers model gives; None adds nothing.

    delta: [1, tokens, width] for packed batches, [n, longest, width] for padded ones; any float type. For the forward of
    a training model. Its gradient flows through the cast to the type of the embedding.
    """
    if delta is None:
        yield
        return

    def add(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return output + delta.to(output.dtype)

    handle = plain.get_input_embeddings().register_forward_hook(add)  # type: ignore[operator]
    try:
        yield
    finally:
        handle.remove()


def step(
    model: Callable[..., S],
    batch: PackedBatch,
    loss_of: Callable[[S], Tensor],
    backward: Callable[[Tensor], object],
    settings: Adversarial,
    *,
    targets: float = 1,
    divergence: Callable[[Tensor, Tensor], Tensor] = symmetric_kl,
) -> S:
    """The forward and backward passes of one micro batch: parameter gradients of the method's loss are accumulated.

    Every rank makes the same number of passes, whatever its batch. Dropout goes on from torch's generators.

    Args:
        model: (batch, delta=...) -> sums, a tensor or a NamedTuple of tensors. For SMART it also takes `outputs=True` and
            returns (sums, logits [m, ...]), or (sums, {"logits": ...}). A DeepSpeed engine is one.
        loss_of: sums -> this batch's share of the global loss.
        backward: takes that loss; where DeepSpeed divides by the ranks, `lambda loss: engine.backward(loss * world)`.
        targets: SMART's divergence is a mean over so many rows of logits: those of the global batch.
        divergence: (clean, perturbed) -> [m]; for regression the squared difference.

    Returns:
        The detached sums: of the clean pass; of FreeLB, which has none, the mean over its passes.
    """
    places = _Places.of(model, batch)
    if settings.name == "smart":
        return _smart(model, batch, loss_of, backward, settings, places, targets, divergence)
    return _METHODS[settings.name](model, batch, loss_of, backward, settings, places)


def _fgm(
    model: Any, batch: Any, loss_of: Any, backward: Any, settings: Adversarial, places: "_Places"
) -> Any:
    """L(x) + L(x + r), r = epsilon g / |g| (Miyato et al. 2017, arXiv 1605.07725, equation 5)."""
    sums, gradient = _clean(model, batch, loss_of, backward, places)
    moved = settings.epsilon * places.unit(gradient)
    backward(loss_of(model(batch, delta=moved)))
    return sums


def _pgd(
    model: Any, batch: Any, loss_of: Any, backward: Any, settings: Adversarial, places: "_Places"
) -> Any:
    """L(x) + L(x + r_K), r <- P(r + alpha g / |g|) (Madry et al. 2018, arXiv 1706.06083).

    On the way only the perturbation gets gradients, so parameters keep those of the first and of the last pass.
    """
    sums, gradient = _clean(model, batch, loss_of, backward, places)
    moved = places.zeros()
    for last in [*[False] * (settings.steps - 1), True]:
        moved = places.project(moved + settings.alpha * places.unit(gradient), settings.epsilon)
        if last:
            backward(loss_of(model(batch, delta=moved)))
            return sums
        leaf = moved.requires_grad_()
        (gradient,) = torch.autograd.grad(loss_of(_bare(model)(batch, delta=leaf)), leaf)
        moved = moved.detach()
    return sums


def _freelb(
    model: Any, batch: Any, loss_of: Any, backward: Any, settings: Adversarial, places: "_Places"
) -> Any:
    """The mean of L(x + r_t) over K steps of ascent, all with one dropout mask (Zhu et al. 2020, arXiv 1909.11764)."""
    moved = places.start(settings.init)
    state, found = RandomState(), []
    for t in range(settings.steps):
        state.restore()
        leaf = moved.detach().requires_grad_()
        sums = model(batch, delta=leaf)
        backward(loss_of(sums) / settings.steps)
        found.append(_detached(sums))
        if t + 1 < settings.steps:
            assert leaf.grad is not None
            moved = leaf.detach() + settings.alpha * places.unit(leaf.grad)
            moved = places.project(moved, settings.epsilon) if settings.epsilon else moved
    return _mean(found)


def _smart(
    model: Any,
    batch: Any,
    loss_of: Any,
    backward: Any,
    settings: Adversarial,
    places: "_Places",
    targets: float,
    divergence: Any,
) -> Any:
    """L(x) + weight D(f(x), f(x + r)) (Jiang et al. 2020, arXiv 1911.03437), r by the ascent of the mt-dnn code.

    r <- epsilon (r + alpha g) / max |r + alpha g| of every token, from r = start N(0, 1). Dropout differs between the
    passes, else g would vanish with r. D's gradient is taken in two halves, so that no two graphs live at once.
    """
    state = RandomState()
    with torch.no_grad():
        _, clean = _with_logits(model, batch)
    moved = settings.init * places.normal()
    for _ in range(settings.steps):
        leaf = moved.requires_grad_()
        _, perturbed = _with_logits(_bare(model), batch, leaf)
        (gradient,) = torch.autograd.grad(divergence(clean, perturbed).sum(), leaf)
        moved = moved.detach() + settings.alpha * gradient
        moved = settings.epsilon * moved / (moved.abs().amax(-1, keepdim=True) + _SMALLEST)
    weight = settings.weight / targets
    _, perturbed = _with_logits(model, batch, moved)
    backward(divergence(clean, perturbed).sum() * weight)
    state.restore()
    sums, clean = _with_logits(model, batch)
    backward(loss_of(sums) + divergence(clean, perturbed.detach()).sum() * weight)
    return _detached(sums)


_METHODS = {"fgm": _fgm, "pgd": _pgd, "freelb": _freelb}
_SMALLEST = 1e-6  # mt-dnn's adv_epsilon


def _clean(model: Any, batch: Any, loss_of: Any, backward: Any, places: "_Places") -> tuple[Any, Tensor]:
    """The unperturbed pass: its detached sums, and the gradient of its loss in the embeddings."""
    leaf = places.zeros().requires_grad_()
    sums = model(batch, delta=leaf)
    backward(loss_of(sums))
    assert leaf.grad is not None
    return _detached(sums), leaf.grad


def _with_logits(model: Any, batch: Any, delta: Tensor | None = None) -> tuple[Any, Tensor]:
    sums, outputs = model(batch, delta=delta, outputs=True)
    return sums, outputs if isinstance(outputs, Tensor) else outputs["logits"]


def _bare(model: Any) -> Any:
    """The model inside of a DeepSpeed engine: an engine takes every backward pass for one of the parameters."""
    return getattr(model, "module", model)


@dataclass(frozen=True)
class _Places:
    """Where the sequences of a batch lie in a perturbation, and its arithmetic by sequence.

    Attributes:
        shape: of the perturbation.
        lengths: int64 [n].
        number: int64 [tokens], the sequence of every token, if packed.
        real: [n, longest, 1], 1 for tokens and 0 for padding, if padded.
    """

    shape: tuple[int, int, int]
    lengths: Tensor
    number: Tensor | None
    real: Tensor | None

    @classmethod
    def of(cls, model: Any, batch: PackedBatch) -> "_Places":
        width = model.plain.get_input_embeddings().embedding_dim  # ZeRO 3 leaves weights without a shape
        lengths = torch.as_tensor(batch.rows.lengths, dtype=torch.int64).to(batch.ids.device)
        n, longest = len(lengths), batch.rows.longest
        at = torch.arange(n, device=lengths.device)
        if not model.padded:
            return cls((1, batch.ids.shape[1], width), lengths, at.repeat_interleave(lengths), None)
        real = torch.arange(longest, device=lengths.device) < lengths[:, None]
        return cls((n, longest, width), lengths, None, real[..., None].float())

    def zeros(self) -> Tensor:
        return torch.zeros(self.shape, device=self.lengths.device)

    def normal(self) -> Tensor:
        return self._masked(torch.randn(self.shape, device=self.lengths.device))

    def start(self, magnitude: float) -> Tensor:
        """U(-1, 1) * magnitude / sqrt(length * width)."""
        uniform = self._masked(self.zeros().uniform_(-1, 1))
        return uniform * self._spread(magnitude / (self.lengths * self.shape[2]).float().sqrt())

    def unit(self, x: Tensor) -> Tensor:
        """x / |x| for every sequence; 0 where x is."""
        return x * self._spread(1 / self._norms(x).clamp_min(torch.finfo(torch.float32).tiny))

    def project(self, x: Tensor, bound: float) -> Tensor:
        """Every sequence whose norm is above the bound is scaled down to it."""
        norms = self._norms(x).clamp_min(torch.finfo(torch.float32).tiny)
        return x * self._spread((bound / norms).clamp_max(1))

    def _norms(self, x: Tensor) -> Tensor:
        """float32 [n]. Squares are added in double precision: those of small gradients vanish in float32."""
        tokens = torch.linalg.vector_norm(x.double(), dim=-1).square()
        if self.number is None:
            return tokens.sum(1).sqrt().float()
        sums = tokens.new_zeros(len(self.lengths)).index_add_(0, self.number, tokens[0])
        return sums.sqrt().float()

    def _spread(self, values: Tensor) -> Tensor:
        """[n] -> what a perturbation can be multiplied by."""
        return values[:, None, None] if self.number is None else values[self.number][None, :, None]

    def _masked(self, x: Tensor) -> Tensor:
        return x if self.real is None else x * self.real


def _detached(sums: Any) -> Any:
    return sums.detach() if isinstance(sums, Tensor) else _like(sums, [value.detach() for value in sums])


def _mean(found: list[Any]) -> Any:
    if isinstance(found[0], Tensor):
        return torch.stack(found).mean(0)
    return _like(found[0], [torch.stack(values).double().mean(0) for values in zip(*found, strict=True)])


def _like(sums: Any, values: list[Tensor]) -> Any:
    """ZeRO 3 makes a plain tuple of a NamedTuple."""
    return type(sums)(*values) if hasattr(sums, "_fields") else tuple(values)
