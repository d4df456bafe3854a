"""Packed logits are those of every text alone through plain transformers; losses follow their formulas."""

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from transformers import AutoModelForSequenceClassification

from raybert.config.finetune import ClassificationSettings, FinetuneModelSettings, RegularizeSettings
from raybert.tasks import classify_model
from raybert.tasks.classify_model import Model, configure
from raybert.tasks.examples import IGNORED
from raybert.train.example_stream import nothing
from raybert.train.packed import pack
from raybert.train.task_models import make_plain
from raybert.train.task_objective import TaskObjective
from tests.encoder.tiny import tiny_model
from tests.train.fakes import config
from tests.train.task_fakes import examples_of, micro_of

LABELS = ["a", "b", "c"]


def made(family="bert", kind="single", dropout=0.0, regularize=None, **options):
    settings = ClassificationSettings(kind=kind)
    shape = config(family, dropout=dropout)
    configure(shape, LABELS if kind != "regression" else ["LABEL_0"], settings)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        plain = AutoModelForSequenceClassification.from_config(shape)
    return Model(plain, settings, regularize, **options)


def alone(ours, micro):
    """The logits of each sequence by itself."""
    plain = ours.plain
    plain.base_model._forward_hooks.clear()
    plain.set_attn_implementation("eager")
    found, types = [], micro.types
    for a, b in pairwise(np.concatenate([[0], np.cumsum(micro.lengths)])):
        given = {"input_ids": torch.tensor(micro.ids[a:b], dtype=torch.int64)[None]}
        if plain.config.model_type not in ("distilbert", "mpnet"):
            given["token_type_ids"] = torch.tensor(types[a:b])[None]
        found.append(plain(**given).logits[0])
    return torch.stack(found)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "mpnet", "albert"])
def test_logits_are_those_of_every_text_alone(family, padded):
    micro = micro_of(0, pairs=family not in ("roberta", "mpnet"))
    ours = made(family, padded=padded).eval()
    assert ours.padded == (padded or family in ("mpnet", "albert"))
    with torch.no_grad():
        found = ours.logits(pack(micro))
        expected = alone(ours, micro)
    order = np.argsort(micro.lengths, kind="stable")
    assert_close(found, expected[torch.tensor(order)], atol=1e-5, rtol=0)
    assert found.std() > 0.01  # the texts do not look alike


def test_a_loss_is_the_sum_over_its_rows():
    micro, ours = micro_of(1), made().eval()
    batch = pack(micro)
    logits, labels = ours.logits(batch), batch.targets["labels"]
    assert_close(ours(batch).loss, F.cross_entropy(logits, labels, reduction="sum"))
    assert ours(batch).accuracy == (logits.argmax(1) == labels).sum()
    smooth = made(regularize=RegularizeSettings(label_smoothing=0.2)).train()
    assert_close(smooth(batch).loss, F.cross_entropy(logits, labels, reduction="sum", label_smoothing=0.2))
    assert_close(smooth.eval()(batch).loss, F.cross_entropy(logits, labels, reduction="sum"))
    weight = torch.tensor([0.5, 2.0, 1.0])[labels]
    weighted = micro_of(1, weight=np.array([0.5, 2.0, 1.0]))
    assert_close(
        ours(pack(weighted)).loss, (weight * F.cross_entropy(logits, labels, reduction="none")).sum()
    )


def test_losses_of_many_labels_and_of_numbers_are_those_of_transformers():
    for kind in ("multi", "regression"):
        micro, ours = micro_of(2, kind=kind), made(kind=kind).eval()
        batch = pack(micro)
        logits, labels = ours.logits(batch), batch.targets["labels"]
        each = (
            F.binary_cross_entropy_with_logits(logits, labels)
            if kind == "multi"
            else F.mse_loss(logits[:, 0], labels)
        )
        assert_close(ours(batch).loss / len(labels), each)


def test_r_drop_is_two_passes():
    micro = micro_of(3)
    ours = made(dropout=0.3, regularize=RegularizeSettings(r_drop=2.0)).train()
    batch = pack(micro)
    torch.manual_seed(5)
    found = ours(batch).loss
    torch.manual_seed(5)
    first, second = ours.logits(batch), ours.logits(batch)
    p, q = first.log_softmax(1), second.log_softmax(1)
    labels = batch.targets["labels"]
    both = (
        F.cross_entropy(first, labels, reduction="sum") + F.cross_entropy(second, labels, reduction="sum")
    ) / 2
    kl = F.kl_div(q, p, reduction="sum", log_target=True) + F.kl_div(p, q, reduction="sum", log_target=True)
    assert_close(found, both + 2.0 * kl / 2)
    assert (first - second).abs().max() > 0.01


@pytest.mark.parametrize("padded", [False, True])
def test_a_change_of_the_embeddings_reaches_the_loss(padded):
    micro, ours = micro_of(4), made(padded=padded).eval()
    batch = pack(micro)
    n, longest = len(micro.lengths), int(micro.lengths.max())
    shape = (n, longest, 32) if padded else (1, len(micro.ids), 32)
    delta = torch.zeros(shape, requires_grad=True)
    assert_close(ours(batch, delta).loss, ours(batch).loss)
    (gradient,) = torch.autograd.grad(ours(batch, delta).loss, delta)
    with torch.no_grad():
        step = 1e-3 * gradient / gradient.norm()
        change = ours(batch, step).loss - ours(batch, -step).loss
    assert_close(change, 2e-3 * gradient.norm(), rtol=0.05, atol=1e-5)


