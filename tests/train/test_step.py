"""Gradients depend on the global batch alone; schedules and optimizers follow their formulas."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from raybert.train.combinations import refuse_combinations
from raybert.train.lamb import Lamb
from raybert.train.optimizers import make_optimizer, parameter_groups
from raybert.train.pretraining_objective import PRETRAINING
from raybert.train.schedules import Schedule, phase_at
from raybert.train.step import even_out, train_step
from tests.train.fakes import FakeMicro, micro, model


def joined(parts: list[FakeMicro]) -> FakeMicro:
    """One micro batch of all sequences of several."""
    starts = np.cumsum([0, *(len(part.ids) for part in parts)])
    moved = [part.positions + start for part, start in zip(parts, starts, strict=False)]
    rest = ("ids", "lengths", "types", "labels", "pair_labels")
    arrays = {name: np.concatenate([getattr(part, name) for part in parts]) for name in rest}
    return FakeMicro(**arrays, positions=np.concatenate(moved))


def gradients(ours, micros, counts, **options):
    PRETRAINING.accumulate(ours, micros, counts, seed=1, step=0, **options)
    found = {name: p.grad.clone() for name, p in ours.named_parameters()}
    ours.zero_grad()
    return found


def test_one_batch_is_many_small_ones_is_two_workers():
    parts = [micro(seed, lengths) for seed, lengths in enumerate([(9, 4), (12,), (3, 3, 5), (30, 2)])]
    parts.append(micro(9, (6, 8), pairs=False))  # no pairs, and other numbers of predictions
    micros = list(enumerate(parts))
    counts, ours = PRETRAINING.count(micros), model(pairs=True)
    whole = gradients(ours, [(0, joined(parts))], counts)
    assert_close(gradients(ours, micros, counts), whole, atol=1e-6, rtol=1e-5)
    # two workers, whose gradients are added up; the second has a batch less
    shares = [even_out(micros[rank::2], 5, 2) for rank in range(2)]
    assert [len(share) for share in shares] == [3, 3]
    assert shares[1][2] is None
    added = [gradients(ours, share, counts) for share in shares]
    assert_close({n: added[0][n] + added[1][n] for n in whole}, whole, atol=1e-6, rtol=1e-5)
    # a mean of means would be something else
    means = [gradients(ours, [entry], PRETRAINING.count([entry])) for entry in micros]
    name = "plain.bert.encoder.layer.0.attention.self.value.weight"
    assert not torch.allclose(sum(m[name] for m in means) / 5, whole[name], atol=1e-4)


def test_dropout_does_not_depend_on_the_worker():
    micros = [(number, micro(number)) for number in range(4)]
    counts, ours = PRETRAINING.count(micros), model(pairs=True, dropout=0.3).train()
    whole = gradients(ours, micros, counts)
    other = gradients(ours, micros[::-1], counts)
    assert_close(other, whole, atol=1e-6, rtol=1e-5)
    PRETRAINING.accumulate(ours, micros, counts, seed=1, step=1)
    name, p = next((n, p) for n, p in ours.named_parameters() if "value.weight" in n)
    assert not torch.allclose(p.grad, whole[name], atol=1e-4)


def test_figures_are_means_over_the_batch():
    micros = [(number, micro(number)) for number in range(3)]
    ours = model(pairs=True)
    found = train_step(ours, make_optimizer("adamw", ours), micros, lr=0.0, seed=0, step=0)
    again = train_step(
        ours, make_optimizer("adamw", ours), [(0, joined([m for _, m in micros]))], lr=0.0, seed=0, step=0
    )
    assert_close(found.as_dict(), again.as_dict(), atol=1e-5, rtol=1e-5)
    assert found.values["perplexity"] == pytest.approx(math.exp(found.values["mlm_loss"]))
    assert found.loss == pytest.approx(found.values["mlm_loss"] + found.values["pair_loss"])


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_learns(name):
    ours, micros = model(pairs=True), [(0, micro(0)), (1, micro(1))]
    optimizer = make_optimizer(name, ours)
    losses = [
        train_step(ours, optimizer, micros, lr=1e-2, seed=0, step=step, clip=1.0).loss for step in range(30)
    ]
    assert losses[-1] < losses[0] / 3


def test_a_gradient_that_is_not_finite_changes_nothing():
    ours = model()
    ours.plain.cls.predictions.bias.data[0] = float("inf")
    before = {name: p.detach().clone() for name, p in ours.named_parameters()}
    found = train_step(ours, make_optimizer("adamw", ours), [(0, micro(0))], lr=1.0, seed=0, step=0)
    assert not math.isfinite(found.loss)
    assert_close(dict(ours.named_parameters()), before, equal_nan=True)


def test_biases_and_norms_are_not_decayed():
    ours = model(pairs=True)
    names = {id(p): name for name, p in ours.named_parameters()}
    decayed, rest = ([names[id(p)] for p in group["params"]] for group in parameter_groups(ours, 0.01))
    assert all(name.endswith(".weight") and "LayerNorm" not in name for name in decayed)
    assert all(name.endswith("bias") or "LayerNorm" in name for name in rest)
    assert len(decayed) + len(rest) == len(names)


def test_lamb_follows_the_paper():
    rng = np.random.default_rng(0)
    start = {"matrix": rng.normal(size=(4, 3)), "zero": np.zeros(5), "bias": rng.normal(size=3)}
    decays = {"matrix": 0.1, "zero": 0.1, "bias": 0.0}
    params = {name: torch.nn.Parameter(torch.tensor(value)) for name, value in start.items()}
    groups = [{"params": [p], "weight_decay": decays[name]} for name, p in params.items()]
    optimizer = Lamb(groups, lr=0.05)
    w, m, v = dict(start), dict.fromkeys(start, 0.0), dict.fromkeys(start, 0.0)
    for t in range(1, 5):
        for name, p in params.items():
            g = rng.normal(size=start[name].shape)
            p.grad = torch.tensor(g)
            m[name] = 0.9 * m[name] + 0.1 * g
            v[name] = 0.999 * v[name] + 0.001 * g * g
            u = m[name] / (1 - 0.9**t) / (np.sqrt(v[name] / (1 - 0.999**t)) + 1e-6) + decays[name] * w[name]
            ratio = np.linalg.norm(w[name]) / np.linalg.norm(u) if decays[name] and w[name].any() else 1.0
            w[name] = w[name] - 0.05 * ratio * u
        optimizer.step()
        assert_close({n: p.data for n, p in params.items()}, {n: torch.tensor(x) for n, x in w.items()})


def test_adamw_follows_the_paper():
    p = torch.nn.Parameter(torch.tensor([[1.0, -2.0]], dtype=torch.float64))
    holder = torch.nn.ParameterList([p])
    optimizer = make_optimizer("adamw", holder, lr=0.1, weight_decay=0.01)
    p.grad = torch.tensor([[0.5, 4.0]], dtype=torch.float64)
    optimizer.step()  # the first update is the sign of the gradient, and the decay
    expected = torch.tensor([[1.0, -2.0]], dtype=torch.float64) * (1 - 0.001) - 0.1
    assert_close(p.data, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Schedule("linear", 10, 1.0, warmup=2), {0: 0.5, 1: 1.0, 2: 1.0, 6: 0.5, 9: 0.125, 10: 0.0}),
        (Schedule("linear", 10, 2.0, warmup=2, final=0.5), {1: 2.0, 6: 1.5, 10: 1.0}),
        (Schedule("cosine", 10, 1.0, warmup=2), {2: 1.0, 4: (1 + math.sqrt(0.5)) / 2, 6: 0.5, 10: 0.0}),
        (
            Schedule("wsd", 20, 1.0, warmup=2, decay=4),
            {2: 1.0, 16: 1.0, 17: 0.5, 19: 1 - math.sqrt(0.75), 20: 0.0},
        ),
        (Schedule("wsd", 20, 1.0, decay=4, final=0.2), {17: 0.2 + 0.8 * 0.5, 20: 0.2}),
        (Schedule("constant", 10, 3.0, warmup=3), {0: 1.0, 2: 3.0, 9: 3.0, 99: 3.0}),
    ],
)
def test_schedules(schedule, expected):
    assert {step: schedule(step) for step in expected} == pytest.approx(expected)


def test_phases():
    assert [phase_at([3, 2], step) for step in range(6)] == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]


def test_refuses_what_deepspeed_cannot_do(monkeypatch):
    plain = {"optimizer": "adamw", "zero": 2, "offload": False, "precision": "bfloat16"}
    refuse_combinations(**plain)
    monkeypatch.setattr("shutil.which", lambda name: None)
    for change, words in [
        ({"optimizer": "lamb"}, "whole tensor"),
        ({"zero": 0, "precision": "float16"}, "loss scaling"),
        ({"offload": True}, r"g\+\+ and ninja"),
        ({"zero": 0, "offload": True}, "train.zero=2"),
    ]:
        with pytest.raises(ValueError, match=words):
            refuse_combinations(**{**plain, **change})
