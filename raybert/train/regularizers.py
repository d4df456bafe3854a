"""Terms that are added to a task's loss: R-Drop, label smoothing, symmetric KL divergence, and elastic weights (EWC).

All are functions of logits [m, classes] that give a value a row, [m]; the caller divides sums by global counts.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

Example = TypeVar("Example")
Outputs = Literal["classes", "labels", "regression"]

IGNORED = -100


def symmetric_kl(first: Tensor, second: Tensor) -> Tensor:
    """KL(p || q) + KL(q || p) of every row, p and q the softmaxes of logits [m, classes]. Returns [m]."""
    p, q = first.float().log_softmax(-1), second.float().log_softmax(-1)
    return ((p.exp() - q.exp()) * (p - q)).sum(-1)


def symmetric_kl_of_labels(first: Tensor, second: Tensor) -> Tensor:
    """The same for independent labels: a Bernoulli distribution a logit, summed over the labels. Returns [m]."""
    p, q = first.float(), second.float()
    return ((p.sigmoid() - q.sigmoid()) * (p - q)).sum(-1)  # a logit is log p - log (1 - p)


def squared_difference(first: Tensor, second: Tensor) -> Tensor:
    """The mean over the outputs [m, k] of a row of (first - second)^2. Returns [m]."""
    return (first.float() - second.float()).square().mean(-1)


def divergence(first: Tensor, second: Tensor, kind: Outputs = "classes") -> Tensor:
    """R-Drop's (Liang et al. 2021, arXiv 2106.14448): 1/2 (KL(p1 || p2) + KL(p2 || p1)) of every row.

    The loss is 1/2 (l1 + l2) + alpha times this. For regression it is (o1 - o2)^2. The rows are meant to be averaged; the
    official code sums the divergence over the batch instead, so its alpha depends on the size of the batch and this one
    does not.

    Args:
        first, second: logits [m, k] of two passes with different dropout.
        kind: what they are: of one class in k, of k independent labels, or numbers.

    Returns:
        [m].
    """
    if kind == "regression":
        return squared_difference(first, second)
    return (symmetric_kl if kind == "classes" else symmetric_kl_of_labels)(first, second) / 2


def smoothed_cross_entropy(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Cross entropy with (1 - s) of the target on the label and s spread over all k classes (Szegedy et al. 2016, section 7).

    Args:
        logits: [m, k]. labels: int64 [m]; rows with -100 give 0.

    Returns:
        [m].
    """
    logs = logits.float().log_softmax(-1)
    of_label = -logs.gather(-1, labels.clamp_min(0)[:, None])[:, 0]
    found = (1 - smoothing) * of_label - smoothing * logs.mean(-1)
    return torch.where(labels == IGNORED, 0.0, found)


def fisher(
    model: nn.Module,
    examples: Iterable[Example],
    logits_of: Callable[[Example], Tensor],
    *,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """The diagonal of the Fisher information: the mean over examples of (d log p(y|x) / d w)^2, y drawn from p(y|x).

    Every example is differentiated by itself: the square of a batch's mean gradient is something else. (Kirkpatrick et al.
    2017, arXiv 1612.00796, and Kunstner et al. 2019, arXiv 1905.12558, on drawn labels.) Dropout is off meanwhile.

    Args:
        examples: each is one example.
        logits_of: example -> logits [m, classes] of its m targets; their log probabilities are added.

    Returns:
        By the names of the parameters that are trained, in their shapes.
    """
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    found, count = {name: torch.zeros_like(p) for name, p in trained.items()}, 0
    was = model.training
    model.eval()
    for example in examples:
        logs = logits_of(example).float().log_softmax(-1)
        drawn = torch.multinomial(logs.detach().exp(), 1, generator=generator)
        gradients = torch.autograd.grad(logs.gather(-1, drawn).sum(), trained.values(), allow_unused=True)
        for name, gradient in zip(trained, gradients, strict=True):
            if gradient is not None:
                found[name] += gradient.square()
        count += 1
    model.train(was)
    return {name: total / max(1, count) for name, total in found.items()}


class ElasticWeights:
    """EWC: the sum over the weights of strength / 2 * F * (w - w*)^2 (Kirkpatrick et al. 2017, equation 3).

    Needs whole weights, so not ZeRO 3. Add `penalty(...)` to the loss of one micro batch a step on every rank, divided by
    the ranks: what the ranks add up to must be the penalty once.

    Args:
        anchor: w*, the weights after the old task, by name.
        fisher: F of `fisher`, on the old task. Its size differs by orders of magnitude between layers, and `strength` with
            it (Kruengkrai and Yamagishi 2022): it is to be searched.
    """

    def __init__(self, anchor: Mapping[str, Tensor], fisher: Mapping[str, Tensor], strength: float) -> None:
        self._anchor, self._fisher, self._strength = dict(anchor), dict(fisher), strength

    def penalty(self, model: nn.Module) -> Tensor:
        """[], differentiable in the weights."""
        terms = []
        for name, parameter in model.named_parameters():
            if name in self._fisher:
                for kept in (self._fisher, self._anchor):
                    kept[name] = kept[name].to(parameter.device)
                moved = parameter.float() - self._anchor[name]
                terms.append((self._fisher[name] * moved.square()).sum())
        assert len(terms) == len(self._fisher)
        return self._strength / 2 * torch.stack(terms).sum()
