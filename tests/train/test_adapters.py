"""LoRA, AdaLoRA, prefixes, bottlenecks and biases: what is trained, what they compute, merging and saving."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn.utils.rnn import pad_sequence

from raybert.encoder.adapted import Bottleneck
from raybert.train.adalora import RankAllocation, orthogonality
from raybert.train.adapters import add_adapter, is_merged, merged, save_adapter
from raybert.train.dropout import quicken_dropout
from raybert.train.freezing import trainable_parameters
from tests.train import lever_ranks
from tests.train.lever_fakes import FAMILIES, Classifier, alone, batch, plain_model


def settings(name: str, **changes: object) -> SimpleNamespace:
    given = {"rank": 4, "alpha": 8.0, "dropout": 0.0, "target_rank": 2, "tokens": 5, "width": 6, **changes}
    return SimpleNamespace(name=name, **given)


def padded(data) -> dict[str, torch.Tensor]:
    rows = [ids[0] for ids, _ in alone(data)]
    mask = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    return {"input_ids": pad_sequence(rows, batch_first=True), "attention_mask": mask}


def trained(model) -> set[str]:
    return {name for name, p in model.named_parameters() if p.requires_grad}


def moved(model, seed: int = 0, by: float = 0.1):
    """The model with what is trained changed at random, in evaluation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += by * torch.randn(parameter.shape, generator=generator)
    return model.eval()


@pytest.mark.parametrize("family", [*FAMILIES, "albert"])
@pytest.mark.parametrize("name", ["lora", "adalora"])
def test_merging_leaves_logits_as_they_are(family, name):
    plain, given = plain_model(family), padded(batch(1))
    with torch.no_grad():
        before = plain.eval()(**given).logits
        model = moved(add_adapter(plain, settings(name), steps=20))
        found = model(**given).logits
        whole = merged(model)
        torch.testing.assert_close(whole(**given).logits, found, atol=1e-5, rtol=1e-5)
    assert (found - before).abs().max() > 1e-2
    assert type(whole) is type(plain_model(family))
    assert whole.state_dict().keys() == plain_model(family).state_dict().keys()
    assert is_merged(settings(name))


def test_lora_is_the_formula_and_trains_queries_values_and_the_head():
    plain = plain_model()
    weight = plain.bert.encoder.layer[1].attention.self.value.weight.detach().clone()
    model = moved(add_adapter(plain, settings("lora")))
    layer = model.get_base_model().bert.encoder.layer[1].attention.self.value
    a, b = layer.lora_A["default"].weight, layer.lora_B["default"].weight
    assert a.shape == (4, 32)
    names = trained(model)
    assert len({name for name in names if "lora_" in name}) == 2 * 2 * 2
    assert {name for name in names if "lora_" not in name} == {
        f"base_model.model.{name}"
        for name in (
            "bert.pooler.dense.weight",
            "bert.pooler.dense.bias",
            "classifier.weight",
            "classifier.bias",
        )
    }
    whole = merged(model).bert.encoder.layer[1].attention.self.value.weight
    torch.testing.assert_close(whole, weight + b @ a * 8 / 4)


def test_the_plain_model_is_adapted_in_place_and_takes_packed_batches():
    plain, data = plain_model(), batch(1)
    model = moved(add_adapter(plain, settings("lora")))
    assert model.get_base_model() is plain
    found = Classifier(plain).logits(data)
    wide = Classifier(plain, padded=True).logits(data)
    torch.testing.assert_close(found, wide, atol=1e-5, rtol=1e-4)
    plain.set_attn_implementation("raybert_packed")
    out = model(input_ids=data.ids, position_ids=data.places, packed=data.rows)
    torch.testing.assert_close(out.logits, plain.classifier(plain.bert.pooler(first_hidden(plain, data))))


def first_hidden(plain, data):
    return plain.bert(input_ids=data.ids, position_ids=data.places, packed=data.rows).last_hidden_state[:, :1]


def train_adalora(steps: int):
    torch.manual_seed(0)
    model = add_adapter(plain_model(), settings("adalora"), steps=steps)
    classifier = Classifier(model.get_base_model())
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    allocation, ranks = RankAllocation(model), []
    for step in range(steps):
        optimizer.zero_grad()
        loss = classifier(batch(step)).loss_sum + orthogonality(model)
        loss.backward()
        allocation.before_update()
        optimizer.step()
        allocation.after_update(step)
        ranks.append(sum(allocation.ranks().values()))
    return model, allocation, ranks


