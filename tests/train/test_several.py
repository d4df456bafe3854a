"""Several tasks without a loop: who has its turn, the same batches for any ranks, gradients, finished models."""

import json
from collections import Counter
from dataclasses import asdict

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from raybert.tasks import relations_model
from raybert.tasks.heads import read_head
from raybert.train.checkpoint import Checkpoints, RunState
from raybert.train.example_stream import ExampleMicro
from raybert.train.finetuning import Finetuning
from raybert.train.gather import Tensors
from raybert.train.packed import pack
from raybert.train.several_job import member_configs, member_job
from raybert.train.several_stream import shares
from tests.train.several_tables import KINDS, several_of, tables

NAMES = ("entities", "intents", "numbers")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("several")
    tables(path)
    return path


@pytest.fixture(scope="module")
def several(folder):
    return several_of(folder, "run", **{"train.batch_size": 20, "task.tasks.numbers.weight": 3})


@pytest.mark.parametrize(
    ("temperature", "expected"),
    [(1.0, [0.9, 0.1]), (2.0, [0.75, 0.25]), (1e9, [0.5, 0.5])],
)
def test_shares_follow_the_formula(temperature, expected):
    assert shares([900, 100], temperature) == pytest.approx(expected)
    assert shares([900, 100], temperature)[0] == pytest.approx(
        900 ** (1 / temperature) / (900 ** (1 / temperature) + 100 ** (1 / temperature))
    )


def test_turns_are_as_frequent_as_the_shares(folder, several):
    stream, draws = several[2].streams[0], 6000
    found = Counter(stream.turn(i) for i in range(draws))
    for name, share in zip(NAMES, shares([60, 120, 40], 1.0), strict=True):
        assert abs(found[name] / draws - share) < 4 * np.sqrt(share * (1 - share) / draws)
    even = several_of(
        folder, "even", write_files=False, **{"task.temperature": 1e9, "output.path": str(folder / "run")}
    )
    counts = Counter(even[2].streams[0].turn(i) for i in range(draws))
    assert min(counts.values()) > draws / 3 - 4 * np.sqrt(draws * 2 / 9)
    other = several_of(
        folder, "seed", write_files=False, **{"train.seed": 1, "output.path": str(folder / "run")}
    )
    assert [stream.turn(i) for i in range(50)] != [other[2].streams[0].turn(i) for i in range(50)]


def test_an_epoch_has_the_rows_of_all_tasks(several):
    _, prepared, made = several
    assert made.streams[0].steps_per_epoch == 6 + 3 + 2
    assert prepared.job["rows"]["intents/train"]["examples"] == 120


