"""Documents to token shards with a real tokenizer on a real Ray."""

import hashlib
import json
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raybert import prepare, verify, vocabulary
from raybert.pretrain import google
from raybert.pretrain.documents import bare_tokenizer, tokens_of
from tests.conftest import WORDS, raybert

pytestmark = pytest.mark.usefixtures("ray_local")


def documents(count, words=WORDS, seed=0):
    """Texts of 1 to 8 sentences."""
    dice = random.Random(seed)
    return [
        " ".join(
            " ".join(dice.choices(words, k=dice.randint(3, 20))).capitalize() + "."
            for _ in range(dice.randint(1, 8))
        )
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    pq.write_table(pa.table({"text": documents(300)}), folder / "docs.parquet")
    found, texts, size = vocabulary(
        {
            "data.path": str(folder / "docs.parquet"),
            "output.path": str(folder / "out"),
            "vocabulary.size": 300,
        }
    )
    assert texts == 300
    assert 30 < size <= 300
    return found


@pytest.fixture
def job(tmp_path, tokenizer):
    """Run prepare on tmp_path/in -> tmp_path/out with small shards; keywords are settings with __ for dots."""

    def go(**settings):
        keys = {key.replace("__", "."): value for key, value in settings.items()}
        defaults = {
            "model.name": str(tokenizer),
            "data.path": str(tmp_path / "in"),
            "output.path": str(tmp_path / "out"),
            "output.rows_per_shard": 20,
            "prepare.max_length": 48,
            "workers": {"count": 1, "cpus": 1},
        }
        return prepare({**defaults, **keys})

    return go


def write(path, texts):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"text": texts}), path)


def output(tmp_path):
    return pq.read_table(tmp_path / "out/data")


def hashes(tmp_path):
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in (tmp_path / "out/data").iterdir()}


def metadata(tmp_path):
    file = next((tmp_path / "out/data").iterdir())
    return json.loads(pq.read_schema(file).metadata[b"raybert"])


@pytest.mark.parametrize("objective", ["nsp", "sop", "full", "document"])
def test_every_document_becomes_instances_or_says_why_not(objective, tmp_path, tokenizer, job):
    texts = documents(45)
    texts[7], texts[11] = "", None
    write(tmp_path / "in/a.parquet", texts)
    report = job(prepare__objective=objective)
    table, about = output(tmp_path), metadata(tmp_path)
    assert (report.rows, report.embedded + report.rejected) == (45, 45)
    assert report.vectors == table.num_rows > 0
    assert report.tokens == sum(table["length"].to_pylist())
    assert set(report.reasons) <= {"empty", "null", "nothing to train on"}
    assert about["objective"] == objective
    special = dict(
        zip(
            ("cls", "sep"),
            map(bare_tokenizer((tokenizer / "tokenizer.json").read_text()).token_to_id, ("[CLS]", "[SEP]")),
            strict=True,
        )
    )
    for row in table.to_pylist():
        ids = row["ids"]
        assert len(ids) == len(row["starts"]) == row["length"] <= 48
        assert (ids[0], ids[-1]) == (special["cls"], special["sep"])
        if row["label"] >= 0:
            assert ids[row["boundary"] - 1] == special["sep"]
            assert ids.count(special["sep"]) == 2
    assert set(table["label"].to_pylist()) == ({0, 1} if objective in ("nsp", "sop") else {-1})
    assert verify(str(tmp_path / "out")).problems == []


def test_no_token_of_a_document_is_lost(tmp_path, tokenizer, job):
    texts = documents(30, seed=3)
    write(tmp_path / "in/a.parquet", texts)
    job(prepare__objective="document")
    plain = bare_tokenizer((tokenizer / "tokenizer.json").read_text())
    found = {}
    for row in output(tmp_path).to_pylist():
        found.setdefault(int(row["document"].rpartition(":")[2]), []).extend(row["ids"][1:-1])
    assert found == {i: plain.encode(text).ids for i, text in enumerate(texts)}


def test_documents_that_share_an_instance_are_all_used(tmp_path, job):
    write(tmp_path / "in/a.parquet", ["the fox.", "a lazy dog.", "reads.", "\x01"])
    report = job(prepare__objective="full")
    assert (report.vectors, report.embedded, report.rejected) == (1, 3, 1)
    assert report.reasons == {"nothing to train on": 1}


