"""Scores that are added up in parts, with what was stored as truth, are those of the whole table at once."""

import numpy as np
import pyarrow as pa
import pytest

from raybert.config.tasks import AnswersSettings, EntitiesSettings, RelationsSettings
from raybert.tasks import answers, entities, relations
from raybert.tasks.columns import unfold
from raybert.tasks.examples import Examples
from raybert.tasks.storage import from_bytes, to_bytes
from tests.tasks.by_table import scored
from tests.tasks.toys import KINDS, tokenizer

WORDS = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "in", "Paris", "and", "New", "York"]


def entity_rows(rng) -> pa.Table:
    rows = []
    for n in range(12):
        # a lone accent has no token of its own, and the last row is rejected
        tokens = [*rng.choice(WORDS, rng.integers(1, 30)), "\u0301"]
        tags = [str(tag) for tag in rng.choice(["O", "B-LOC", "B-PER"], len(tokens))]
        rows.append({"tokens": [str(t) for t in tokens], "tags": tags if n < 11 else tags[:-1]})
    return pa.Table.from_pylist(rows)


def relation_rows(rng) -> pa.Table:
    names = ["Cause(e1,e2)", "Cause(e2,e1)", "Topic(e1,e2)", "Other"]
    texts = [
        f"{rng.choice(WORDS)} <e1>fox</e1> {rng.choice(WORDS)} <e2>dog</e2>" if n else "fox"
        for n in range(12)
    ]
    return pa.table({"text": texts, "label": [names[n % 4] for n in range(12)]})


def answer_rows(rng) -> pa.Table:
    rows = []
    for n in range(12):
        context = " ".join(rng.choice(WORDS, 40 if n % 2 else 5))
        word = context.split()[int(rng.integers(0, 5))]
        right = [] if n % 3 == 0 else [word, word.upper()]
        rows.append(
            {
                "question": "where?" if n != 4 else " ",
                "context": context,
                "answer": right,
                "answer_start": [context.index(word)] * len(right),
            }
        )
    return pa.Table.from_pylist(rows)


CASES = {
    "entities": (entities, EntitiesSettings(overlap=4), entity_rows),
    "relations": (relations, RelationsSettings(), relation_rows),
    "answers": (answers, AnswersSettings(overlap=4, allow_unanswerable=True), answer_rows),
}


def outputs_of(name: str, examples: Examples, labels: list[str], rng) -> np.ndarray:
    """Random logits that are right more often than not."""
    n = len(examples) if name == "relations" else len(examples.ids.values)
    logits = rng.normal(size=(n, len(labels))).astype(np.float32)
    if name == "answers":
        for k, target in enumerate(("starts", "ends")):
            logits[examples.ids.offsets[:-1] + examples.targets[target], k] += 1.5
        return logits
    target = examples.targets["labels"]
    values = target if name == "relations" else target.values
    known = np.flatnonzero(values >= 0)
    logits[known, values[known]] += 2
    return logits


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", CASES)
def test_parts_add_up_to_the_scores_of_the_table(name, kind):
    side, settings, rows = CASES[name]
    rng, tok = np.random.default_rng(0), tokenizer(kind)
    table = rows(rng)
    if name == "relations":
        side.add_markers(tok, settings)
    labels = side.find_labels(table, settings)
    examples, reasons = side.prepare(table, tok, labels, settings, max_length=24)
    assert 0 < sum(reason is not None for reason in reasons) < 12
    logits = outputs_of(name, examples, labels, rng)
    whole = scored(side, logits, examples, table, labels, settings)
    assert 0 < whole[side.main_figure(settings)] < 1
    if hasattr(side, "with_truth"):
        assert len(examples) > len(np.unique(examples.row))  # some rows have windows
        examples = side.with_truth(examples, table, labels, settings)
    examples = from_bytes(bytes(to_bytes(examples)))
    examples = Examples(examples.ids, examples.boundary, examples.row + 100, examples.targets, examples.truth)
    per_sequence = len(logits) == len(examples)
    parts = [side.Scores(labels, settings) for _ in range(3)]
    for number, row in enumerate(rng.permutation(np.unique(examples.row))):
        own = np.flatnonzero(examples.row == row)
        a, b = examples.ids.offsets[[own[0], own[-1] + 1]]
        parts[number % 3].add({"logits": logits[own] if per_sequence else logits[a:b]}, examples.take(own))
    for other in parts[1:]:
        parts[0].merge(other.to_json())
    assert parts[0].result() == pytest.approx(whole)
    assert parts[0].result().keys() == whole.keys()


@pytest.mark.parametrize("name", ["entities", "answers"])
def test_truth_stands_at_the_first_sequence_of_a_row(name):
    side, settings, rows = CASES[name]
    rng = np.random.default_rng(0)
    table = rows(rng)
    labels = side.find_labels(table, settings)
    examples, _ = side.prepare(table, tokenizer("wordpiece"), labels, settings, max_length=24)
    assert not examples.truth
    made = side.with_truth(examples, table, labels, settings)
    key = {"entities": "tags", "answers": "answers"}[name]
    lengths = made.truth[key].lengths
    assert lengths[~examples.first].sum() == 0
    if name == "answers":
        assert [bool(x) for x in made.truth["context"]] == examples.first.tolist()
    none, reasons = side.prepare(table.slice(0, 0), tokenizer("wordpiece"), labels, settings, max_length=24)
    stored = from_bytes(bytes(to_bytes(side.with_truth(none, table.slice(0, 0), labels, settings))))
    assert len(stored) == len(reasons) == 0
    assert stored.truth.keys() == made.truth.keys()


def test_lists_written_as_json_become_lists():
    table = pa.table(
        {
            "tags": ['["O", "B-x"]', None, "[]"],
            "text": ["[a]", "b", "c"],
            "bad": ["[1", "[2]", "[3]"],
            "answers": ['{"text": ["a"], "answer_start": [3]}', '{"text": [], "answer_start": []}', None],
        }
    )
    found = unfold(table, ["tags", "text", "bad", "answers", "absent"])
    assert found["tags"].to_pylist() == [["O", "B-x"], None, []]
    assert found["answers"].to_pylist()[0] == {"text": ["a"], "answer_start": [3]}
    assert found["text"].type == found["bad"].type == pa.string()
    with pytest.raises(ValueError, match="column 'tags' holds values of different types"):
        unfold(pa.table({"tags": ['["O"]', "[1]"]}), ["tags"])