def test_batches_do_not_depend_on_ranks_and_go_on_from_json(several):
    stream = several[2].streams[0]

    def content(cursor, world):
        found, own = {}, [stream.read(cursor, rank, world) for rank in range(world)]
        for part in own:
            assert len(part.micro) == -(-part.bins // world)
            assert len({micro.member for _, micro in part.micro}) == 1
            found |= {number: (micro.member, micro.digest) for number, micro in part.micro if micro.digest}
        assert len({part.cursor.batch for part in own}) == 1
        assert sorted(found) == list(range(own[0].bins))
        return found, own[0].cursor

    cursor, seen = stream.cursor(), []
    for _ in range(25):
        one, following = content(cursor, 1)
        assert content(cursor, 2)[0] == content(cursor, 3)[0] == one
        cursor = stream.cursor(**json.loads(json.dumps(asdict(following))))
        assert cursor == following
        seen.append(one)
    assert {next(iter(one.values()))[0] for one in seen} == set(NAMES)
    digests = [value for one in seen for value in one.values()]
    assert len(set(digests)) == len(digests)  # every order is new in a new epoch


def test_rows_of_a_task_come_once_each_in_an_epoch_of_its_own(several):
    stream = several[2].streams[0]
    cursor, rows = stream.cursor(), []
    while len(rows) < 6:
        batch = stream.read(cursor)
        if batch.micro[0][1].member == "intents":
            rows.append(np.concatenate([micro.examples.row for _, micro in batch.micro]))
        cursor = batch.cursor
    assert sorted(np.concatenate(rows)) == list(range(120))


@pytest.mark.parametrize("name", NAMES)
def test_a_gradient_is_that_of_the_task_alone(several, name):
    config, prepared, made = several
    own_config = member_configs(config)[name]
    alone = Finetuning(own_config, member_job(prepared.job, name, own_config), name)
    stream = made.streams[0]
    cursor = stream.cursor()
    while stream.turn(cursor.batch) != name:
        cursor = stream.read(cursor).cursor
    micros = stream.read(cursor).micro
    found = []
    for trained in (made, alone):
        model = trained.model(None).train()
        counts = trained.objective.count(micros)
        totals = trained.objective.accumulate(model, micros, counts, seed=5, step=7)
        figures = trained.objective.figures(trained.objective.sums(*totals.tolist()), counts)
        plain = model.plain.of(name) if trained is made else model.plain
        found.append((figures.loss, {key: p.grad for key, p in plain.named_parameters()}))
        if trained is made:
            assert sum(counts.targets) == max(counts.targets) > 0
            assert made.objective.idle(counts) == set(NAMES) - {name}
            assert figures.values[f"{name}.loss"] == figures.loss
            others = [p for key, own in model.plain.heads().items() if key != name for p in own]
            assert all(p.grad is None for p in others)
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    weight = 3 if name == "numbers" else 1
    expected = {key: None if grad is None else weight * grad for key, grad in found[1][1].items()}
    assert any(grad is not None and grad.abs().max() > 1e-3 for grad in expected.values())
    assert_close(found[0][1], expected, atol=1e-6, rtol=1e-5)


def test_an_empty_batch_counts_for_nothing(several):
    objective = several[2].objective
    counts = objective.count([(0, objective.empty_of("numbers")), None])
    assert (counts.targets, counts.tokens, counts.sequences) == ((0, 0, 0), 0, 0)
    assert objective.idle(counts) == set(NAMES)


READERS = {
    "intents": AutoModelForSequenceClassification,
    "numbers": AutoModelForSequenceClassification,
    "entities": AutoModelForTokenClassification,
    "answers": AutoModelForQuestionAnswering,
    "relations": relations_model.AUTO,
}


def logits_of(name, path, micro):
    """Of one row, by the finished model as others read it."""
    options = {"config": AutoConfig.from_pretrained(path)} if name == "relations" else {}
    model, report = READERS[name].from_pretrained(path, output_loading_info=True, **options)
    assert not report["missing_keys"]
    targets = micro.per_sequence
    more = {key: torch.tensor(targets[key]) for key in ("first", "second")} if name == "relations" else {}
    ids, types = torch.tensor(micro.ids, dtype=torch.int64)[None], torch.tensor(micro.types)[None]
    found = model.eval()(ids, token_type_ids=types, **more)
    if name == "relations":
        return found, model
    if name == "answers":
        return torch.stack([found.start_logits[0], found.end_logits[0]], 1), model
    return found.logits[0] if name == "entities" else found.logits, model


@torch.no_grad()
def test_every_finished_model_is_a_plain_one_with_the_same_encoder(folder):
    config, prepared, made = several_of(folder, "export", names=KINDS)
    model = made.model(None).eval()
    for parameter in model.parameters():
        parameter.add_(torch.randn_like(parameter) / 20)
    weights = {key: p.detach().clone() for key, p in model.plain.named_parameters()}
    evaluation = {"mean": 0.5, "intents.accuracy": 0.25, "entities.f1": 0.75}
    state = RunState(step=1, job=prepared.job, evaluation=evaluation)
    Checkpoints(f"{config.output.path}/checkpoints").write(Tensors(weights, {}, 1), state)
    made.export(1)
    words = dict(model.plain.named_parameters())["of_answers.bert.embeddings.word_embeddings.weight"]
    assert len(words) == prepared.job["vocabulary"]  # the markers of relations are in it
    for name, stream in zip(sorted(KINDS), streams_of(made), strict=True):
        first = stream.read(stream.cursor()).micro[0][1].examples.take(np.array([0]))
        micro = ExampleMicro(first, member=name)
        expected, read = logits_of(name, folder / "export" / "model" / name, micro)
        assert_close(model(pack(micro), outputs=True)[1]["logits"], expected, atol=1e-5, rtol=0)
        assert read.get_input_embeddings().weight.equal(words)
        head = read_head(read.config.to_dict(), name)  # as predict and evaluate read it
        assert head.task == config.task.tasks[name].task.name
        assert head.settings == config.task.tasks[name].task
        assert head.labels == prepared.job["labels"][name]
    card = (folder / "export" / "model" / "entities" / "README.md").read_text()
    assert "held out: entities.f1 | 0.75" in card
    assert "intents.accuracy" not in card
    assert "fine-tuned for entities" in card


def streams_of(made):
    return [member.stream for member in made.streams[0]._members.values()]