def test_adalora_ends_with_the_target_rank():
    model, allocation, ranks = train_adalora(20)
    matrices = 2 * 6  # in each layer query, key, value, output and two of the feed-forward part
    assert len(allocation.ranks()) == matrices
    assert sum(allocation.ranks().values()) == 2 * matrices
    assert len(set(allocation.ranks().values())) > 1  # the budget is of all matrices together
    # b(t) falls with a cubic between steps 2 and 10, from 48 to 24
    budget = [int(24 * (1 - (t - 2) / 8) ** 3 + 24) for t in range(3, 11)]
    assert ranks[2:10] == budget
    assert ranks[10:] == [24] * 10
    assert max(ranks[:2]) == 48
    model.get_base_model().set_attn_implementation("sdpa")
    given = padded(batch(1))
    found = model.eval()(**given).logits
    torch.testing.assert_close(merged(model)(**given).logits, found, atol=1e-5, rtol=1e-5)


def test_triplets_are_scored_by_the_formula():
    """I = |w g|, smoothed twice, times its deviation; of E + the mean of A's row + the mean of B's column."""
    torch.manual_seed(0)
    model = add_adapter(plain_model(), settings("adalora"), steps=40)
    classifier, allocation = Classifier(model.get_base_model()), RankAllocation(model)
    new = {name: p for name, p in model.named_parameters() if "lora_" in name}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    mean = {name: torch.zeros_like(p) for name, p in new.items()}
    deviation = {name: torch.zeros_like(p) for name, p in new.items()}
    for step in range(5):
        optimizer.zero_grad()
        classifier(batch(step)).loss_sum.backward()
        gradients = {name: p.grad.clone() for name, p in new.items()}
        allocation.before_update()
        optimizer.step()
        for name, p in new.items():
            sensitivity = (p.detach() * gradients[name]).abs()
            mean[name] = 0.85 * mean[name] + 0.15 * sensitivity
            deviation[name] = 0.85 * deviation[name] + 0.15 * (sensitivity - mean[name]).abs()
        last = {name: p.detach().clone() for name, p in new.items()}
        allocation.after_update(step)
    score = {name: mean[name] * deviation[name] for name in new}
    triplets = {
        name: score[name][:, 0]
        + score[name.replace("lora_E", "lora_A")].mean(1)
        + score[name.replace("lora_E", "lora_B")].mean(0)
        for name in new
        if "lora_E" in name
    }
    budget = int(24 * (1 - (5 - 4) / 16) ** 3 + 24)
    least = torch.cat(list(triplets.values())).sort(descending=True).values[budget - 1]
    for name, scores in triplets.items():
        torch.testing.assert_close(new[name][:, 0], torch.where(scores >= least, last[name][:, 0], 0.0))


def test_orthogonality():
    model = add_adapter(plain_model(), settings("adalora"), steps=20)
    terms = []
    for name, p in model.named_parameters():
        if "lora_A" in name:
            terms.append((p @ p.T - torch.eye(4)).square().sum().sqrt())
        if "lora_B" in name:
            terms.append((p.T @ p - torch.eye(4)).square().sum().sqrt())
    assert len(terms) == 24
    torch.testing.assert_close(orthogonality(model), 0.5 * sum(terms) / 24)


@pytest.mark.parametrize("family", FAMILIES)
def test_bottlenecks_begin_near_the_identity(family):
    data = batch(1)
    plain = plain_model(family).eval()
    before = plain(**padded(data)).logits
    head = {name for name in trained(plain) if name.startswith(("classifier", "pre_classifier", "head"))}
    every = sum(p.numel() for p in plain.parameters())
    model = add_adapter(plain, settings("bottleneck"))
    assert model is plain
    torch.testing.assert_close(plain(**padded(data)).logits, before, atol=0.05, rtol=0.05)
    names = trained(plain)
    assert head <= names
    new = {name for name in names if ".adapter." in name}
    assert len(new) == 2 * 2 * 4  # layers, places, tensors
    assert trainable_parameters(plain)[1] - every == 2 * 2 * (2 * 32 * 6 + 32 + 6)
    rest = {name for name in names - head - new if "pooler" not in name}
    assert rest
    assert all("norm" in name.lower() for name in rest)
    found = moved(plain)(**padded(data)).logits
    assert (found - before).abs().max() > 0.05


def test_a_bottleneck_is_the_formula():
    torch.manual_seed(0)
    found, x = Bottleneck(8, 3), torch.randn(5, 8)
    down = x @ found.down.weight.T + found.down.bias
    torch.testing.assert_close(
        found(x), x + torch.nn.functional.gelu(down) @ found.up.weight.T + found.up.bias
    )
    assert found.down.weight.abs().max() <= 0.02
    assert float(found.up.weight.std().detach()) == pytest.approx(0.0088, rel=0.4)


