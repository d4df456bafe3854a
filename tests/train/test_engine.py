"""Real DeepSpeed on gloo, without a compiler: every ZeRO stage computes the same, any world goes on from any checkpoint."""

import pytest
from torch.testing import assert_close

from raybert.train.optimizers import make_optimizer
from raybert.train.step import train_step
from tests.train.fakes import model
from tests.train.ranks import SEED, STEPS, batches, run

STAGES = (0, 1, 2, 3)


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="session")
def two(folder):
    """What two processes found."""
    return run(2, folder, "stages")


def train_plainly(lr: float, name: str = "adamw"):
    """Losses and the last gradient's norm of one process with neither Ray nor DeepSpeed."""
    ours = model(pairs=True, dropout=0.1).train()
    optimizer = make_optimizer(name, ours)
    steps = range(STEPS)
    found = [train_step(ours, optimizer, batches(s), lr=lr, seed=SEED, step=s, clip=1.0) for s in steps]
    return [figures.loss for figures in found], found[-1].grad_norm


@pytest.fixture(scope="session")
def plain():
    return train_plainly(3e-3)


@pytest.mark.parametrize("zero", STAGES)
def test_every_stage_computes_what_one_process_does(two, plain, zero):
    losses, norm = plain
    assert_close(two[f"zero{zero}"], losses, atol=1e-4, rtol=0)
    assert two[f"norm{zero}"] == pytest.approx(norm, rel=1e-3)
    still, _ = train_plainly(0.0)
    assert abs(still[-1] - losses[-1]) > 0.01  # the updates matter: a hundred times the tolerance


def test_lamb_without_zero_is_lamb(two):
    assert_close(two["lamb"], train_plainly(3e-3, "lamb")[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("zero", STAGES)
def test_bfloat16_is_near(two, plain, zero):
    assert_close(two[f"bfloat16-{zero}"], plain[0], atol=0.05, rtol=0)


def test_stages_evaluate_alike(two):
    assert_close([two[f"evaluate{zero}"] for zero in STAGES], [two["evaluate0"]] * 4, atol=1e-4, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 3])
def test_goes_on_with_another_world_and_stage(two, folder, world):
    found = run(world, folder, "resume")
    for was, zero in [(0, 2), (1, 3), (2, 1), (3, 0), (2, 2)]:
        assert_close(found[f"{was}-{zero}-float32"], two[f"zero{was}"][3:], atol=1e-4, rtol=0)
    assert_close(found["2-1-bfloat16"], two["zero2"][3:], atol=0.05, rtol=0)
    same = [value for key, value in found.items() if key.startswith("same")]
    assert same == [True] * 6
