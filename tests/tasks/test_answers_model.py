"""Packed answers are those of every row alone through plain transformers; the loss is transformers' own."""

from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from raybert.config.finetune import RegularizeSettings
from raybert.config.tasks import AnswersSettings
from raybert.tasks import answers, answers_model
from raybert.tasks.answers_model import Model, log_softmax_of_rows
from raybert.train.example_stream import ExampleMicro, nothing
from raybert.train.packed import pack
from tests.tasks import model_fakes as fakes
from tests.tasks.toys import tokenizer

SETTINGS = AnswersSettings(allow_unanswerable=True)
LABELS = answers.find_labels(pa.table({}), SETTINGS)


def examples_of(seed=0, pairs=False):
    found = fakes.sequences(seed, pairs=pairs)
    rng, lengths = np.random.default_rng(seed), found.ids.lengths
    starts = rng.integers(0, lengths)
    ends = rng.integers(starts, lengths)
    starts[1] = ends[1] = 0  # no answer
    return replace(found, targets={"starts": starts, "ends": ends})


def made(family="bert", regularize=None, dropout=0.0, **options):
    model = fakes.plain(answers_model, LABELS, SETTINGS, family, dropout=dropout)
    return Model(model, SETTINGS, regularize, **options)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_logits_and_loss_are_those_of_every_row_alone(family, padded):
    examples, ours = examples_of(pairs=family == "bert"), made(family, padded=padded).eval()
    plain = fakes.plain(answers_model, LABELS, SETTINGS, family).eval()
    places = torch.tensor(np.stack([examples.targets[name] for name in ("starts", "ends")], 1))
    with torch.no_grad():
        found, outputs = ours(pack(ExampleMicro(examples)), outputs=True)
        each, loss, right = [], 0.0, 0
        for given, own in zip(fakes.alone(plain, examples), places, strict=True):
            answer = plain(**given, start_positions=own[:1], end_positions=own[1:])
            each.append(torch.stack([answer.start_logits[0], answer.end_logits[0]], 1))
            loss += answer.loss
            right += int((each[-1].argmax(0) == own).all())
    assert_close(outputs["logits"], torch.cat(each), atol=1e-5, rtol=0)
    assert_close(found.loss, loss, atol=1e-5, rtol=1e-5)
    assert found.accuracy == right
    assert Model.targets(ExampleMicro(examples)) == len(examples)
    assert torch.cat(each).std() > 0.01


def test_the_softmax_is_over_the_tokens_of_a_row():
    logits, lengths = torch.randn(10, 2), [1, 3, 6]
    logs, inside = log_softmax_of_rows(logits, lengths)
    for row, own in enumerate(logits.split(lengths)):
        assert_close(logs[row, : len(own)], own.log_softmax(0))
        assert not logs[row, len(own) :].any()
        assert inside[row, :, 0].tolist() == [k < len(own) for k in range(6)]


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
    examples = examples_of(3)
    batch, lengths = pack(ExampleMicro(examples)), examples.ids.lengths.tolist()
    places = torch.stack([batch.targets["starts"], batch.targets["ends"]], 1)
    smooth = made(regularize=RegularizeSettings(label_smoothing=0.2)).train()

    def cross_entropy(logits, smoothing=0.0):
        each = [
            F.cross_entropy(own.T, place, label_smoothing=smoothing)
            for own, place in zip(logits.split(lengths), places, strict=True)
        ]
        return torch.stack(each).sum()

    assert_close(smooth(batch).loss, cross_entropy(smooth.logits(batch), 0.2))
    ours = made(dropout=0.3, regularize=RegularizeSettings(r_drop=2.0)).train()
    torch.manual_seed(5)
    found = ours(batch).loss
    torch.manual_seed(5)
    first, second = ours.logits(batch), ours.logits(batch)
    kl = 0.0
    for a, b in zip(first.split(lengths), second.split(lengths), strict=True):
        p, q = a.log_softmax(0), b.log_softmax(0)
        kl += ((p.exp() * (p - q)).sum() + (q.exp() * (q - p)).sum()) / 2  # mean of start and end
    assert_close(found, (cross_entropy(first) + cross_entropy(second)) / 2 + 2.0 * kl / 2)
    assert (first - second).abs().max() > 0.01


def test_nothing_to_learn_has_no_gradient():
    empty = nothing(examples_of())
    assert Model.targets(empty) == 0
    assert not any(g.any() for g in fakes.gradients(made(), pack(empty)).values())


def test_it_learns_toy_rows():
    rng, rows = np.random.default_rng(0), []
    for n in range(20):
        words = [*rng.permutation(["the", "quick", "fox", "over", "child"])]
        place = str(rng.choice(["paris", "york"]))
        asked = "where"
        if n % 5:
            words.insert(int(rng.integers(0, 6)), place)
        context = " ".join(words)
        answer = place if n % 5 else None
        start = context.index(place) if n % 5 else None
        rows.append({"question": asked, "context": context, "answer": answer, "answer_start": start})
    table, tok = pa.Table.from_pylist(rows), tokenizer("wordpiece")
    examples, reasons = answers.prepare(table, tok, LABELS, SETTINGS, max_length=48)
    assert not any(reasons)
    examples = answers.with_truth(examples, table, LABELS, SETTINGS)
    plain = fakes.plain(answers_model, LABELS, SETTINGS, vocabulary=tok.get_vocab_size())
    figures = fakes.learnt(Model(plain, SETTINGS), answers, LABELS, SETTINGS, examples)
    assert figures[answers.main_figure(SETTINGS)] == 1
    assert (figures["has_answer_support"], figures["no_answer_support"]) == (16, 4)