def test_bottlenecks_lie_behind_both_parts_of_a_layer():
    """Of a layer: y = norm(x + adapter(attention(x))), norm(y + adapter(feed_forward(y)))."""
    plain = add_adapter(plain_model(), settings("bottleneck"))
    quicken_dropout(plain)  # must not lose them
    moved(plain)
    layer, x = plain.bert.encoder.layer[0], torch.randn(1, 6, 32)
    plain.set_attn_implementation("sdpa")
    first, second = layer.attention.output, layer.output
    attended = first.dense(layer.attention.self(x)[0])
    y = first.LayerNorm(first.dropout.adapter(attended) + x)
    z = second.LayerNorm(second.dropout.adapter(second.dense(layer.intermediate(y))) + y)
    torch.testing.assert_close(layer(x), z)


def test_bottlenecks_take_packed_batches():
    plain, data = moved(add_adapter(plain_model(), settings("bottleneck"))), batch(1)
    torch.testing.assert_close(
        Classifier(plain).logits(data), Classifier(plain, padded=True).logits(data), atol=1e-5, rtol=1e-4
    )


@pytest.mark.parametrize("family", FAMILIES[:-1])
def test_biases_alone(family):
    plain = add_adapter(plain_model(family), settings("bitfit"))
    every = dict(plain.named_parameters())
    head = {
        name
        for name in every
        if "pooler" in name or name.startswith(("classifier", "pre_classifier", "head"))
    }
    biases = {name for name in every if name.endswith(".bias")}
    assert trained(plain) == biases | head
    assert len(biases) >= 19


@pytest.mark.parametrize("family", ["bert", "roberta", "xlm-roberta", "camembert", "electra"])
def test_a_prefix_on_padded_rows_is_that_of_peft(family):
    from peft import PrefixTuningConfig, get_peft_model

    given = padded(batch(1))
    torch.manual_seed(0)
    model = add_adapter(plain_model(family), settings("prefix")).eval()
    torch.manual_seed(0)
    theirs = get_peft_model(
        plain_model(family), PrefixTuningConfig(task_type="SEQ_CLS", num_virtual_tokens=5)
    ).eval()
    found = model(**given).logits
    torch.testing.assert_close(found, theirs(**given).logits)
    # a row alone gives the same: padding is hidden, the prefix is not
    short = model(input_ids=given["input_ids"][:1, :3], attention_mask=given["attention_mask"][:1, :3])
    torch.testing.assert_close(short.logits, found[:1], atol=1e-5, rtol=1e-4)
    assert (found - plain_model(family).eval()(**given).logits).abs().max() > 1e-3
    head = {n for n in trained(model) if "prompt_encoder" not in n}
    assert any("classifier" in n for n in head)
    assert any("pooler" in n for n in head) == (family == "bert")
    assert all("classifier" in n or "pooler" in n for n in head)
    assert not any("original_module" in n for n in head)
    assert trainable_parameters(model)[0] < trainable_parameters(model)[1] / 2


def test_peft_reads_our_prefix(tmp_path):
    from peft import PeftModel

    given = padded(batch(1))
    model = moved(add_adapter(plain_model(), settings("prefix")))
    save_adapter(model, tmp_path, {"name": "x", "digest": ""})
    theirs = PeftModel.from_pretrained(plain_model(), str(tmp_path)).eval()
    torch.testing.assert_close(theirs(**given).logits, model(**given).logits)


@pytest.mark.parametrize("name", ["lora", "adalora"])
@pytest.mark.parametrize("family", ["bert", "roberta", "modernbert"])
def test_the_embeddings_of_new_tokens_are_trained(family, name):
    plain, words = plain_model(family), [90, 95]
    start = plain.get_input_embeddings().weight.detach().clone()
    model = add_adapter(plain, settings(name, rank=4), steps=8, new_tokens=words)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.5)
    data = padded(batch(1))
    data["input_ids"][0, :2] = torch.tensor(words)
    model(**data).logits.square().sum().backward()
    optimizer.step()
    model.eval()
    found = model(**data).logits.detach()
    whole = merged(model)
    torch.testing.assert_close(whole(**data).logits, found, atol=1e-5, rtol=1e-4)
    assert whole.state_dict().keys() == plain_model(family).state_dict().keys()
    moved_rows = (whole.get_input_embeddings().weight - start).abs().amax(1) > 0
    assert moved_rows.nonzero()[:, 0].tolist() == words


@pytest.mark.slow
def test_two_ranks_allocate_as_one_process(tmp_path):
    """Ranks and weights of AdaLoRA after 12 steps in stages 0 to 2."""
    found = lever_ranks.run(tmp_path, "adalora")
    expected = lever_ranks.adalora_steps(0, [0, 1])
    for zero in (0, 1, 2):
        assert found[f"ranks-{zero}"] == expected["ranks"]
        assert sum(expected["ranks"].values()) == 2 * 12
        difference = [
            float((found[f"weights-{zero}"][name] - value).abs().max())
            for name, value in expected["weights"].items()
        ]
        assert max(difference) < 1e-5
    assert found["refused"].startswith("adapter.name=adalora needs whole matrices")
