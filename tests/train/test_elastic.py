"""Elastic weights through the real step: over two ranks, against the formula; what an earlier task must be like."""

from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file

from raybert.train.example_stream import ExampleMicro
from raybert.train.packed import pack
from raybert.train.step import seed_dropout, train_step
from raybert.train.task_objective import TaskObjective
from tests.train.elastic_ranks import ROWS, SEED, STRENGTH, made, micros
from tests.train.ranks import run
from tests.train.task_fakes import examples_of


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("elastic")
    return folder, run(2, folder, "elastic")


def information() -> dict[str, torch.Tensor]:
    """The mean over rows of (d log p(y | row))^2, y drawn from p as the run draws it, one row at a time by transformers."""
    model, examples = made().eval(), examples_of(9, ROWS)
    plain = model.plain
    plain.base_model._forward_hooks.clear()
    plain.set_attn_implementation("eager")
    found = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    types = ExampleMicro(examples).types
    for number, (a, b) in enumerate(pairwise(examples.ids.offsets)):
        ids = torch.tensor(examples.ids.values[a:b], dtype=torch.int64)[None]
        logs = plain(input_ids=ids, token_type_ids=torch.tensor(types[a:b])[None]).logits.log_softmax(-1)
        seed_dropout(SEED, 0, number)
        generator = torch.Generator().manual_seed(torch.initial_seed())
        drawn = torch.multinomial(logs.exp().detach(), 1, generator=generator)
        model.zero_grad()
        logs[0, drawn[0, 0]].backward()
        for name, parameter in model.named_parameters():
            if parameter.grad is not None:
                found[name] += parameter.grad.square() / ROWS
    return found


@pytest.mark.parametrize("zero", [0, 2])
def test_two_ranks_find_the_information_of_the_formula(two, zero):
    kept = load_file(two[0] / f"run-{zero}" / "_raybert" / "ewc.safetensors")
    found = {key.removeprefix("fisher/"): value for key, value in kept.items() if key.startswith("fisher/")}
    torch.testing.assert_close(found, information(), atol=1e-6, rtol=1e-3)
    anchor = {key.removeprefix("anchor/"): value for key, value in kept.items() if key.startswith("anchor/")}
    torch.testing.assert_close(anchor, {name: p.detach() for name, p in made().named_parameters()})
    assert max(float(value.max()) for value in found.values()) > 1e-3


@pytest.mark.parametrize("zero", [0, 2])
def test_a_run_that_goes_on_reads_what_was_kept(two, zero):
    first, again = two[1][f"penalties-{zero}"]
    anchor, now = (dict(made(seed).named_parameters()) for seed in (0, 1))
    expected = sum(
        (STRENGTH / 2 * f * (now[name] - anchor[name]).square()).sum() for name, f in information().items()
    )
    assert first == again == pytest.approx(float(expected.detach()), rel=1e-3)


@pytest.mark.parametrize("zero", [0, 2])
def test_updates_of_two_ranks_are_those_of_the_formula(two, zero):
    model, info = made(1), information()
    anchor = {name: p.detach() for name, p in made().named_parameters()}

    class Formula(TaskObjective):
        def accumulate(self, *given, **named):
            totals = super().accumulate(*given, **named)
            terms = [
                (f * (p - anchor[name]).square()).sum()
                for (name, p), f in zip(model.named_parameters(), info.values(), strict=True)
            ]
            (STRENGTH / 2 * sum(terms)).backward()
            return totals

    from raybert.train.example_stream import nothing
    from raybert.train.optimizers import make_optimizer

    objective = Formula(model.sums_type(model._settings), model.targets, nothing(examples_of(0)))
    optimizer, start = make_optimizer("adamw", model), made(1)
    model.train()
    for step in range(2):
        train_step(model, optimizer, micros(step), lr=1e-2, seed=0, step=step, clip=1.0, objective=objective)
    found = load_file(two[0] / f"after-{zero}.safetensors")
    for name, parameter in model.plain.named_parameters():
        if torch.equal(parameter, start.plain.get_parameter(name)):
            continue
        torch.testing.assert_close(found[name], parameter.detach(), atol=2e-4, rtol=1e-3)


def test_information_is_of_the_targets_that_are_asked_of():
    """A row whose truth is not known adds nothing; the others count as if alone."""
    from raybert.tasks.examples import IGNORED

    model = made()
    examples = examples_of(9, ROWS)
    examples.targets["labels"][:] = IGNORED
    batch = pack(ExampleMicro(examples))
    assert len(model.logits(batch)[model.asked(batch)]) == 0
