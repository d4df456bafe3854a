"""One gradient for one process, two processes and any number of chunks, with dropout on."""

import pytest
import torch

from raybert.train.grad_cache import RandomState, grad_cache
from raybert.train.step import seed_dropout
from tests.train import lever_ranks
from tests.train.lever_fakes import gradients, largest_difference
from tests.train.lever_ranks import contrastive_chunks, contrastive_model, embed_with, share_of


@pytest.fixture(scope="module")
def whole():
    """The gradient of the loss over the graphs of all chunks together."""
    model = contrastive_model()
    embed, chunks, vectors = embed_with(model), contrastive_chunks(), []
    for number, chunk in enumerate(chunks):
        seed_dropout(7, 0, number)
        vectors.append(embed(chunk))
    loss = share_of(chunks)(torch.cat(vectors))
    loss.backward()
    return float(loss.detach()), gradients(model)


def test_dropout_is_on():
    model = contrastive_model()
    embed, chunk = embed_with(model), contrastive_chunks()[0]
    assert not torch.allclose(embed(chunk), embed(chunk))


def test_grad_cache_is_the_whole_gradient(whole):
    model, chunks = contrastive_model(), contrastive_chunks()
    loss = grad_cache(
        embed_with(model), chunks, share_of(chunks), seed=lambda number: seed_dropout(7, 0, number)
    )
    assert float(loss) == pytest.approx(whole[0], rel=1e-6)
    assert largest_difference(gradients(model), whole[1]) < 1e-5


def test_without_seeds_the_random_numbers_come_again():
    """Then dropout is that of one pass over the chunks, one after the other."""
    chunks, model = contrastive_chunks(), contrastive_model()
    torch.manual_seed(1)
    embed = embed_with(model)
    loss = share_of(chunks)(torch.cat([embed(chunk) for chunk in chunks]))
    loss.backward()
    after, expected = torch.rand(3), gradients(model)
    model.zero_grad()
    torch.manual_seed(1)
    found = grad_cache(embed, chunks, share_of(chunks))
    assert float(found) == pytest.approx(float(loss.detach()), rel=1e-6)
    assert largest_difference(gradients(model), expected) < 1e-5
    assert torch.equal(torch.rand(3), after)  # the second pass leaves no trace


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (2, 3), (5,)])
def test_any_number_of_chunks(sizes):
    """Without dropout, where chunks of any size are the same model."""
    model = contrastive_model(dropout=0.0)
    chunks, embed = contrastive_chunks(), embed_with(model)
    share_of(chunks)(torch.cat([embed(chunk) for chunk in chunks])).backward()
    expected = gradients(model)
    model.zero_grad()
    groups = [chunks[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(len(sizes))]
    grad_cache(lambda group: torch.cat([embed(chunk) for chunk in group]), groups, share_of(chunks))
    assert largest_difference(gradients(model), expected) < 1e-5


def test_the_random_state_comes_back():
    state = RandomState()
    first = torch.rand(4)
    torch.manual_seed(99)
    state.restore()
    assert torch.equal(torch.rand(4), first)


@pytest.mark.slow
@pytest.mark.parametrize("zero", ["none", "0", "2", "3"])
def test_two_processes_have_the_whole_gradient(ranks, whole, zero):
    """Without DeepSpeed the sum of the ranks' gradients; with it, the update by plain descent."""
    loss, found = ranks[f"loss-{zero}"], ranks[f"gradients-{zero}"]
    assert float(loss) == pytest.approx(whole[0], rel=1e-6)
    # a gradient read off an update has the rounding of the weights
    assert largest_difference(found, whole[1]) < (1e-5 if zero == "none" else 1e-3)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return lever_ranks.run(tmp_path_factory.mktemp("contrastive"), "contrastive")
