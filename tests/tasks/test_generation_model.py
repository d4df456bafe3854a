"""Packed encoder-decoders compute what transformers' own do row by row; they learn to copy, and what they write can be read."""

import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from transformers import AutoModel, EncoderDecoderModel

from raybert.config.finetune import FinetuneModelSettings, RegularizeSettings
from raybert.config.tasks import GenerationSettings
from raybert.encoder.attention import Rows
from raybert.tasks.encoder_decoder_model import make_plain, untied
from raybert.tasks.examples import IGNORED, TARGET_IDS, Examples, Lists
from raybert.tasks.generation_model import Model
from raybert.tasks.heads import Head
from raybert.tasks.writing_model import Predictor, write
from raybert.train.cross_entropy import cross_entropy
from raybert.train.example_stream import ExampleMicro, nothing
from raybert.train.freezing import depths, freeze
from raybert.train.packed import pack
from raybert.train.packed_decoder import Pairs, attend_decoder
from raybert.train.step import train_step
from raybert.train.task_objective import TaskObjective
from tests.encoder.tiny import tiny_model
from tests.tasks import model_fakes as fakes

WORDS = 60  # ids that the examples use
START, END = 2, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    at = tmp_path_factory.mktemp("models")
    for family in ("bert", "roberta", "electra", "distilbert"):
        tiny_model(at / family, family, st=False)
    return at


def facts_of(decoder, **changes):
    start, end, pad = (0, 2, 1) if decoder.name == "roberta" else (START, END, 0)
    return {
        "name": str(decoder),
        "revision": None,
        "start": start,
        "end": end,
        "pad": pad,
        "vocabulary": 80,
        "known_words": True,
        "own_tokenizer": False,
        **changes,
    }


def plain_of(folder, encoder="bert", decoder="bert", *, dropout=0.0, settings=None, **changes):
    """The same model every time."""
    model = FinetuneModelSettings(name=str(folder / encoder), dropout=dropout, attention_dropout=dropout)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make_plain(model, settings or GenerationSettings(), facts_of(folder / decoder, **changes))


def made(folder, *given, regularize=None, padded=False, **named):
    return Model(plain_of(folder, *given, **named), GenerationSettings(), regularize, padded=padded)


def examples_of(seed=0, n=6):
    """Sources in the order of their lengths, targets of other lengths."""
    found = fakes.sequences(seed, n)
    rng = np.random.default_rng(seed + 100)
    lengths = rng.integers(2, 12, n)
    ids = rng.integers(5, WORDS, (n, 11)).astype(np.int32)
    return Examples(
        Lists(found.ids.values % WORDS + 5, found.ids.offsets),
        found.boundary,
        found.row,
        {TARGET_IDS: np.where(np.arange(11) < lengths[:, None], ids, IGNORED)},
    )


def row_by_row(plain, examples):
    """Logits [tokens, vocabulary] and labels of each row by itself, written out: no packing, no padding, no teacher."""
    start = plain.config.decoder_start_token_id
    for number, (a, b) in enumerate(pairwise(examples.ids.offsets)):
        labels = torch.tensor(examples.targets[TARGET_IDS][number].astype(np.int64))
        labels = labels[labels != IGNORED]
        given = torch.tensor(examples.ids.values[a:b].astype(np.int64))[None]
        before = torch.cat([torch.tensor([start]), labels[:-1]])[None]
        yield plain(input_ids=given, decoder_input_ids=before, use_cache=False).logits[0], labels


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    ("encoder", "decoder"),
    [("bert", "bert"), ("roberta", "roberta"), ("distilbert", "electra"), ("electra", "bert")],
)
def test_logits_and_loss_are_those_of_every_row_alone(folder, encoder, decoder, padded):
    examples, ours = examples_of(), made(folder, encoder, decoder, padded=padded).eval()
    plain = plain_of(folder, encoder, decoder).eval()
    with torch.no_grad():
        found, outputs = ours(pack(ExampleMicro(examples)), outputs=True)
        logits = ours.logits(pack(ExampleMicro(examples)))
        rows = list(row_by_row(plain, examples))
    assert_close(logits, torch.cat([row for row, _ in rows]), atol=1e-4, rtol=1e-4)
    assert logits.std() > 0.01
    nll = torch.stack([F.cross_entropy(row, labels, reduction="sum") for row, labels in rows])
    assert_close(found.loss, nll.sum(), atol=1e-3, rtol=1e-5)
    assert_close(outputs["nll"], nll, atol=1e-3, rtol=1e-5)
    right = torch.stack([(row.argmax(1) == labels).sum() for row, labels in rows])
    assert_close(outputs["right"], right.float())
    assert found.token_accuracy == right.sum()
    assert outputs["tokens"].tolist() == [len(labels) for _, labels in rows]
    assert ours.targets(ExampleMicro(examples)) == sum(len(labels) for _, labels in rows)