def test_an_interrupted_job_ends_byte_identical(tmp_path, job):
    write(tmp_path / "in/a.parquet", documents(45))
    write(tmp_path / "in/b.parquet", documents(30, seed=1))
    job()
    before = hashes(tmp_path)
    assert len(before) >= 4
    for name in sorted(before)[1::2]:
        (tmp_path / f"out/_raybert/commits/{name.removesuffix('.parquet')}.json").unlink()
        (tmp_path / "out/data" / name).unlink()
    report = job()
    assert hashes(tmp_path) == before
    assert report.rows == 75
    with pytest.raises(ValueError, match=r"prepare.seed=1 \(was 12345\)"):
        job(prepare__seed=1)


def test_random_next_sentences_come_from_other_files_too(tmp_path, tokenizer, job):
    half = len(WORDS) // 2
    write(tmp_path / "in/a.parquet", documents(120, WORDS[:half]))
    write(tmp_path / "in/b.parquet", documents(120, WORDS[half:], seed=1))
    job(output__rows_per_shard=10)  # many shards: names decide what is drawn, and they hold the folder's path
    plain = bare_tokenizer((tokenizer / "tokenizer.json").read_text())
    first = {plain.token_to_id(word) for word in WORDS[:half]}
    kinds = {0: set(), 1: set()}
    for row in output(tmp_path).to_pylist():
        a, b = row["ids"][1 : row["boundary"] - 1], row["ids"][row["boundary"] : -1]
        kinds[row["label"]].add((any(i in first for i in a), any(i in first for i in b)))
    assert kinds[0] == {(True, True), (False, False)}
    assert kinds[1] == {(True, True), (True, False), (False, True), (False, False)}


def test_compatible_mode_is_googles_script_on_every_file(tmp_path, tokenizer, job):
    (tmp_path / "in").mkdir()
    lines = ["\n".join(text.split(". ")) for text in documents(12, seed=5)]
    for name, part in (("a.txt", lines[:7]), ("b.txt", lines[7:])):
        # a line ends at a line feed alone
        (tmp_path / "in" / name).write_text("\n\n".join(part).replace(" fox", "\u2028fox") + "\n")
    settings = {"max_length": 32, "duplicates": 3, "max_predictions": 5, "seed": 7, "whole_words": True}
    job(
        **{f"prepare__{key}": value for key, value in settings.items()},
        prepare__compatible=True,
        data__format="documents",
    )
    text = (tokenizer / "tokenizer.json").read_text()
    plain = bare_tokenizer(text)
    table = output(tmp_path).to_pylist()
    for number, name in enumerate(("a.txt", "b.txt")):
        parts = google.split_documents((tmp_path / "in" / name).open(newline="\n").readlines())
        tokens = [[found for line in part if (found := plain.encode(line).tokens)] for part in parts]
        seed = settings["seed"]
        others = {key: value for key, value in settings.items() if key != "seed"}
        expected = google.create_instances(tokens, tokens_of(text), random.Random(seed), **others)
        rows = [row for row in table if row["document"].endswith(f":{number}")]
        assert len(rows) == len(expected) > 10
        for row, instance in zip(rows, expected, strict=True):
            assert [plain.id_to_token(i) for i in row["ids"]] == instance.tokens
            assert [int(i >= row["boundary"]) for i in range(row["length"])] == instance.segment_ids
            assert bool(row["label"]) == instance.is_random_next
            assert row["masked_positions"] == instance.masked_positions
            assert [plain.id_to_token(i) for i in row["masked_labels"]] == instance.masked_labels


def test_compatible_tokens_are_those_of_bert(tmp_path, job):
    """A word of 150 letters is cut into pieces, and "[MASK]" in a text is three tokens."""
    folder = tmp_path / "model"
    folder.mkdir()
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##a", "[", "]", "mask", "fox", "."]
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_text("Fox [MASK].\n\n" + "A" * 150 + "\n")
    job(
        model__name=str(folder),
        data__format="documents",
        prepare__compatible=True,
        prepare__max_length=256,
        prepare__mask_probability=0.01,
        prepare__short_probability=0.0,
    )
    row = max(output(tmp_path).to_pylist(), key=lambda row: row["length"])
    for at, label in zip(row["masked_positions"], row["masked_labels"], strict=True):
        row["ids"][at] = label
    found = sorted(" ".join(tokens[i] for i in row["ids"][1:-1]).split(" [SEP] "))
    assert found == sorted(["fox [ mask ] .", "a" + " ##a" * 149])


