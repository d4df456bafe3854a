"""Which parameters are frozen, and gradual unfreezing."""

import pytest
import torch

from raybert.train.freezing import depths, freeze, trainable_parameters, unfreeze_schedule
from raybert.train.layer_decay import decayed_groups
from tests.train.lever_fakes import FAMILIES, Classifier, batch, plain_model


def trained(model) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def layer_of(name: str) -> int | None:
    """The number in the name, for all families alike."""
    numbers = [part for part in name.split(".") if part.isdigit()]
    return int(numbers[0]) if numbers else None


def is_head(name: str) -> bool:
    return name.split(".")[0] in ("classifier", "pre_classifier", "head") or ".pooler." in name


@pytest.mark.parametrize("family", FAMILIES)
def test_lowest_layers(family):
    model = plain_model(family)
    every = trained(model)
    freeze(model, 1, embeddings=False)
    assert every - trained(model) == {name for name in every if layer_of(name) == 0}
    assert len(every - trained(model)) > 4


@pytest.mark.parametrize("family", [*FAMILIES, "albert"])
def test_embeddings_alone(family):
    model = plain_model(family)
    every = trained(model)
    freeze(model, 0, embeddings=True)
    frozen = every - trained(model)
    assert frozen == {name for name in every if "embeddings" in name or "relative_attention_bias" in name}


@pytest.mark.parametrize("family", [*FAMILIES, "albert"])
def test_all_but_the_head(family):
    model = plain_model(family)
    every = trained(model)
    freeze(model, "all", embeddings=False)
    assert trained(model) == {name for name in every if is_head(name)}
    assert any(name.startswith("classifier") for name in trained(model))


def test_shared_layers_are_refused():
    with pytest.raises(ValueError, match=r"^the layers of albert models share their weights"):
        freeze(plain_model("albert"), 1, embeddings=False)


@pytest.mark.parametrize("layers", [3, -1])
def test_as_many_layers_as_there_are(layers):
    with pytest.raises(ValueError, match=r"freeze.layers=-?\d, but the model has 2 layers"):
        freeze(plain_model(), layers, embeddings=False)


def test_depths_of_a_norm_after_the_layers():
    model = plain_model("modernbert")
    count, depth = depths(model)
    named = dict(model.named_parameters())
    assert count == 2
    assert depth[id(named["model.final_norm.weight"])] == 3
    assert depth[id(named["classifier.weight"])] == 4


def test_numbers_of_parameters():
    model = plain_model()
    every = sum(p.numel() for p in model.parameters())
    assert trainable_parameters(model) == (every, every)
    freeze(model, "all", embeddings=True)
    head = 32 * 32 + 32 + 3 * 32 + 3  # pooler and classifier
    assert trainable_parameters(model) == (head, every)


def test_unfreezing_goes_down_a_layer_at_a_time():
    factor = unfreeze_schedule(plain_model(), 10)
    opened = {depth: next(step for step in range(60) if factor(depth, step)) for depth in range(5)}
    assert opened == {4: 0, 3: 10, 2: 10, 1: 20, 0: 30}
    assert all(factor(depth, step) == 1.0 for depth in range(5) for step in range(30, 60))


def test_what_is_not_yet_trained_stays_to_the_bit():
    plain = plain_model(dropout=0.1)
    model, factor = Classifier(plain), unfreeze_schedule(plain, 2)
    optimizer = torch.optim.AdamW(decayed_groups(plain, 1.0, 0.1), lr=1e-3)
    names = {id(p): name for name, p in plain.named_parameters()}
    depth = {names[key]: at for key, at in depths(plain)[1].items()}
    start = {name: p.detach().clone() for name, p in plain.named_parameters()}
    for step in range(8):
        optimizer.zero_grad()
        model(batch(step)).loss_sum.backward()
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * group["lr_scale"] * factor(group["depth"], step)
        optimizer.step()
        moved = {depth[name] for name, p in plain.named_parameters() if not torch.equal(p, start[name])}
        assert moved == {0: {4}, 1: {2, 4}, 2: {1, 2, 4}, 3: {0, 1, 2, 4}}[step // 2]
