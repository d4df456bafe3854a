"""Sequence to sequence without a model: rows to examples, written texts to scores, bad tables, what the driver refuses."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from raybert.config import ConfigError, load
from raybert.config.finetune import FinetuneConfig
from raybert.config.tasks import GenerationSettings
from raybert.tasks import generation
from raybert.tasks.examples import IGNORED, TARGET_IDS, Examples, Lists
from raybert.tasks.generation import Scores, decode, ends_of, output_fields, prepare, texts_of, with_truth
from raybert.tasks.storage import from_bytes
from raybert.train.example_stream import Cursor, ExampleStream, digests
from raybert.train.task_job import complete_job, prepare_job, refuse_settings
from tests.encoder.tiny import tiny_model
from tests.tasks.toys import KINDS, tokenizer

SETTINGS = GenerationSettings()
ROWS = [
    {"source": "the quick fox", "target": "the lazy dog jumps"},
    {"source": "paris", "target": "york"},
    {"source": "a child", "target": "5 adults and 1 child in paris"},
]


def table(rows=ROWS):
    return pa.Table.from_pylist(rows)


def ids(examples: Examples, row: int) -> list[int]:
    return examples.ids.values[examples.ids.offsets[row] : examples.ids.offsets[row + 1]].tolist()


def target(examples: Examples, row: int) -> list[int]:
    found = examples.targets[TARGET_IDS][row]
    length = int((found != IGNORED).sum())
    assert (found[length:] == IGNORED).all()
    return found[:length].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_is_its_source_framed_and_its_target_ended(kind):
    made_of = tokenizer(kind)
    examples, reasons = prepare(table(), made_of, [], SETTINGS, max_length=32)
    assert not any(reasons)
    start, end = ends_of(made_of)
    for i, row in enumerate(ROWS):
        assert ids(examples, i) == made_of.encode(row["source"]).ids
        assert [start, *target(examples, i)] == made_of.encode(row["target"]).ids
        assert target(examples, i)[-1] == end
    longest = max(len(target(examples, i)) for i in range(3))
    assert examples.targets[TARGET_IDS].shape == (3, longest)
    assert examples.boundary.tolist() == examples.ids.lengths.tolist()
    assert texts_of(examples.targets[TARGET_IDS], made_of)[1] == "york"


def test_long_texts_lose_their_end():
    made_of = tokenizer("wordpiece")
    short = GenerationSettings(max_target_length=4)
    examples, _ = prepare(table(), made_of, [], short, max_length=4)
    assert ids(examples, 0) == [2, *made_of.encode("the quick", add_special_tokens=False).ids, 3]
    assert target(examples, 0) == [*made_of.encode("the lazy dog", add_special_tokens=False).ids, 3]
    assert examples.ids.lengths.max() == 4
    assert examples.targets[TARGET_IDS].shape[1] == 4


def test_without_labels_there_are_no_targets():
    examples, reasons = prepare(table().select(["source"]), tokenizer("bytes"), None, SETTINGS, max_length=32)
    assert examples.targets == {}
    assert len(examples) == len(reasons) == 3
    assert generation.columns(SETTINGS, labelled=False) == ["source"]


def test_rows_that_cannot_be_used_say_why():
    rows = [
        *ROWS,
        {"source": None, "target": "x"},
        {"source": "x", "target": None},
        {"source": "x", "target": "  "},
        {"source": "\u200b", "target": "x"},
        {"source": "x", "target": "\u200b"},
    ]
    examples, reasons = prepare(table(rows), tokenizer("wordpiece"), [], SETTINGS, max_length=32)
    expected = [
        "source is null",
        "target is null",
        "target is empty",
        "source has no tokens",
        "target has no tokens",
    ]
    assert reasons.tolist() == [None, None, None, *expected]
    assert examples.row.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="there is no column 'nope'; the columns are source, target"):
        prepare(table(), tokenizer("bytes"), [], GenerationSettings(target="nope"), max_length=32)
    with pytest.raises(ValueError, match="column 'target' must hold strings, not int64"):
        prepare(table([{"source": "x", "target": 5}]), tokenizer("bytes"), [], SETTINGS, max_length=32)


def test_a_target_has_a_tokenizer_of_its_own(tmp_path):
    made_of, own = tokenizer("wordpiece"), tokenizer("bytes")
    own.save(str(tmp_path / "tokenizer.json"))
    settings = GenerationSettings(target_tokenizer=str(tmp_path))
    examples, _ = prepare(table(), made_of, [], settings, max_length=32)
    assert [ends_of(own)[0], *target(examples, 0)] == own.encode(ROWS[0]["target"]).ids
    assert ids(examples, 0) == made_of.encode(ROWS[0]["source"]).ids
    with pytest.raises(ValueError, match=r"task.target_tokenizer=.*nothing holds no tokenizer.json"):
        prepare(table(), made_of, [], GenerationSettings(target_tokenizer="nothing"), max_length=32)
    with pytest.raises(ValueError, match="puts no special token before and after"):
        ends_of(Tokenizer.from_str(json.dumps({**json.loads(own.to_str()), "post_processor": None})))


def test_a_batch_counts_the_tokens_of_both_sides():
    rng = np.random.default_rng(0)
    sources, targets = rng.integers(3, 9, 40), rng.integers(1, 12, 40)
    written = np.full((40, 11), IGNORED)
    written[np.arange(11) < targets[:, None]] = 5
    lists = Lists(np.full(sources.sum(), 5, np.int32), np.concatenate([[0], np.cumsum(sources)]))
    examples = Examples(lists, sources.astype(np.int32), np.arange(40), {TARGET_IDS: written})
    assert examples.sizes.tolist() == (sources + targets).tolist()
    stream = ExampleStream(examples, seed=0, batch_size=40, batch_tokens=60)
    batch = stream.read(Cursor())
    sizes = [int(micro.examples.sizes.sum()) for _, micro in batch.micro]
    assert sum(sizes) == (sources + targets).sum()
    assert max(sizes) <= 60 < max(sizes) + 20
    with pytest.raises(ValueError, match="smaller than the longest row"):
        ExampleStream(examples, seed=0, batch_size=40, batch_tokens=int(examples.sizes.max()) - 1)
    other = written.copy()
    other[3, 0] = 6
    changed = Examples(lists, examples.boundary, examples.row, {TARGET_IDS: other})
    assert (digests(changed) != digests(examples)).tolist() == [i == 3 for i in range(40)]


WRITTEN = [
    "Ein Mann läuft, die Straße entlang.",
    "Zwei Hunde",
    "Ein Haus steht am großen See",
    "",
    "Der Hund rennt",
]
WANTED = [
    "Ein Mann läuft die Straße entlang.",
    "Zwei Hunde spielen.",
    "Ein Haus am großen See",
    "Ein Ball",
    "Der Hund rennt",
]


def scored(first: int, stop: int, **settings) -> Scores:
    n = stop - first
    one = Lists(np.zeros(n, np.int32), np.arange(n + 1))
    truth = {"reference": np.array(WANTED[first:stop], object)}
    examples = Examples(one, np.ones(n, np.int32), np.arange(n), {}, truth)
    scores = Scores([], GenerationSettings(**settings))
    scores.add({"text": np.array(WRITTEN[first:stop], object)}, examples)
    outputs = {"nll": np.arange(first, stop) + 0.5, "right": np.ones(n), "tokens": np.full(n, 2.0)}
    scores.add(outputs, examples)
    return scores


def test_scores_are_those_of_sacrebleu_on_the_whole_corpus():
    sacrebleu = pytest.importorskip("sacrebleu")
    found = scored(0, 5).result()
    assert found["bleu"] == pytest.approx(sacrebleu.corpus_bleu(WRITTEN, [WANTED]).score)
    assert found["chrf"] == pytest.approx(sacrebleu.corpus_chrf(WRITTEN, [WANTED]).score)
    assert 20 < found["bleu"] < found["chrf"] < 90
    characters = scored(0, 5, bleu_tokenizer="char").result()["bleu"]
    assert characters == pytest.approx(sacrebleu.corpus_bleu(WRITTEN, [WANTED], tokenize="char").score)
    assert characters != found["bleu"]


def test_parts_merge_to_the_whole():
    whole = scored(0, 5).result()
    parts = [scored(0, 2), scored(2, 3), scored(3, 5)]
    for part in parts[1:]:
        parts[0].merge(part.to_json())
    assert parts[0].result() == pytest.approx(whole, rel=1e-6)
    empty = Scores([], SETTINGS)
    empty.merge(parts[0].to_json())
    assert empty.result() == parts[0].result()


def test_rouge_counts_words_of_any_script():
    """Of the first row 6 words match 6; of the second 2 of 2 written and 3 wanted; of the third 5 of 6 and 5; none of the
    fourth; 3 of 3."""
    pytest.importorskip("torchmetrics")
    found = scored(0, 5).result()
    assert found["rouge1"] == pytest.approx(100 * (1 + 0.8 + 10 / 11 + 0 + 1) / 5, rel=1e-5)
    assert found["rougeL"] == found["rouge1"]
    # pairs of words: 5 of 5; 1 of 1 and 2; 3 of 5 and 4; none; 2 of 2
    assert found["rouge2"] == pytest.approx(100 * (1 + 2 / 3 + 2 / 3 + 0 + 1) / 5, rel=1e-5)


def test_likelihood_is_a_mean_over_tokens():
    found = scored(0, 5).result()
    assert found["perplexity"] == pytest.approx(math.exp((0.5 + 1.5 + 2.5 + 3.5 + 4.5) / 10))
    assert found["token_accuracy"] == 0.5


def test_what_was_written_becomes_rows():
    examples, _ = prepare(table(), tokenizer("bytes"), [], SETTINGS, max_length=32)
    found = decode({"text": np.array(["a", "b", "c"], object)}, examples, [], SETTINGS)
    assert found == [{"text": "a"}, {"text": "b"}, {"text": "c"}]
    assert output_fields(SETTINGS) == {"text": pa.string()}
    truth = with_truth(examples, table(), [], SETTINGS).truth["reference"]
    assert truth.tolist() == [row["target"] for row in ROWS]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny_model(tmp_path_factory.mktemp("model"), st=False)


def config_of(model: Path, path: Path, **changes) -> FinetuneConfig:
    settings = {
        "model.name": str(model),
        "model.max_length": 32,
        "data.path": str(path),
        "data.validation": str(path),
        "output.path": "out",
        "task.max_target_length": 32,
        **changes,
    }
    return load(
        FinetuneConfig, file=str(Path(__file__).parents[2] / "jobs" / "translate.yaml"), settings=settings
    )


def test_a_table_becomes_a_job(model, tmp_path):
    pq.write_table(table([*ROWS, {"source": "x", "target": ""}]), tmp_path / "rows.parquet")
    other = tiny_model(tmp_path / "roberta", "roberta", st=False)
    words = {"task.target_tokenizer": str(other)}
    prepared = prepare_job(config_of(model, tmp_path / "rows.parquet", **words))
    job = prepared.job
    assert (job["task"], job["labels"], job["metric"]) == ("generation", [], "loss")
    assert job["rows"]["train"]["rejected"] == {"target is empty": 1}
    facts = job["decoder"]
    own = Tokenizer.from_file(str(other / "tokenizer.json"))
    assert facts["name"] == str(model)
    assert (facts["start"], facts["end"]) == ends_of(own)
    assert (facts["vocabulary"], facts["known_words"], facts["own_tokenizer"]) == (500, False, True)
    saved = prepared.files["_raybert/tokenizer/target_tokenizer/tokenizer.json"].decode()
    assert Tokenizer.from_str(saved).get_vocab() == own.get_vocab()
    validation = from_bytes(prepared.files["_raybert/examples/validation.parquet"])
    assert validation.truth["reference"].tolist() == [row["target"] for row in ROWS]
    assert from_bytes(prepared.files["_raybert/examples/train.parquet"]).truth == {}
    complete_job(prepared, config_of(model, tmp_path / "rows.parquet"), gpu=False, workers=1)
    same = prepare_job(config_of(model, tmp_path / "rows.parquet", **{"task.generate": "evaluations"})).job
    assert (same["decoder"]["known_words"], same["decoder"]["own_tokenizer"]) == (True, False)
    assert same["metric"] == "bleu"
    crossed = prepare_job(
        config_of(model, tmp_path / "rows.parquet", **words, **{"task.decoder": str(other)})
    ).job
    assert (crossed["decoder"]["known_words"], crossed["decoder"]["own_tokenizer"]) == (True, True)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"adapter.name": "lora"}, "adapter.name=lora does not go with task.name=generation"),
        ({"task.share": True, "freeze.layers": 1}, "task.share=true makes the encoder's layers"),
        ({"task.share": True, "task.decoder": "x"}, "task.share=true begins with the encoder's weights"),
        ({"task.generate": "evaluations", "train.zero": 3}, "task.generate=evaluations needs whole weights"),
        ({"task.source": "text", "task.target": "text"}, "task.source and task.target are both 'text'"),
        ({"task.source": "nope"}, "task.source=nope: there is no such column"),
        ({"task.target": "nope"}, "task.target=nope: there is no such column"),
        ({"data.text": "body"}, "data.text means nothing with task.name=generation"),
        ({"task.decoder_layers": 3}, "task.decoder_layers=3, but model.name=.* has 2 layers"),
        ({"task.max_target_length": 65}, "task.max_target_length=65, but model.name=.* takes 64 tokens"),
        ({"task.max_new_tokens": 65}, "task.max_new_tokens=65, but model.name=.* takes 64 tokens"),
        ({"task.target_tokenizer": "nothing"}, "task.target_tokenizer=nothing holds no tokenizer.json"),
        ({"task.decoder": "distilbert"}, "is a distilbert model, which cannot be a decoder"),
    ],
)
def test_what_cannot_work_is_refused_in_one_line(changes, message, model, tmp_path):
    pq.write_table(table(), tmp_path / "rows.parquet")
    if changes.get("task.decoder") == "distilbert":
        changes = {"task.decoder": str(tiny_model(tmp_path / "other", "distilbert", st=False))}

    def job():
        config = config_of(model, tmp_path / "rows.parquet", **changes)
        refuse_settings(config)
        return prepare_job(config)

    with pytest.raises((ValueError, ConfigError), match=message):
        job()


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(generation, "_PACKAGES", ("sacrebleu", "no_such_package"))
    with pytest.raises(ValueError, match=r"need no_such_package: pip install 'raybert\[generation\]'"):
        generation.refuse_missing(SETTINGS)
    generation.refuse_missing(GenerationSettings(generate="never"))