def test_nothing_to_learn_has_no_gradient():
    for kind in ("single", "multi", "regression"):
        ours = made(kind=kind)
        empty = nothing(examples_of(0, kind=kind))
        assert Model.targets(empty) == 0
        ours(pack(empty)).loss.backward()
        assert all(p.grad is None or not p.grad.any() for p in ours.parameters())


@pytest.mark.parametrize("name", ["none", "fgm", "pgd", "freelb"])
def test_gradients_do_not_depend_on_the_batches(name):
    from raybert.config.finetune import AdversarialSettings

    ours = made()
    given = {"init": 0} if name == "freelb" else {}  # a random start is another in other batches
    attack = None if name == "none" else AdversarialSettings(name=name, **given)
    objective = TaskObjective(
        Model.sums_type(ClassificationSettings()), Model.targets, nothing(examples_of(0)), attack
    )
    whole = micro_of(6)
    parts = [
        (i, type(whole)(whole.examples.take(rows))) for i, rows in enumerate(np.array_split(np.arange(5), 3))
    ]

    def gradients(micros):
        ours.zero_grad()
        objective.accumulate(ours, micros, objective.count(micros), seed=0, step=0)
        return {name: p.grad.clone() for name, p in ours.named_parameters() if p.grad is not None}

    assert_close(gradients([*parts, None]), gradients([(0, whole)]), atol=2e-5, rtol=1e-3)


def kl(p, q):
    return (p * (p.log() - q.log())).sum(-1)


@pytest.mark.parametrize("kind", ["single", "multi", "regression"])
def test_smart_is_the_formula(kind):
    """L(x) + weight / n * D(f(x), f(x + r)), and r the scaled ascent of D from normal noise; rows without truth are left out."""
    from raybert.config.finetune import AdversarialSettings
    from raybert.train.step import seed_dropout

    def divergence(a, b):
        if kind == "regression":
            return (a - b).square().mean(-1)
        p, q = (
            x.softmax(-1) if kind == "single" else torch.stack([x.sigmoid(), (-x).sigmoid()], -1)
            for x in (a, b)
        )
        found = kl(p, q) + kl(q, p)
        return found if kind == "single" else found.sum(-1)

    ours = made(kind=kind)
    s = AdversarialSettings(name="smart", epsilon=0.3, alpha=0.02, steps=2, init=0.05, weight=1.5)
    objective = TaskObjective(
        Model.sums_type(ClassificationSettings(kind=kind)),
        Model.targets,
        nothing(examples_of(0, kind=kind)),
        s,
    )
    micro = micro_of(6, kind=kind)
    micro.examples.targets["labels"][0] = IGNORED
    batch, count = pack(micro), len(micro.lengths) - 1
    asked = ours.asked(batch)
    objective.accumulate(ours, [(0, micro), None], objective.count([(0, micro)]), seed=0, step=0, scale=2.0)
    found = {name: p.grad.clone() for name, p in ours.named_parameters() if p.grad is not None}
    ours.zero_grad()
    seed_dropout(0, 0, 0)
    moved = s.init * torch.randn(1, len(micro.ids), 32)
    for _ in range(s.steps):
        moved = moved.detach().requires_grad_()
        loss = divergence(ours.logits(batch).detach(), ours.logits(batch, moved))[asked].sum()
        moved = moved + s.alpha * torch.autograd.grad(loss, moved)[0]
        moved = s.epsilon * moved / (moved.abs().amax(-1, keepdim=True) + 1e-6)
    smooth = divergence(ours.logits(batch), ours.logits(batch, moved.detach()))[asked].sum()
    plain = ours(batch).loss
    assert 0.01 * plain.item() < smooth.item()
    (2 / count * (plain + s.weight * smooth)).backward()
    expected = {name: p.grad for name, p in ours.named_parameters() if p.grad is not None}
    assert_close(found, expected, atol=1e-4, rtol=1e-3)


def test_a_head_is_new_unless_it_is_for_the_same_labels(tmp_path):
    folder = tiny_model(tmp_path / "base", st=True)
    settings = FinetuneModelSettings(name=str(folder))
    torch.manual_seed(1)
    first = make_plain(settings, classify_model, LABELS, ClassificationSettings())
    assert first.config.label2id == {"a": 0, "b": 1, "c": 2}
    first.save_pretrained(tmp_path / "tuned")
    tuned = FinetuneModelSettings(name=str(tmp_path / "tuned"), dropout=0.25, attention_dropout=0.0)
    again = make_plain(tuned, classify_model, LABELS, ClassificationSettings())
    assert_close(again.state_dict(), first.state_dict())
    assert again.config.hidden_dropout_prob == 0.25
    assert again.config.attention_probs_dropout_prob == 0.0
    for labels in (["x", "y", "z"], ["x", "y"]):
        other = make_plain(tuned, classify_model, labels, ClassificationSettings())
        assert_close(other.base_model.state_dict(), first.base_model.state_dict())
        assert other.classifier.weight.shape[0] == len(labels)
        assert not torch.equal(other.classifier.weight[0], first.classifier.weight[0])
