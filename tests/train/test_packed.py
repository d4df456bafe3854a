"""Packed logits and gradients are those of every sequence alone; the model stays a plain transformers model."""

import json
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import AutoModelForMaskedLM, BertForPreTraining

from raybert.train.packed import pack
from raybert.train.pretraining_model import build_model
from raybert.train.pretraining_objective import PRETRAINING
from tests.encoder.tiny import tiny_model
from tests.train.fakes import config, micro, model

FAMILIES = ("bert", "roberta", "electra", "distilbert")


def alone(plain, batch, offset):
    """MLM logits of every token and NSP logits of every sequence, each sequence in a forward of its own."""
    plain.set_attn_implementation("eager")
    mlm, pairs = [], []
    starts = np.concatenate([[0], np.cumsum(batch.lengths)])
    for a, b in pairwise(starts):
        given = {"input_ids": torch.tensor(batch.ids[a:b])[None]}
        given["position_ids"] = torch.arange(b - a)[None] + offset
        if plain.config.model_type != "distilbert":
            given["token_type_ids"] = torch.tensor(batch.types[a:b])[None]
        out = plain(**given)
        mlm.append((out.prediction_logits if hasattr(out, "prediction_logits") else out.logits)[0])
        if hasattr(out, "seq_relationship_logits"):
            pairs.append(out.seq_relationship_logits)
    return torch.cat(mlm), torch.cat(pairs) if pairs else None


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_every_sequence_alone(family, padded):
    batch = micro(0, pairs=family == "bert")
    ours = model(family, pairs=family == "bert", padded=padded).eval()
    packed = pack(batch)
    with torch.no_grad():
        mlm, pairs = ours.logits(packed)
        expected, expected_pairs = alone(ours.plain, batch, 2 if family == "roberta" else 0)
    assert_close(mlm, expected[torch.tensor(batch.positions)], atol=1e-5, rtol=0)
    if family == "bert":
        order = np.argsort(batch.lengths, kind="stable")
        assert_close(pairs, expected_pairs[torch.tensor(order)], atol=1e-5, rtol=0)


def test_layers_see_few_different_numbers_of_tokens():
    """oneDNN builds a kernel for each."""
    ours, seen = model("bert"), set()
    layer = ours.plain.base_model.encoder.layer[0].intermediate
    layer.register_forward_hook(lambda module, given, output: seen.add(given[0].shape[1]))
    for lengths in ((3, 5), (20,) * 13, (20,) * 13 + (3,), (19,) * 14):
        batch = pack(micro(0, lengths, pairs=False))
        assert ours._run.hidden(batch).shape[0] == sum(lengths)
    assert seen == {8, 272}


def test_roberta_positions_are_its_own():
    one, ours = micro(0, (7,), pairs=False), model("roberta").eval()
    found = ours.logits(pack(one))[0]
    ours.plain.set_attn_implementation("eager")
    expected = ours.plain(input_ids=torch.tensor(one.ids)[None]).logits[0]  # it makes its positions itself
    assert_close(found, expected[torch.tensor(one.positions)], atol=1e-5, rtol=0)


def test_sums_are_counted_over_labels():
    batch, ours = micro(3), model(pairs=True).eval()
    sums = ours(pack(batch))
    mlm, pairs = ours.logits(pack(batch))
    labels, order = torch.tensor(batch.labels), np.argsort(batch.lengths, kind="stable")
    chosen = -mlm.log_softmax(-1)[torch.arange(len(labels)), labels]
    assert_close(sums.mlm_sum, chosen.sum())
    assert sums.mlm_count == len(labels)
    assert sums.mlm_correct == (mlm.argmax(-1) == labels).sum()
    kinds = torch.tensor(batch.pair_labels[order])
    seen = kinds >= 0
    assert sums.pair_count == seen.sum() == 4
    assert_close(sums.pair_sum, -pairs.log_softmax(-1)[seen].gather(1, kinds[seen][:, None]).sum())
    assert sums.pair_correct == (pairs.argmax(-1)[seen] == kinds[seen]).sum()


def gradients(ours, batch):
    ours.zero_grad()
    sums = ours(batch)
    (sums.mlm_sum + sums.pair_sum).backward()
    return {name: p.grad.clone() for name, p in ours.named_parameters()}


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_packed_gradients_are_the_padded_ones(family):
    pairs = family == "bert"
    batch = pack(micro(1, pairs=pairs))
    assert_close(
        gradients(model(family, pairs=pairs), batch),
        gradients(model(family, pairs=pairs, padded=True), batch),
        atol=2e-5,
        rtol=1e-4,
    )


def test_checkpointed_activations_give_the_same_gradients():
    batch, ours = pack(micro(2)), model(pairs=True, dropout=0.3).train()
    torch.manual_seed(7)
    plain = gradients(ours, batch)
    ours.plain.gradient_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(7)
    assert_close(gradients(ours, batch), plain)
    torch.manual_seed(8)  # dropout is at work
    other = gradients(ours, batch)
    name = "plain.bert.encoder.layer.0.attention.self.value.weight"
    assert not torch.allclose(other[name], plain[name])


def test_attention_weights_are_dropped():
    ours = model()
    for module in ours.modules():  # only the attention's dropout
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    for layer in ours.plain.bert.encoder.layer:
        layer.attention.self.dropout.p = 0.5
    ours.train()
    first, second = ours.logits(pack(micro(0)))[0], ours.logits(pack(micro(0)))[0]
    assert not torch.allclose(first, second)
    ours.eval()
    assert_close(ours.logits(pack(micro(0)))[0], ours.logits(pack(micro(0)))[0])


def test_an_empty_batch_has_zero_gradients_everywhere():
    found = gradients(model(pairs=True), pack(PRETRAINING.empty))
    assert all(not grad.any() for grad in found.values())


@pytest.mark.parametrize("pairs", [False, True])
def test_goes_on_from_a_checkpoint_and_saves_a_plain_folder(tmp_path, pairs):
    from raybert.train.pretraining_model import PretrainingModel

    folder = tiny_model(tmp_path / "start", st=False)
    plain = build_model(str(folder), pairs=pairs)
    assert isinstance(plain, BertForPreTraining) == pairs
    start = AutoModelForMaskedLM.from_pretrained(folder)
    assert_close(plain.bert.encoder.state_dict(), start.bert.encoder.state_dict())
    ours = PretrainingModel(plain)
    names = {name for name, _ in plain.named_parameters()}
    assert {name.removeprefix("plain.") for name, _ in ours.named_parameters()} == names
    plain.save_pretrained(tmp_path / "saved")
    assert "raybert" not in json.dumps(json.loads((tmp_path / "saved/config.json").read_text()))
    again = type(plain).from_pretrained(tmp_path / "saved")
    again_head, embeddings = again.get_output_embeddings(), again.get_input_embeddings()
    assert again_head.weight.data_ptr() == embeddings.weight.data_ptr()
    assert_close(dict(again.named_parameters()), dict(plain.named_parameters()))


def test_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="mpnet model cannot be pretrained"):
        build_model(config("mpnet"))
    with pytest.raises(ValueError, match="roberta model has no head for the sentence pairs"):
        build_model(config("roberta"), pairs=True)