def test_the_loss_is_transformers_own(folder):
    """The mean over the tokens of a padded batch, shifted by transformers."""
    examples, plain = examples_of(1), plain_of(folder).eval()
    n, longest = len(examples), int(examples.ids.lengths.max())
    ids, mask = torch.zeros(n, longest, dtype=torch.int64), torch.zeros(n, longest, dtype=torch.int64)
    for i, (a, b) in enumerate(pairwise(examples.ids.offsets)):
        ids[i, : b - a] = torch.tensor(examples.ids.values[a:b].astype(np.int64))
        mask[i, : b - a] = 1
    labels = torch.tensor(examples.targets[TARGET_IDS].astype(np.int64))
    with torch.no_grad(), pytest.warns(FutureWarning):
        expected = plain(input_ids=ids, attention_mask=mask, labels=labels).loss
    ours = made(folder).eval()
    micro = ExampleMicro(examples)
    assert_close(ours(pack(micro)).loss / ours.targets(micro), expected, atol=1e-5, rtol=1e-5)


def test_packed_gradients_are_padded_ones(folder):
    batch = pack(ExampleMicro(examples_of(2)))
    packed, padded = (fakes.gradients(made(folder, padded=p), batch) for p in (False, True))
    assert_close(packed, padded, atol=1e-4, rtol=1e-4)
    assert not any("pooler" in name for name in packed)
    trained = {name for name, p in made(folder).named_parameters() if p.requires_grad}
    assert packed.keys() == trained


