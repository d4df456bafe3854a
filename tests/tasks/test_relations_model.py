"""Packed relations are those of every row alone; the head reads the start markers; the folder stays a plain one."""

import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch.testing import assert_close
from transformers import AutoModel, AutoTokenizer

from raybert.config.finetune import FinetuneModelSettings, RegularizeSettings
from raybert.config.tasks import RelationsSettings
from raybert.tasks import relations, relations_model
from raybert.tasks.relations_model import AUTO, Model
from raybert.train.example_stream import ExampleMicro, nothing
from raybert.train.freezing import depths, head_parameters
from raybert.train.packed import pack
from raybert.train.task_models import make_plain
from tests.encoder.tiny import tiny_model
from tests.tasks import model_fakes as fakes
from tests.tasks.toys import tokenizer

SETTINGS = RelationsSettings()
LABELS = ["Cause(e1,e2)", "Cause(e2,e1)", "Other"]


def examples_of(seed=0, pairs=False):
    found = fakes.sequences(seed, pairs=pairs)
    rng, lengths = np.random.default_rng(seed), found.ids.lengths
    places = np.stack([rng.permutation(length)[:2] for length in lengths])
    targets = {"first": places[:, 0], "second": places[:, 1], "labels": rng.integers(0, 3, len(found))}
    return replace(found, targets=targets)


def made(family="bert", regularize=None, dropout=0.0, **options):
    model = fakes.plain(relations_model, LABELS, SETTINGS, family, dropout=dropout)
    return Model(model, SETTINGS, regularize, **options)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert", "electra", "mpnet", "albert"])
def test_logits_are_the_classifier_of_both_start_markers_alone(family, padded, tmp_path):
    examples, ours = examples_of(pairs=family == "bert"), made(family, padded=padded).eval()
    ours.plain.save_pretrained(tmp_path)
    plain = AutoModel.from_pretrained(tmp_path).eval()
    each = []
    with torch.no_grad():
        found, outputs = ours(pack(ExampleMicro(examples)), outputs=True)
        for row, given in enumerate(fakes.alone(plain, examples)):
            if family in ("distilbert", "mpnet"):
                del given["token_type_ids"]
            hidden = plain(**given).last_hidden_state[0]
            places = [examples.targets[name][row] for name in ("first", "second")]
            each.append(ours.plain.classifier(torch.cat([hidden[place] for place in places])))
    assert_close(outputs["logits"], torch.stack(each), atol=1e-5, rtol=0)
    labels = torch.tensor(examples.targets["labels"])
    assert_close(found.loss, F.cross_entropy(torch.stack(each), labels, reduction="sum"))
    assert found.accuracy == (torch.stack(each).argmax(1) == labels).sum()
    assert torch.stack(each).std() > 0.01


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_packed_gradients_are_padded_ones(family):
    batch = pack(ExampleMicro(examples_of(1)))
    packed, padded = (fakes.gradients(made(family, padded=p), batch) for p in (False, True))
    assert_close(packed, padded, atol=1e-5, rtol=1e-4)
    assert packed["plain.classifier.weight"].abs().sum() > 0


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
    logits = [ours.logits(batch) for _ in range(2)]
    p, q = (x.log_softmax(1) for x in logits)
    both = sum(F.cross_entropy(x, labels, reduction="sum") for x in logits) / 2
    kl = F.kl_div(q, p, reduction="sum", log_target=True) + F.kl_div(p, q, reduction="sum", log_target=True)
    assert_close(found, both + 2.0 * kl / 2)


def test_nothing_to_learn_has_no_gradient():
    empty = nothing(examples_of())
    assert Model.targets(empty) == 0
    assert not any(g.any() for g in fakes.gradients(made(), pack(empty)).values())


