"""Packed tags are those of every text alone through plain transformers; the loss is transformers' own."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from raybert.config.finetune import RegularizeSettings
from raybert.config.tasks import EntitiesSettings
from raybert.tasks import entities, entities_model
from raybert.tasks.entities_model import Model
from raybert.tasks.examples import IGNORED, Lists
from raybert.train.example_stream import ExampleMicro, nothing
from raybert.train.packed import pack
from tests.tasks import model_fakes as fakes
from tests.tasks.toys import tokenizer

SETTINGS = EntitiesSettings()
TAGS = ["O", "B-LOC", "I-LOC"]


def examples_of(seed=0, pairs=False):
    found = fakes.sequences(seed, pairs=pairs)
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, len(found.ids.values))
    labels[rng.random(len(labels)) < 0.4] = IGNORED
    return replace(found, targets={"labels": Lists(labels, found.ids.offsets)})


def made(family="bert", regularize=None, dropout=0.0, **options):
    model = fakes.plain(entities_model, TAGS, SETTINGS, family, dropout=dropout)
    return Model(model, SETTINGS, regularize, **options)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_logits_and_loss_are_those_of_every_text_alone(family, padded):
    examples, ours = examples_of(pairs=family == "bert"), made(family, padded=padded).eval()
    plain = fakes.plain(entities_model, TAGS, SETTINGS, family).eval()
    labels = torch.tensor(examples.targets["labels"].values)
    with torch.no_grad():
        found, outputs = ours(pack(ExampleMicro(examples)), outputs=True)
        each, losses = [], []
        for given, own in zip(
            fakes.alone(plain, examples), labels.split(examples.ids.lengths.tolist()), strict=True
        ):
            answer = plain(**given, labels=own[None])
            each.append(answer.logits[0])
            losses.append(answer.loss * (own != IGNORED).sum())
    assert_close(outputs["logits"], torch.cat(each), atol=1e-5, rtol=0)
    assert_close(found.loss, torch.stack(losses).sum(), atol=1e-5, rtol=1e-5)
    assert found.accuracy == (torch.cat(each).argmax(1) == labels).sum()
    assert Model.targets(ExampleMicro(examples)) == (labels != IGNORED).sum()
    assert torch.cat(each).std() > 0.01


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_packed_gradients_are_padded_ones(family):
    batch = pack(ExampleMicro(examples_of(1)))
    packed, padded = (fakes.gradients(made(family, padded=p), batch) for p in (False, True))
    assert_close(packed, padded, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("padded", [False, True])
def test_a_change_of_the_embeddings_reaches_the_loss(padded):
    change, expected = fakes.change_of_loss(made(padded=padded).eval(), examples_of(2))
    assert change == pytest.approx(expected, rel=0.05)


def test_smoothing_and_r_drop_follow_their_formulas():
    batch = pack(ExampleMicro(examples_of(3)))
    labels = batch.targets["labels"]
    smooth = made(regularize=RegularizeSettings(label_smoothing=0.2)).train()
    expected = F.cross_entropy(smooth.logits(batch), labels, reduction="sum", label_smoothing=0.2)
    assert_close(smooth(batch).loss, expected)
    ours = made(dropout=0.3, regularize=RegularizeSettings(r_drop=2.0)).train()
    torch.manual_seed(5)
    found = ours(batch).loss
    torch.manual_seed(5)
    logits = [ours.logits(batch)[labels != IGNORED] for _ in range(2)]
    p, q = (x.log_softmax(1) for x in logits)
    both = sum(F.cross_entropy(x, labels[labels != IGNORED], reduction="sum") for x in logits) / 2
    kl = F.kl_div(q, p, reduction="sum", log_target=True) + F.kl_div(p, q, reduction="sum", log_target=True)
    assert_close(found, both + 2.0 * kl / 2)
    assert (p - q).abs().max() > 0.01


def test_nothing_to_learn_has_no_gradient():
    empty = nothing(examples_of())
    assert Model.targets(empty) == 0
    assert not any(g.any() for g in fakes.gradients(made(), pack(empty)).values())


def test_it_learns_toy_rows():
    rng = np.random.default_rng(0)
    words, names = ["the", "fox", "in", "a", "child", "over"], ["paris", "york", "dog"]
    rows = []
    for _ in range(20):
        tokens = [*rng.choice(words, rng.integers(1, 6)), *rng.choice(names, 2)]
        at = int(rng.integers(0, len(tokens) - 1))
        tokens = [*tokens[-2:], *tokens[:-2]] if at % 2 else tokens
        tags, inside = [], False
        for token in tokens:
            tags.append(("I-LOC" if inside else "B-LOC") if token in names else "O")
            inside = token in names
        rows.append({"tokens": tokens, "tags": tags})
    table, tok = pa.Table.from_pylist(rows), tokenizer("wordpiece")
    labels = entities.find_labels(table, SETTINGS)
    examples, reasons = entities.prepare(table, tok, labels, SETTINGS, max_length=48)
    assert not any(reasons)
    examples = entities.with_truth(examples, table, labels, SETTINGS)
    plain = fakes.plain(entities_model, labels, SETTINGS, vocabulary=tok.get_vocab_size())
    figures = fakes.learnt(Model(plain, SETTINGS), entities, labels, SETTINGS, examples)
    assert figures[entities.main_figure(SETTINGS)] == 1
    assert figures["LOC_support"] == 20