def test_a_micro_batch_more_changes_nothing(folder):
    """The gradient is that of the mean over all target tokens, however the rows are cut."""
    examples, ours = examples_of(3), made(folder)
    whole, parts = (
        [ExampleMicro(examples)],
        [ExampleMicro(examples.take(np.array(rows))) for rows in ([4, 0, 2], [5, 1, 3])],
    )
    found = []
    for micros in (whole, parts):
        objective = TaskObjective(ours.sums_type(None), ours.targets, nothing(examples))
        ours.zero_grad()
        entries = [*enumerate(micros), None]  # and a rank that has one less
        counts = objective.count(entries)
        objective.accumulate(ours, entries, counts, seed=0, step=0)
        found.append({name: p.grad.clone() for name, p in ours.named_parameters() if p.grad is not None})
    assert_close(found[1], found[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("padded", [False, True])
def test_a_change_of_the_source_reaches_the_loss(folder, padded):
    change, expected = fakes.change_of_loss(made(folder, padded=padded).eval(), examples_of(4))
    assert change == pytest.approx(expected, rel=0.05)


def test_smoothing_and_r_drop_follow_their_formulas(folder):
    batch = pack(ExampleMicro(examples_of(5)))
    labels = batch.targets[TARGET_IDS]
    labels = labels[labels != IGNORED]
    smooth = made(folder, regularize=RegularizeSettings(label_smoothing=0.2))
    logits = smooth.eval().logits(batch)
    assert_close(smooth(batch).loss, F.cross_entropy(logits, labels, reduction="sum"))
    expected = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=0.2)
    assert_close(smooth.train()(batch).loss, expected)
    ours = made(folder, dropout=0.3, regularize=RegularizeSettings(r_drop=2.0)).train()
    torch.manual_seed(5)
    found = ours(batch).loss
    torch.manual_seed(5)
    first, second = ours.logits(batch), ours.logits(batch)
    p, q = first.log_softmax(1), second.log_softmax(1)
    kl = ((p.exp() * (p - q)).sum(1) + (q.exp() * (q - p)).sum(1)) / 2
    means = (
        F.cross_entropy(first, labels, reduction="sum") + F.cross_entropy(second, labels, reduction="sum")
    ) / 2
    assert_close(found, means + 2.0 * kl.sum())
    assert (first - second).abs().max() > 0.01


def test_a_smoothed_loss_has_the_gradient_of_torchs():
    logits = torch.randn(50, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    labels = torch.arange(50) % 7
    labels[::5] = IGNORED
    ours = torch.autograd.grad(cross_entropy(logits, labels, 0.3)[0], logits)[0]
    theirs = F.cross_entropy(logits, labels, reduction="sum", label_smoothing=0.3, ignore_index=IGNORED)
    assert_close(ours, torch.autograd.grad(theirs, logits)[0])
    assert_close(cross_entropy(logits, labels, 0.3)[0], theirs)


def test_dropout_of_attention_keeps_the_mean():
    """Of many equal rows; otherwise training would see weights that are too small."""
    n, random = 3000, torch.Generator().manual_seed(0)
    pairs = Pairs(Rows(np.full(n, 2)), Rows(np.full(n, 3)))
    one = [torch.randn(2, 4, 8, generator=random) for _ in range(2)]
    q, k, v = (
        one[0][:, :2].repeat(1, n, 1)[None],
        one[0][:, :3].repeat(1, n, 1)[None],
        one[1][:, :3].repeat(1, n, 1)[None],
    )
    across = type("AnyCrossAttention", (torch.nn.Module,), {})()
    exact = attend_decoder(across, q, k, v, None, pairs=pairs)[0].view(n, 2, 2, 8)
    torch.manual_seed(0)
    found = attend_decoder(across, q, k, v, None, pairs=pairs, dropout=0.5)[0].view(n, 2, 2, 8)
    assert found.std(0).max() > 0.1
    assert_close(found.mean(0), exact[0], atol=6 * float(found.std(0).max()) / n**0.5, rtol=0)


def test_new_words_and_copied_layers(folder):
    encoder = AutoModel.from_pretrained(folder / "bert")
    known, new = plain_of(folder), plain_of(folder, known_words=False, vocabulary=50, own_tokenizer=True)
    size = encoder.config.vocab_size
    chance = plain_of(folder, known_words=False, vocabulary=size)  # as many, but others
    for plain in (known, new, chance):
        for name, weight in encoder.named_parameters():
            assert plain.get_parameter(f"encoder.{name}").equal(weight)
            if "word_embeddings" not in name and "pooler" not in name:
                assert plain.get_parameter(f"decoder.bert.{name}").equal(weight)
        words = plain.decoder.get_input_embeddings().weight
        assert plain.decoder.get_output_embeddings().weight is words
        assert not words[0].any() or plain is known
    words = encoder.get_input_embeddings().weight
    assert known.decoder.get_input_embeddings().weight.equal(words)
    assert new.decoder.get_input_embeddings().weight.shape == (50, 32)
    assert not chance.decoder.get_input_embeddings().weight[5:].isclose(words[5:]).any(1).all()
    one = plain_of(folder, settings=GenerationSettings(decoder_layers=1))
    assert len(one.decoder.bert.encoder.layer) == 1
    assert one.decoder.bert.encoder.layer[0].output.dense.weight.equal(
        encoder.encoder.layer[0].output.dense.weight
    )
    again = plain_of(folder, known_words=False, vocabulary=50)
    assert_close(dict(again.named_parameters()), dict(new.named_parameters()), atol=0, rtol=0)


def test_a_decoder_of_another_width_sees_the_source_through_a_projection(folder, tmp_path):
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(folder / "bert")
    config.hidden_size, config.num_attention_heads = 16, 2
    AutoModel.from_config(config).save_pretrained(tmp_path / "narrow")
    model = FinetuneModelSettings(name=str(folder / "bert"), dropout=0.0, attention_dropout=0.0)
    torch.manual_seed(0)
    plain = make_plain(model, GenerationSettings(), facts_of(tmp_path / "narrow")).eval()
    examples = examples_of()
    with torch.no_grad():
        rows = [row for row, _ in row_by_row(plain, examples)]
        found = Model(plain, GenerationSettings()).eval().logits(pack(ExampleMicro(examples)))
    assert_close(found, torch.cat(rows), atol=1e-4, rtol=1e-4)
    assert plain.enc_to_dec_proj.weight.requires_grad


def test_halves_that_share_have_the_same_weights_also_after_training(folder, tmp_path):
    shared = plain_of(folder, settings=GenerationSettings(share=True))
    alone = plain_of(folder)
    assert sum(p.numel() for p in shared.parameters()) < 0.7 * sum(p.numel() for p in alone.parameters())
    ours = Model(shared, GenerationSettings(share=True))
    before = ours.eval().logits(pack(ExampleMicro(examples_of())))
    assert_close(before, Model(alone, GenerationSettings()).eval().logits(pack(ExampleMicro(examples_of()))))
    torch.optim.SGD(shared.parameters(), 0.1)
    ours(pack(ExampleMicro(examples_of()))).loss.backward()
    torch.optim.SGD(shared.parameters(), 1e-3).step()
    layers = shared.encoder.encoder.layer, shared.decoder.bert.encoder.layer
    assert layers[0][1].output.dense.weight is layers[1][1].output.dense.weight
    logits = ours.logits(pack(ExampleMicro(examples_of())))
    assert (logits - before).abs().max() > 1e-3
    untied(shared).save_pretrained(tmp_path)
    read = Model(EncoderDecoderModel.from_pretrained(tmp_path), GenerationSettings()).eval()
    assert_close(read.logits(pack(ExampleMicro(examples_of()))), logits, atol=1e-5, rtol=1e-5)


def test_levers_of_depth_take_the_decoder_for_the_head(folder):
    plain = plain_of(folder)
    freeze(plain, 1, True)
    trained = {name for name, p in plain.named_parameters() if p.requires_grad}
    assert all(name.startswith(("decoder.", "encoder.encoder.layer.1.")) for name in trained)
    assert len([name for name in trained if name.startswith("decoder.")]) == len(
        [*plain.decoder.named_parameters()]
    )
    count, depth = depths(plain)
    assert count == 2
    assert {depth[id(p)] for p in plain.decoder.parameters()} == {4}


def copying(n, seed, *, backwards=False):
    """Sources of a few words; the target is the source, or the source read from its end."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, 5, n)
    sources = [rng.integers(5, 13, k) for k in lengths]
    ids = [np.concatenate([[START], source, [END]]) for source in sources]
    targets = np.full((n, 5), IGNORED, np.int32)
    for i, source in enumerate(sources):
        targets[i, : len(source) + 1] = [*(source[::-1] if backwards else source), END]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in ids])])
    lists = Lists(np.concatenate(ids).astype(np.int32), offsets)
    return Examples(lists, lists.lengths.astype(np.int32), np.arange(n), {TARGET_IDS: targets})


@pytest.fixture(scope="module")
def reader(folder):
    """A model that has learnt to read from the end."""
    ours = made(folder)
    objective = TaskObjective(ours.sums_type(None), ours.targets, nothing(copying(1, 0)))
    optimizer = torch.optim.AdamW([p for p in ours.parameters() if p.requires_grad])
    ours.train()
    for step in range(260):
        micro = ExampleMicro(copying(64, step, backwards=True))
        lr = 4e-3 * min(1, (step + 1) / 20) * (1 - step / 260)
        train_step(ours, optimizer, [(0, micro)], lr=lr, seed=0, step=step, clip=1.0, objective=objective)
    return ours.eval()


def test_it_learns_to_read_from_the_end(reader):
    examples = copying(100, 10**6, backwards=True)
    wanted = examples.targets[TARGET_IDS]
    tokens = write(reader.plain, examples, batch_tokens=64)
    expected = np.where(wanted == END, IGNORED, wanted)[:, : tokens.shape[1]]
    assert (tokens == expected).all(1).mean() > 0.9
    with torch.no_grad():
        _, outputs = reader(pack(ExampleMicro(examples)), outputs=True)
    assert outputs["right"].sum() / outputs["tokens"].sum() > 0.9


def test_a_saved_model_writes_the_same_by_transformers_alone(reader, folder, tmp_path):
    from transformers import AutoTokenizer

    reader.plain.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(folder / "bert")
    tokenizer.save_pretrained(tmp_path)
    examples = copying(12, 7, backwards=True)
    ours = Predictor(
        tmp_path, Head("generation", GenerationSettings(), []), dtype="float32", device="cpu", batch_tokens=16
    )(examples)["text"]
    plain = EncoderDecoderModel.from_pretrained(tmp_path)
    theirs = []
    for a, b in pairwise(examples.ids.offsets):
        ids = torch.tensor(examples.ids.values[a:b].astype(np.int64))[None]
        theirs += tokenizer.batch_decode(plain.generate(input_ids=ids), skip_special_tokens=True)
    assert ours.tolist() == theirs
    assert len(set(theirs)) > 6
    assert plain.generation_config.num_beams == 4


def test_what_was_trained_goes_on_packed_after_writing(reader):
    batch = pack(ExampleMicro(copying(9, 3)))
    before = reader.logits(batch)
    write(reader.plain, copying(9, 3), batch_tokens=64)
    assert reader.logits(batch).equal(before)
    assert write(reader.plain, copying(3, 0).take(np.zeros(0, np.int64)), batch_tokens=64).shape == (0, 0)


def test_settings_decide_how_it_writes(folder):
    how = GenerationSettings(beams=2, length_penalty=0.5, no_repeat_ngram=3, max_new_tokens=7)
    config = plain_of(folder, settings=how).generation_config
    assert (config.num_beams, config.length_penalty, config.no_repeat_ngram_size) == (2, 0.5, 3)
    assert (config.max_new_tokens, config.eos_token_id, config.decoder_start_token_id) == (7, END, START)
    tokens = write(plain_of(folder, settings=how).eval(), examples_of(), batch_tokens=64)
    assert tokens.shape[1] <= 7


def test_operations_are_counted_for_both_halves(folder):
    ours, micro = made(folder), ExampleMicro(examples_of())
    one = ours.flops([micro])
    assert ours.flops([micro, micro]) == pytest.approx(2 * one)
    sources, written = micro.lengths.sum(), ours.targets(micro)
    plain = copy.deepcopy(ours.plain)
    weights = [
        sum(p.numel() for p in half.parameters() if p.ndim > 1) for half in (plain.encoder, plain.decoder)
    ]
    words = plain.decoder.get_input_embeddings().weight.numel()
    least = 6 * ((weights[0] - words) * sources + weights[1] * written)
    assert least < one < 1.5 * least