def test_the_head_lies_above_the_layers():
    plain = made().plain
    names = {id(p): name for name, p in plain.named_parameters()}
    assert {names[id(p)] for p in head_parameters(plain)} == {"classifier.weight", "classifier.bias"}
    count, found = depths(plain)
    assert (count, found[id(plain.classifier.weight)]) == (2, 4)


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_a_finished_folder_is_a_plain_one_that_is_gone_on_with(family, tmp_path):
    folder = tiny_model(tmp_path / "base", family, st=False)
    tok = Tokenizer.from_file(str(folder / "tokenizer.json"))
    size = tok.get_vocab_size()
    ids = relations.add_markers(tok, SETTINGS)
    given = {"task": relations_model, "labels": LABELS, "task_settings": SETTINGS, "vocabulary": size + 4}
    torch.manual_seed(1)
    first = make_plain(FinetuneModelSettings(name=str(folder)), **given)
    base = AutoModel.from_pretrained(folder, add_pooling_layer=False)
    assert first.config.vocab_size == first.get_input_embeddings().num_embeddings == size + 4
    words = first.get_input_embeddings().weight
    assert_close(words[:size], base.get_input_embeddings().weight)
    assert len(torch.unique(words[ids], dim=0)) == 4
    first.save_pretrained(tmp_path / "tuned")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "tuned" / name).write_bytes((folder / name).read_bytes())
    tok.save(str(tmp_path / "tuned" / "tokenizer.json"))
    body = AutoModel.from_pretrained(tmp_path / "tuned", add_pooling_layer=False)
    assert_close(body.state_dict(), first.base_model.state_dict())
    found = AutoTokenizer.from_pretrained(tmp_path / "tuned")("[E1] fox [/E1] and [E2] dog [/E2]")[
        "input_ids"
    ]
    assert [i for i in found if i in ids] == ids
    assert json.loads((tmp_path / "tuned" / "config.json").read_text())["relation_markers"] == list(
        SETTINGS.markers
    )
    again = make_plain(FinetuneModelSettings(name=str(tmp_path / "tuned")), **given)
    assert_close(again.state_dict(), first.state_dict())
    other = make_plain(FinetuneModelSettings(name=str(tmp_path / "tuned")), **{**given, "labels": LABELS[:2]})
    assert_close(other.base_model.state_dict(), first.base_model.state_dict())
    assert other.classifier.weight.shape == (2, 64)


def test_the_model_by_itself_gives_the_same(tmp_path):
    examples, ours = examples_of(4), made(padded=True).eval()
    ours.plain.save_pretrained(tmp_path)
    loaded = AUTO.from_pretrained(tmp_path, config=ours.plain.config).eval()
    places = {name: torch.tensor(examples.targets[name]) for name in ("first", "second")}
    with torch.no_grad():
        expected = ours.logits(pack(ExampleMicro(examples)))
        for row, given in enumerate(fakes.alone(loaded, examples)):
            own = {name: values[row : row + 1] for name, values in places.items()}
            assert_close(loaded(**given, **own)[0], expected[row], atol=1e-5, rtol=0)


def test_it_learns_toy_rows():
    rng, rows = np.random.default_rng(0), []
    for n in range(20):
        words = [str(word) for word in rng.permutation(["quick", "fox", "child", "dog", "over"])]
        a, b = sorted(rng.permutation(5)[:2])
        names = ("e1", "e2") if n % 3 else ("e2", "e1")
        for at, name in zip((a, b), names, strict=True):
            words[at] = f"<{name}>{words[at]}</{name}>"
        rows.append({"text": " ".join(words), "label": LABELS[0 if n % 3 else 1] if n % 4 else "Other"})
        if not n % 4:
            rows[-1]["text"] += " paris"
    table, tok = pa.Table.from_pylist(rows), tokenizer("wordpiece")
    relations.add_markers(tok, SETTINGS)
    assert relations.find_labels(table, SETTINGS) == LABELS
    examples, reasons = relations.prepare(table, tok, LABELS, SETTINGS, max_length=48)
    assert not any(reasons)
    plain = fakes.plain(relations_model, LABELS, SETTINGS, vocabulary=tok.get_vocab_size())
    figures = fakes.learnt(Model(plain, SETTINGS), relations, LABELS, SETTINGS, examples)
    assert figures[relations.main_figure(SETTINGS)] == figures["accuracy"] == 1