def test_documents_apart_by_empty_lines(tmp_path, job):
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.txt").write_text("the quick fox\na lazy dog\n\nreads gzip files\n\n\nand writes\n")
    job(data__format="documents", prepare__sentences="lines", prepare__objective="document")
    assert len(output(tmp_path)) == 3


def test_unwanted_documents_are_counted(tmp_path, job):
    repeated = "a lazy dog\na lazy dog\na lazy dog\nthe fox"
    write(tmp_path / "in/a.parquet", [*documents(5), "fox", repeated])
    report = job(prepare__min_chars=5, prepare__max_repeated=0.4, prepare__objective="document")
    assert (report.embedded, report.rejected) == (5, 2)
    reasons = pq.read_table(tmp_path / "out/_rejects")["reason"].to_pylist()
    assert reasons == [
        "shorter than prepare.min_chars=5",
        "more than prepare.max_repeated=0.4 of its lines repeat others",
    ]


def test_repeated_documents_are_left_out_and_the_first_stays(tmp_path, job):
    texts = documents(40)
    write(tmp_path / "in/b.parquet", [*texts[:30], texts[3], None, None, texts[29]])
    settings = {"prepare__deduplicate": True, "prepare__objective": "document"}
    report = job(**settings)
    assert report.reasons == {"null": 2, "the text of an earlier document": 2}
    before = hashes(tmp_path)
    # a.parquet sorts before b.parquet, but what is done stays done
    write(tmp_path / "in/a.parquet", [texts[0], *texts[30:], texts[35]])
    report = job(**settings)
    assert report.reasons == {"null": 2, "the text of an earlier document": 4}
    assert before.items() <= hashes(tmp_path).items()
    found = {}
    for row in output(tmp_path).to_pylist():
        found.setdefault(row["document"], []).extend(row["ids"])
    assert len({tuple(ids) for ids in found.values()}) == len(found) == 40


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"data__columns": ["n"]}, "data.columns cannot be kept"),
        ({"prepare__compatible": True}, "needs data.format=documents"),
        ({"prepare__objective": "mlm"}, "prepare.objective='mlm' does not fit"),
    ],
)
def test_settings_that_cannot_be_used_are_named(settings, message, tmp_path, job):
    write(tmp_path / "in/a.parquet", documents(3))
    with pytest.raises(ValueError, match=message):
        job(**settings)
    assert not (tmp_path / "out").exists()


def test_the_folder_carries_its_tokenizer(tmp_path, tokenizer, job):
    from transformers import AutoTokenizer

    write(tmp_path / "in/a.parquet", documents(10))
    job()
    kept, given = (AutoTokenizer.from_pretrained(path) for path in (tmp_path / "out/tokenizer", tokenizer))
    text = "The quick fox, réads gzip."
    assert kept(text)["input_ids"] == given(text)["input_ids"]
    about = metadata(tmp_path)
    assert (about["vocabulary"], about["mask_id"]) == (len(given), given.mask_token_id)
    assert about["special_ids"] == sorted(given.all_special_ids)


def test_damage_is_found(tmp_path, job, capsys):
    write(tmp_path / "in/a.parquet", documents(10))
    job()
    (file, *_) = (tmp_path / "out/data").iterdir()
    table = pq.read_table(file)
    ids = table["ids"].combine_chunks()
    broken = pa.ListArray.from_arrays(ids.offsets, pa.array(np.full(len(ids.flatten()), 60000, np.uint16)))
    pq.write_table(table.set_column(0, table.schema.field("ids"), broken), file)
    problems = verify(str(tmp_path / "out")).problems
    assert any("an id beyond the vocabulary, first in row 0" in problem for problem in problems)
    assert any("sha256 differs" in problem or "bytes where" in problem for problem in problems)


def test_the_commands(tmp_path, tokenizer):
    write(tmp_path / "in/a.parquet", documents(10))
    settings = [f"model.name={tokenizer}", f"data.path={tmp_path / 'in'}", f"output.path={tmp_path / 'out'}"]
    assert "dry run: nothing was written" in raybert("prepare", *settings, "dry_run=true").stdout
    assert not (tmp_path / "out").exists()
    full = raybert("vocabulary", f"data.path={tmp_path / 'in'}", f"output.path={tokenizer}", check=False)
    assert full.returncode == 2
    assert "is not empty: give a new or empty folder" in full.stderr
