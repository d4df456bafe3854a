"""One step of a contrastive batch: one process, two processes, GradCache and every ZeRO stage have one gradient, with
dropout on."""

import pytest
import torch

from raybert.tasks.contrastive_model import Members, Ranking, ranking_sums
from raybert.tasks.similarity_model import cosent_sums
from raybert.train.packed import pack
from raybert.train.step import seed_dropout
from tests.train.lever_fakes import largest_difference
from tests.train.ranking_ranks import ROWS, SEED, SETTINGS, STEP, gradients, micros_of, model_of, objective_of
from tests.train.ranks import run

TASKS = sorted(SETTINGS)


@pytest.fixture(scope="module")
def whole():
    """The loss and the gradient of every task by one backward pass over four pieces, without the objective."""
    out = {}
    for task in TASKS:
        model, vectors, batches = model_of(task).train(), [], []
        for number, micro in micros_of(task, 0, 1, 4):
            batches.append(pack(micro))
            seed_dropout(SEED, STEP, number)
            vectors.append(model(batches[-1]))
        targets = {name: torch.cat([b.targets[name] for b in batches]) for name in batches[0].targets}
        if task == "retrieval":
            members = Members(*(targets[name] for name in ("example", "role", "key")))
            sums = ranking_sums(torch.cat(vectors), members, Ranking(20.0, True, (32, 8)))
            loss, out["accuracy"] = sums.loss_sum / ROWS, sums.correct.item() / ROWS
        else:
            loss = cosent_sums(torch.cat(vectors), targets, 20.0, 1)
        loss.backward()
        found = {
            n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in model.named_parameters()
        }
        out[task] = loss.item(), found
    return out


@pytest.mark.parametrize("cache", [True, False, "auto"])
@pytest.mark.parametrize("task", TASKS)
def test_grad_cache_in_one_process_is_the_whole_gradient(whole, task, cache):
    figures, found = gradients(task, cache, 4)
    assert figures["loss"] == pytest.approx(whole[task][0], rel=1e-6)
    assert largest_difference(found, whole[task][1]) < 1e-5
    assert largest_difference({n: torch.zeros_like(x) for n, x in found.items()}, whole[task][1]) > 0.5


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("task", TASKS)
def test_a_batch_of_nothing_has_no_gradient(task, cache):
    """As an optimizer's state is made before a checkpoint is read."""
    model, objective = model_of(task).train(), objective_of(task, cache)
    totals = objective.accumulate(model, [(0, objective.empty)], objective.count([]), seed=SEED, step=STEP)
    assert not totals.any()
    made = [p.grad for p in model.parameters() if p.grad is not None]
    assert made
    assert not any(gradient.any() for gradient in made)


def test_the_accuracy_is_that_of_all_queries(whole):
    figures, _ = gradients("retrieval", "auto", 4)
    assert figures.keys() == {"loss", "accuracy", "tokens"}
    assert figures["accuracy"] == whole["accuracy"] > 0


def test_dropout_is_on():
    model = model_of("retrieval").train()
    batch = pack(micros_of("retrieval", 0, 1, 1)[0][1])
    assert not torch.allclose(model(batch), model(batch))


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranking")
    return folder, run(2, folder, "ranking")


CASES = ("graphs", "cached", "zero0", "zero1", "zero2", "zero3", "zero3-graphs")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("task", TASKS)
def test_two_processes_have_the_whole_gradient(two, whole, task, case):
    folder, figures = two
    loss, expected = whole[task]
    assert figures[f"{task}-{case}"]["loss"] == pytest.approx(loss, rel=1e-6)
    found = torch.load(folder / f"{task}-{case}.pt", weights_only=True)
    # a gradient read off an update has the rounding of the weights
    assert largest_difference(found, expected) < (1e-3 if "zero" in case else 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
def test_one_piece_a_rank_needs_no_cache(two, task):
    folder, _ = two
    _, expected = gradients(task, False, 2)
    found = torch.load(folder / f"{task}-zero2-one.pt", weights_only=True)
    assert largest_difference(found, expected) < 1e-3
