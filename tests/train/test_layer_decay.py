"""Learning rates by layer."""

import pytest
import torch

from raybert.train.freezing import freeze
from raybert.train.layer_decay import decayed_groups
from raybert.train.optimizers import parameter_groups
from tests.train.lever_fakes import FAMILIES, Classifier, batch, plain_model


def scales(model, decay: float) -> dict[str, float]:
    names = {id(p): name for name, p in model.named_parameters()}
    groups = decayed_groups(model, decay, 0.01)
    found = [(names[id(p)], group["lr_scale"]) for group in groups for p in group["params"]]
    assert len(dict(found)) == len(found)
    return dict(found)


def test_the_formula():
    found = scales(plain_model(num_hidden_layers=3), 0.8)
    expected = {
        "bert.embeddings.word_embeddings.weight": 0.8**5,
        "bert.embeddings.LayerNorm.bias": 0.8**5,
        "bert.encoder.layer.0.attention.self.query.weight": 0.8**4,
        "bert.encoder.layer.1.output.dense.bias": 0.8**3,
        "bert.encoder.layer.2.output.LayerNorm.weight": 0.8**2,
        "bert.pooler.dense.weight": 1.0,
        "classifier.bias": 1.0,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_once(family):
    model = plain_model(family)
    assert scales(model, 0.5).keys() == dict(model.named_parameters()).keys()
    assert set(scales(model, 0.5).values()) >= {1.0, 0.5**2, 0.5**3, 0.5**4}


def test_matrices_are_decayed_and_vectors_not():
    for group in decayed_groups(plain_model(), 0.9, 0.01):
        assert {p.ndim > 1 for p in group["params"]} == {group["weight_decay"] == 0.01}


def test_what_is_frozen_is_left_out():
    model = plain_model()
    freeze(model, 1, embeddings=True)
    assert scales(model, 0.9).keys() == {name for name, p in model.named_parameters() if p.requires_grad}


def updated(groups_of, decay_rate: float = 1.0) -> dict[str, torch.Tensor]:
    plain = plain_model(dropout=0.1)
    model = Classifier(plain)
    optimizer = torch.optim.AdamW(groups_of(plain), lr=1e-3)
    torch.manual_seed(0)
    for step in range(3):
        optimizer.zero_grad()
        model(batch(step)).loss_sum.backward()
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * group.get("lr_scale", 1.0)
        optimizer.step()
    return {name: p.detach() for name, p in plain.named_parameters()}


def test_without_decay_updates_are_those_of_the_plain_optimizer_to_the_bit():
    plain = updated(lambda model: parameter_groups(model, 0.01))
    same = updated(lambda model: decayed_groups(model, 1.0, 0.01))
    assert all(torch.equal(plain[name], same[name]) for name in plain)
    other = updated(lambda model: decayed_groups(model, 0.9, 0.01))
    assert not torch.equal(plain["bert.embeddings.LayerNorm.bias"], other["bert.embeddings.LayerNorm.bias"])


def test_shared_layers_are_refused():
    with pytest.raises(ValueError, match="share their weights"):
        decayed_groups(plain_model("albert"), 0.9, 0.01)
