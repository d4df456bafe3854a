"""Adversarial methods against their formulas, written again sequence by sequence with `inputs_embeds`."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from raybert.train.adversarial import step, with_delta
from tests.train import lever_ranks
from tests.train.lever_fakes import Classifier, alone, batch, gradients, largest_difference, plain_model

SETTINGS = {
    "fgm": {"epsilon": 0.7},
    "pgd": {"epsilon": 0.5, "alpha": 0.3, "steps": 3},
    "freelb": {"epsilon": 0.6, "alpha": 0.4, "steps": 3, "init": 0.5},
    "smart": {"epsilon": 0.3, "alpha": 1e-2, "steps": 2, "init": 1e-2, "weight": 1.5},
}


def settings(name: str, **changes: float) -> SimpleNamespace:
    return SimpleNamespace(name=name, **{**SETTINGS[name], **changes})


class Alone:
    """The loss of one sequence as a function of a change of its word embeddings."""

    def __init__(self, plain, ids: Tensor, label: Tensor) -> None:
        self.plain, self.label = plain, label
        self.words = plain.get_input_embeddings()(ids)

    def logits(self, change: Tensor) -> Tensor:
        return self.plain(inputs_embeds=self.words + change).logits

    def loss(self, change: Tensor) -> Tensor:
        return torch.nn.functional.cross_entropy(self.logits(change), self.label)

    def slope(self, change: Tensor) -> Tensor:
        change = change.detach().requires_grad_()
        return torch.autograd.grad(self.loss(change), change)[0]


def clipped(r: Tensor, bound: float) -> Tensor:
    return r * min(1.0, bound / float(r.norm()))


def fgm(one: Alone, s, start: Tensor) -> Tensor:
    g = one.slope(torch.zeros_like(start))
    return one.loss(torch.zeros_like(start)) + one.loss(s.epsilon * g / g.norm())


def pgd(one: Alone, s, start: Tensor) -> Tensor:
    r = torch.zeros_like(start)
    for _ in range(s.steps):
        g = one.slope(r)
        r = clipped(r + s.alpha * g / g.norm(), s.epsilon)
    return one.loss(torch.zeros_like(start)) + one.loss(r)


def freelb(one: Alone, s, start: Tensor) -> Tensor:
    r, total = start * s.init / start.numel() ** 0.5, torch.zeros(())
    for _ in range(s.steps):
        total = total + one.loss(r) / s.steps
        g = one.slope(r)
        r = clipped(r + s.alpha * g / g.norm(), s.epsilon)
    return total


def divergence(one: Alone, r: Tensor) -> Tensor:
    p, q = (one.logits(x).log_softmax(-1) for x in (torch.zeros_like(r), r))
    return (p.exp() * (p - q)).sum() + (q.exp() * (q - p)).sum()


def smart(one: Alone, s, start: Tensor) -> Tensor:
    r = s.init * start
    for _ in range(s.steps):
        r = r.detach().requires_grad_()
        (g,) = torch.autograd.grad(divergence(one, r), r)
        r = (r + s.alpha * g).detach()
        r = s.epsilon * r / (r.abs().amax(-1, keepdim=True) + 1e-6)
    return one.loss(torch.zeros_like(r)) + s.weight * divergence(one, r)


FORMULAS = {"fgm": fgm, "pgd": pgd, "freelb": freelb, "smart": smart}


def starts(name: str, data, width: int, padded: bool) -> list[Tensor]:
    """The random numbers that a method begins with, by sequence."""
    lengths = data.rows.lengths.tolist()
    shape = (len(lengths), max(lengths), width) if padded else (1, sum(lengths), width)
    torch.manual_seed(5)
    drawn = torch.randn(shape) if name == "smart" else torch.empty(shape).uniform_(-1, 1)
    if padded:
        return [drawn[i : i + 1, :length] for i, length in enumerate(lengths)]
    return list(drawn.split(lengths, 1))


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("name", FORMULAS)
def test_gradients_are_those_of_the_formula(name, padded):
    check(name, padded, "bert")


@pytest.mark.parametrize("name", ["pgd", "freelb"])
def test_word_embeddings_may_be_narrower_than_the_model(name):
    check(name, False, "electra")


def check(name: str, padded: bool, family: str) -> None:
    data, s = batch(1), settings(name)
    plain = plain_model(family)
    plain.set_attn_implementation("sdpa")
    width = plain.get_input_embeddings().embedding_dim
    count = len(data.labels)
    for (ids, label), start in zip(alone(data), starts(name, data, width, padded), strict=True):
        (FORMULAS[name](Alone(plain, ids, label), s, start) / count).backward()
    expected = gradients(plain)
    plain.zero_grad()
    model = Classifier(plain, padded=padded)
    torch.manual_seed(5)
    sums = step(model, data, lambda sums: sums.loss_sum / count, Tensor.backward, s, targets=count)
    assert largest_difference(gradients(plain), expected) < 1e-4
    assert int(sums.count) == count
    assert not sums.loss_sum.requires_grad
    if name != "freelb":  # the others report the clean pass
        assert float(sums.loss_sum) == pytest.approx(float(model(data).loss_sum.detach()), rel=1e-5)


def test_freelb_has_one_dropout_mask_for_all_steps():
    data, plain = batch(2), plain_model(dropout=0.4)
    model = Classifier(plain)
    s = settings("freelb", init=0.0, alpha=0.0)  # nothing but dropout could differ
    torch.manual_seed(3)
    step(model, data, lambda sums: sums.loss_sum, Tensor.backward, s)
    found = gradients(plain)
    plain.zero_grad()
    torch.manual_seed(3)
    torch.empty(1, int(data.rows.offsets[-1]), 32).uniform_(-1, 1)
    model(data).loss_sum.backward()
    assert largest_difference(found, gradients(plain)) < 2e-4


def test_without_a_bound_freelb_does_not_project():
    data, plain = batch(2), plain_model()
    model, sizes = Classifier(plain), []

    def watched(batch, delta=None):
        sizes.append(float(delta[:, :3].norm()))
        return model(batch, delta=delta)

    watched.plain, watched.padded = plain, False
    for epsilon in (0.0, 0.5):
        s = settings("freelb", init=0.0, alpha=1.0, epsilon=epsilon)
        step(watched, data, lambda sums: sums.loss_sum, Tensor.backward, s)
    assert sizes[1] == pytest.approx(1.0, rel=1e-4)
    assert sizes[2] > 1.0
    assert sizes[4] == sizes[5] == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("name", FORMULAS)
def test_a_sequence_without_a_gradient_is_left_alone(name):
    data, plain = batch(2), plain_model()
    with torch.no_grad():
        plain.classifier.weight.zero_()  # logits do not depend on the text
    step(Classifier(plain), data, lambda sums: sums.loss_sum, Tensor.backward, settings(name))
    assert all(torch.isfinite(g).all() for g in gradients(plain).values())


def test_delta_is_added_to_the_words_and_taken_away_again():
    data, plain = batch(2), plain_model()
    delta = torch.randn(1, int(data.rows.offsets[-1]), 32, dtype=torch.float64, requires_grad=True)
    words = plain.get_input_embeddings()
    with with_delta(plain, delta):
        moved = words(data.ids)
    torch.testing.assert_close(moved, words(data.ids) + delta.float())
    moved.sum().backward()
    assert torch.equal(delta.grad, torch.ones_like(delta))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Weights after two steps of 2 ranks, by method and stage."""
    return lever_ranks.run(tmp_path_factory.mktemp("adversarial"), "adversarial")


@pytest.mark.parametrize("zero", [0, 2, 3])
@pytest.mark.parametrize("name", FORMULAS)
def test_two_ranks_of_any_stage_update_as_one_process(trained, name, zero):
    plain = plain_model()
    model = Classifier(plain)
    expected = lever_ranks.adversarial_steps(
        model, settings(name), torch.optim.SGD(plain.parameters(), lr=lever_ranks.LR), [0, 1]
    )
    found = trained[f"{name}-{zero}"]
    assert found.keys() == expected.keys()
    start = dict(plain_model().named_parameters())
    assert max(float((value - start[key]).abs().max()) for key, value in expected.items()) > 1e-2
    assert max(float((found[key] - value).abs().max()) for key, value in expected.items()) < 1e-5
