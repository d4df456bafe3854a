"""Entities: alignment to pieces, windows, schemes and their errors, spans, and scores against conlleval's definition."""

from unittest.mock import ANY

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raybert.config.tasks import EntitiesSettings
from raybert.tasks import entities
from raybert.tasks.entity_rows import true_tags
from raybert.tasks.examples import IGNORED, Examples, Lists
from raybert.tasks.sequences import windows
from raybert.tasks.tags import EntityScores, all_tags
from raybert.tasks.words import find_words
from tests.conftest import SHARED
from tests.tasks.by_table import decoded, scored
from tests.tasks.toys import KINDS, tokenizer

BIO = EntitiesSettings()
SPANS = EntitiesSettings(text="text")
LABELS = all_tags(["LOC", "PER"], "bio")
TOKENIZERS = {kind: tokenizer(kind) for kind in KINDS}
WNUT = SHARED / "wnut17"


def table(tokens: list[list[str] | None], tags: list[list[str | None] | None]) -> pa.Table:
    lists = pa.list_(pa.string())
    return pa.table({"tokens": pa.array(tokens, lists), "tags": pa.array(tags, lists)})


def span_table(*rows: tuple[str, list[tuple[int, int, str]]]) -> pa.Table:
    spans = [[dict(zip(("start", "end", "label"), s, strict=True)) for s in spans] for _, spans in rows]
    kind = pa.list_(pa.struct({"start": pa.int64(), "end": pa.int64(), "label": pa.string()}))
    return pa.table({"text": [text for text, _ in rows], "entities": pa.array(spans, kind)})


def perfect(examples: Examples, labels: list[str]) -> np.ndarray:
    """Logits that are right wherever there is a target."""
    target = examples.targets["labels"].values
    logits = np.random.default_rng(0).normal(size=(len(target), len(labels)))
    known = np.flatnonzero(target != IGNORED)
    logits[known, target[known]] = 9
    return logits


def in_rows(logits: np.ndarray, made: Examples, table: pa.Table) -> list[list[dict] | None]:
    """The entities of every row of texts."""
    rows = decoded(entities, logits, made, table, LABELS, SPANS)
    return [row and row["entities"] for row in rows]


def reason(tokens: list[str] | None, tags: list[str | None] | None, **changes: object) -> str | None:
    settings = EntitiesSettings(**changes)
    good = (["a"], ["B-LOC"])
    _, reasons = entities.prepare(
        table([good[0], tokens], [good[1], tags]), TOKENIZERS["wordpiece"], LABELS, settings, max_length=32
    )
    assert reasons[0] is None
    return reasons[1]


# --- alignment


def test_the_label_is_on_the_first_piece_of_a_word():
    rows = table([["Jumping", "in", "New", "Yorks", "!"]], [["O", "O", "B-LOC", "I-LOC", "O"]])
    made, reasons = entities.prepare(rows, TOKENIZERS["wordpiece"], LABELS, BIO, max_length=32)
    pieces = [TOKENIZERS["wordpiece"].id_to_token(i) for i in made.ids.values]
    assert pieces == ["[CLS]", "jump", "##ing", "in", "new", "york", "##s", "!", "[SEP]"]
    x, o, b, i = IGNORED, LABELS.index("O"), LABELS.index("B-LOC"), LABELS.index("I-LOC")
    assert made.targets["labels"].values.tolist() == [x, o, x, o, b, i, x, o, x]
    assert made.targets["words"].values.tolist() == [x, 0, x, 1, 2, 3, x, 4, x]
    assert made.targets["words_end"].values.tolist() == [x, 1, x, 2, 3, 4, x, 5, x]
    assert made.boundary.tolist() == [9]
    assert reasons.tolist() == [None]


@pytest.mark.parametrize(
    ("labels", "tags", "expected"),
    [
        (LABELS, ["B-LOC", "I-LOC"], ["B-LOC", "I-LOC", "I-LOC", "I-LOC"]),
        (all_tags(["LOC"], "bioes"), ["B-LOC", "I-LOC"], ["B-LOC", "I-LOC", "E-LOC", "E-LOC"]),
        (all_tags(["LOC"], "bioes"), ["B-LOC", "O"], ["S-LOC", "E-LOC", "O", "O"]),
    ],
)
def test_label_all_goes_on_through_the_word(labels, tags, expected):
    settings = EntitiesSettings(label_all=True)
    made, _ = entities.prepare(
        table([["jumped", "jumping"]], [tags]), TOKENIZERS["wordpiece"], labels, settings, max_length=32
    )
    assert [labels[i] for i in made.targets["labels"].values[1:-1]] == expected


def test_a_word_without_tokens_is_predicted_as_o():
    # BERT's normalizer drops control characters
    rows = table([["Paris", "\u200b\u0001", "York"]], [["B-LOC", "B-LOC", "I-LOC"]])
    made, _ = entities.prepare(rows, TOKENIZERS["wordpiece"], LABELS, BIO, max_length=32)
    assert made.targets["words"].values[made.targets["words"].values != IGNORED].tolist() == [0, 2]
    found = entities.predict(perfect(made, LABELS), made, BIO)
    _, tags, _ = entities.assemble(found, np.array([3]), LABELS)
    assert [LABELS[i] for i in tags.values] == ["B-LOC", "O", "I-LOC"]
    # the truth keeps the word: its entity is missed, not forgotten
    assert scored(entities, perfect(made, LABELS), made, rows, LABELS, BIO)["LOC_support"] == 2


def test_a_piece_that_runs_on_predicts_both_words():
    rows = span_table(("dog (in Paris).", [(5, 15, "LOC")]))
    made, reasons = entities.prepare(rows, TOKENIZERS["unigram"], LABELS, SPANS, max_length=32)
    assert reasons.tolist() == [None]
    widest = int((made.targets["words_end"].values - made.targets["words"].values).max())
    assert widest == 2, "this tokenizer has a piece `).`"
    ((entity,),) = in_rows(perfect(made, LABELS), made, rows)
    assert entity == {"start": 5, "end": 15, "label": "LOC", "text": "in Paris).", "score": ANY}


def test_a_piece_that_ends_a_word_and_holds_the_next_predicts_the_next():
    rows = span_table(("fox dogs!", [(8, 9, "PER")]))
    made, _ = entities.prepare(rows, TOKENIZERS["unigram"], LABELS, SPANS, max_length=32)
    assert [TOKENIZERS["unigram"].id_to_token(i) for i in made.ids.values] == [
        "<s>",
        "▁fox",
        "▁dog",
        "s!",
        "</s>",
    ]
    assert made.targets["words"].values[1:-1].tolist() == [0, 1, 2]
    assert [LABELS[i] for i in made.targets["labels"].values[1:-1]] == ["O", "O", "B-PER"]


WORD = st.text("abcdefgNYP019.,!-'()é中文😀", min_size=1, max_size=9)


@st.composite
def labelled(draw: st.DrawFn) -> tuple[list[list[str]], list[list[str]]]:
    rows = draw(st.lists(st.lists(WORD, min_size=1, max_size=25), min_size=1, max_size=4))
    tags = []
    for words in rows:
        row: list[str] = []
        for _ in words:
            ways = ["O", "B-LOC", "B-PER"] + ([f"I-{row[-1][2:]}"] if row and row[-1] != "O" else [])
            row.append(draw(st.sampled_from(ways)))
        tags.append(row)
    return rows, tags


@settings(max_examples=60, deadline=None)
@given(
    labelled(), st.sampled_from(KINDS), st.integers(5, 40), st.integers(0, 20), st.booleans(), st.randoms()
)
def test_every_word_is_predicted_once_and_right_predictions_score_one(
    rows, kind, longest, overlap, every, random
):
    words, tags = rows
    given_table, settings = table(words, tags), EntitiesSettings(overlap=overlap, label_all=every)
    made, reasons = entities.prepare(given_table, TOKENIZERS[kind], LABELS, settings, max_length=longest)
    assert reasons.tolist() == [None] * len(words)
    assert made.ids.lengths.max() <= longest
    assert (made.boundary == made.ids.lengths).all()
    assert (np.diff(made.row) >= 0).all()
    # a row that fits has the ids that the tokenizer gives the plain text
    for row, text in enumerate(map(" ".join, words)):
        ids = TOKENIZERS[kind].encode(text).ids
        if len(ids) <= longest:
            (place,) = np.flatnonzero(made.row == row)
            assert made.ids.take(np.array([place])).values.tolist() == ids
    # batches in any order, the windows of a row apart
    order = list(range(len(made)))
    random.shuffle(order)
    parts = []
    for at in order:
        one = made.take(np.array([at]))
        parts.append(entities.predict(perfect(one, LABELS), one, settings))
    found = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    seen = sorted(
        (r, w)
        for r, a, b in zip(found["row"], found["word"], found["word_end"], strict=True)
        for w in range(a, b)
    )
    assert seen == [(row, word) for row, each in enumerate(words) for word in range(len(each))]
    scores = scored(entities, perfect(made, LABELS), made, given_table, LABELS, settings)
    assert scores["accuracy"] == 1
    if any(tag != "O" for row in tags for tag in row):
        assert scores["f1"] == 1


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.integers(1, 15)), min_size=1, max_size=5), st.integers(0, 20)
)
def test_a_window_owns_the_tokens_that_have_most_context_in_it(rows, overlap):
    lengths, room = np.array(rows).T
    cut = windows(lengths, room, overlap)
    for row, (length, most) in enumerate(rows):
        mine = np.flatnonzero(cut.row == row)
        starts, stops = cut.start[mine], cut.stop[mine]
        assert (stops - starts == min(length, most)).all()
        shared = stops[:-1] - starts[1:]
        assert (shared >= min(overlap, most // 2)).all()
        for token in range(length):
            owners = np.flatnonzero((cut.own_start[mine] <= token) & (token < cut.own_stop[mine]))
            assert len(owners) == 1
            context = np.minimum(token - starts, stops - 1 - token)
            assert context[owners[0]] == context.max()
            assert context[owners[0]] >= 0


# --- schemes and errors


@pytest.mark.parametrize(
    ("tags", "labels", "expected"),
    [
        ("B-LOC E-LOC O S-PER B-LOC I-LOC E-LOC", "bio", "B-LOC I-LOC O B-PER B-LOC I-LOC I-LOC"),
        ("B-LOC L-LOC O U-PER B-LOC I-LOC L-LOC", "bio", "B-LOC I-LOC O B-PER B-LOC I-LOC I-LOC"),
        ("B-LOC I-LOC O B-PER B-LOC I-LOC I-LOC", "bioes", "B-LOC E-LOC O S-PER B-LOC I-LOC E-LOC"),
        ("B-LOC L-LOC O U-PER B-LOC I-LOC L-LOC", "bioes", "B-LOC E-LOC O S-PER B-LOC I-LOC E-LOC"),
        ("B-LOC B-LOC I-LOC O B-LOC I-LOC B-PER", "bio", "B-LOC B-LOC I-LOC O B-LOC I-LOC B-PER"),
    ],
)
def test_any_scheme_is_read_and_written_in_that_of_the_labels(tags, labels, expected):
    rows, names = table([["w"] * 7], [tags.split()]), all_tags(["LOC", "PER"], labels)
    true = true_tags(rows, names, BIO)
    assert true.reasons.tolist() == [None]
    assert [names[i] for i in true.tags.values] == expected.split()


def test_labels_are_o_then_the_sorted_tags_of_all_types():
    rows = table([["a", "b"], ["c"]], [["B-PER", "O"], ["B-LOC"]])
    assert entities.find_labels(rows, BIO) == ["O", "B-LOC", "B-PER", "I-LOC", "I-PER"]
    bioes = ["O", "B-LOC", "B-PER", "E-LOC", "E-PER", "I-LOC", "I-PER", "S-LOC", "S-PER"]
    assert entities.find_labels(rows, EntitiesSettings(scheme="bioes")) == bioes
    assert entities.find_labels(span_table(("a b", [(0, 1, "X-Y")])), SPANS) == ["O", "B-X-Y", "I-X-Y"]
    with pytest.raises(ValueError, match="names no entity"):
        entities.find_labels(table([["a"]], [["O"]]), BIO)


@pytest.mark.parametrize(
    ("tokens", "tags", "expected"),
    [
        (["a", "b"], ["O", "I-LOC"], "tag 2 is I-LOC after O; an entity begins with B-LOC"),
        (["a", "b"], ["I-LOC", "I-LOC"], "tag 1 is I-LOC after nothing; an entity begins with B-LOC"),
        (["a", "b"], ["B-PER", "I-LOC"], "tag 2 is I-LOC after B-PER; an entity begins with B-LOC"),
        (["a", "b", "c"], ["B-LOC", "O", "X-LOC"], "tag 3 is 'X-LOC'; tags are O and B-type, I-type"),
        (["a"], ["LOC"], "tag 1 is 'LOC'; tags are O and B-type, I-type"),
        (["a"], ["B-"], "tag 1 is 'B-'; tags are O and B-type, I-type"),
        (["a"], [None], "tag 1 is None; tags are O and B-type, I-type"),
        (["a", "b"], ["X"], "tokens has 2 words, but tags has 1 tags"),
        (["a", "b"], ["O"], "tokens has 2 words, but tags has 1 tags"),
        ([], [], "tokens is an empty list"),
        (None, ["O"], "tokens is null"),
        (["a"], None, "tags is null"),
        (["a", None], ["O", "O"], "word 2 of tokens is null"),
        (["\u200b\u0001"], ["O"], "no word has tokens"),
    ],
)
def test_a_row_with_wrong_tags_is_rejected_saying_which(tokens, tags, expected):
    assert reason(tokens, tags).removesuffix(" (or set task.errors=repair)") == expected


def test_bioes_errors_name_what_does_not_end():
    rows = [
        ["B-LOC", "I-LOC", "O"],
        ["S-LOC", "E-LOC", "O"],
        ["B-LOC", "B-LOC", "E-LOC"],
        ["S-LOC", "B-LOC", "E-LOC"],
    ]
    _, reasons = entities.prepare(
        table([["a", "b", "c"]] * 4, rows), TOKENIZERS["bytes"], LABELS, BIO, max_length=32
    )
    assert [r and r.partition(" (or")[0] for r in reasons] == [
        "tag 2 is I-LOC before O, which does not end the entity",
        "tag 2 is E-LOC after S-LOC; an entity begins with B-LOC",
        "tag 1 is B-LOC before B-LOC, which does not end the entity",
        None,
    ]


def test_repair_reads_tags_as_conlleval_does():
    rows = [["O", "I-LOC", "I-LOC"], ["B-PER", "I-LOC", "O"], ["B-LOC", "I-LOC", "O"]]
    true = true_tags(table([["a", "b", "c"]] * 3, rows), LABELS, EntitiesSettings(errors="repair"))
    assert [LABELS[i] for i in true.tags.values] == [
        "O",
        "B-LOC",
        "I-LOC",
        "B-PER",
        "B-LOC",
        "O",
        "B-LOC",
        "I-LOC",
        "O",
    ]
    assert true.repaired.tolist() == [True, True, False]
    assert true.reasons.tolist() == [None] * 3
    rejected = true_tags(table([["a", "b", "c"]] * 3, rows), LABELS, BIO)
    assert rejected.repaired.tolist() == [False] * 3
    assert [why is None for why in rejected.reasons] == [False, False, True]
    assert np.diff(rejected.words.offsets).tolist() == [0, 0, 3]


def test_tables_that_cannot_be_used_say_why():
    def prepare(
        rows: pa.Table, labels: list[str] = LABELS, settings: EntitiesSettings = BIO, **limit: int
    ) -> None:
        entities.prepare(
            rows, TOKENIZERS["wordpiece"], labels, settings, max_length=limit.get("max_length", 32)
        )

    good = table([["a"]], [["B-LOC"]])
    with pytest.raises(ValueError, match="no column 'tags'; the columns are tokens"):
        prepare(good.select(["tokens"]))
    with pytest.raises(ValueError, match=r"'tags' must hold lists of strings, not list<.*int64>"):
        prepare(pa.table({"tokens": [["a"]], "tags": [[1]]}))
    with pytest.raises(ValueError, match="'tokens' must hold lists of strings, not string"):
        prepare(pa.table({"tokens": ["a"], "tags": [["O"]]}))
    with pytest.raises(ValueError, match=r"'tags' has labels that are not in the training data: GPE, ORG$"):
        prepare(table([["a", "b", "c"]], [["B-ORG", "B-LOC", "B-GPE"]]))
    with pytest.raises(ValueError, match=r"mix BIOES .* and BILOU"):
        prepare(table([["a", "b"]], [["S-LOC", "U-LOC"]]))
    with pytest.raises(ValueError, match="'LABEL_0' is not one"):
        prepare(good, ["LABEL_0", "O"])
    with pytest.raises(ValueError, match="the labels have no tag 'I-LOC'"):
        prepare(table([["a", "b"]], [["B-LOC", "I-LOC"]]), ["O", "B-LOC"])
    with pytest.raises(ValueError, match="max_length=2 leaves no room"):
        prepare(good, max_length=2)


# --- spans


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("It's 5.5 km!", ["It", "'", "s", "5", ".", "5", "km", "!"]),
        ("北京 ab中c", ["北", "京", "ab", "中", "c"]),
        ("हिन्दी, ครับ", ["हिन्दी", ",", *"ครับ"]),
        ("e\u0301te\u0301\tx_y", ["e\u0301te\u0301", "x_y"]),
        ("", []),
        (" \n", []),
    ],
)
def test_words_of_a_text(text, words):
    found = find_words(["before", text])
    assert [text[a:b] for a, b in zip(found.starts[1:], found.ends[1:], strict=True)] == words
    assert found.offsets.tolist() == [0, 1, 1 + len(words)]


@pytest.mark.parametrize("kind", KINDS)
def test_spans_come_back_with_their_characters(kind):
    text = "Café in  New York, 中文 and Paris."
    spans = [(0, 4, "LOC"), (9, 17, "PER"), (19, 20, "LOC"), (20, 21, "LOC"), (26, 31, "PER")]
    rows = span_table((text, spans), ("nothing here", []))
    made, reasons = entities.prepare(rows, TOKENIZERS[kind], LABELS, SPANS, max_length=64)
    assert reasons.tolist() == [None, None]
    found = in_rows(perfect(made, LABELS), made, rows)
    assert [[(x["start"], x["end"], x["label"], x["text"]) for x in row] for row in found] == [
        [(*span, text[span[0] : span[1]]) for span in spans],
        [],
    ]
    assert scored(entities, perfect(made, LABELS), made, rows, LABELS, SPANS)["f1"] == 1


def test_spans_with_white_space_around_are_those_of_their_words():
    rows = span_table(("in New York .", [(2, 12, "LOC")]))
    assert [LABELS[i] for i in true_tags(rows, LABELS, SPANS).tags.values] == ["O", "B-LOC", "I-LOC", "O"]


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        (
            [(0, 2, "LOC"), (4, 6, "LOC")],
            "entity 2 (4:6) begins or ends inside of a word (task.errors=repair widens it)",
        ),
        ([(3, 7, "LOC"), (3, 12, "PER")], "entity 2 (3:12) shares words with another entity"),
        (
            [(5, 7, "LOC")],
            "entity 1 (5:7) begins or ends inside of a word (task.errors=repair widens it)",
        ),
        ([(3, 3, "LOC")], "entity 1 (3:3) does not lie in the text"),
        ([(3, 70, "LOC")], "entity 1 (3:70) does not lie in the text"),
        ([(None, 7, "LOC")], "entity 1 (-1:7) does not lie in the text"),
        ([(2, 3, "LOC")], "entity 1 (2:3) holds no word"),
        ([(0, 2, None)], "entity 1 (0:2) has no label"),
        ([(0, 2, "")], "entity 1 (0:2) has no label"),
    ],
)
def test_a_row_with_wrong_spans_is_rejected_saying_which(spans, expected):
    rows = span_table(("a b", [(0, 1, "LOC")]), ("in York, dog", spans))
    _, reasons = entities.prepare(rows, TOKENIZERS["bytes"], LABELS, SPANS, max_length=32)
    assert reasons.tolist() == [None, expected]


def test_repair_widens_spans_to_their_words():
    rows = span_table(("in York, dog", [(4, 6, "LOC")]))
    true = true_tags(rows, LABELS, EntitiesSettings(text="text", errors="repair"))
    assert [LABELS[i] for i in true.tags.values] == ["O", "B-LOC", "O", "O"]
    assert true.repaired.tolist() == [True]


def test_texts_without_labels_are_decoded_all_the_same():
    rows = pa.table({"text": ["New York", None, " ", "dog"]})
    made, reasons = entities.prepare(rows, TOKENIZERS["wordpiece"], None, SPANS, max_length=32)
    assert reasons.tolist() == [None, "text is null", "text is empty", None]
    assert "labels" not in made.targets
    logits = np.eye(len(LABELS))[[0, LABELS.index("B-LOC"), LABELS.index("I-LOC"), 0, 0, 0, 0]]
    each = np.e / (np.e + len(LABELS) - 1)  # the softmax of one 1 among zeros
    entity = {"start": 0, "end": 8, "label": "LOC", "text": "New York", "score": pytest.approx(each)}
    assert in_rows(logits, made, rows) == [[entity], None, None, []]
    logits[2] *= 2  # the score is the mean over the two words
    ((entity,), *_) = in_rows(logits, made, rows)
    assert entity["score"] == pytest.approx((each + np.e**2 / (np.e**2 + len(LABELS) - 1)) / 2)


def test_entities_of_words_are_counted_in_words():
    rows = table([["in", "New", "York", "dogs"], ["fox"]], [None, None])
    made, _ = entities.prepare(
        rows, TOKENIZERS["wordpiece"], None, BIO, max_length=5
    )  # windows of three tokens
    assert made.row.tolist() == [0, 0, 1]
    logits = np.zeros((len(made.ids.values), len(LABELS)))
    logits[:, 0] = 1
    words = made.targets["words"].values
    for word, tag in ((1, "B-LOC"), (2, "I-LOC"), (3, "B-PER")):
        (at,) = np.flatnonzero((words == word) & (np.repeat(made.row, made.ids.lengths) == 0))
        logits[at, LABELS.index(tag)] = 2
    first, second = decoded(entities, logits, made, rows, LABELS, BIO)
    found = [(x["start"], x["end"], x["label"], x["text"]) for x in first["entities"]]
    assert found == [(1, 3, "LOC", "New York"), (3, 4, "PER", "dogs")]
    assert second == {"entities": []}


def test_rows_of_a_report_are_as_good_as_their_f1():
    rows = span_table(("in New York and Paris", [(3, 11, "LOC"), (16, 21, "LOC")]), ("dog", []), ("fox", []))
    made, _ = entities.prepare(rows, TOKENIZERS["wordpiece"], LABELS, SPANS, max_length=32)
    made = entities.with_truth(entities.with_texts(made, rows, SPANS), rows, LABELS, SPANS)
    logits = perfect(made, LABELS)
    wrong = np.flatnonzero(made.targets["labels"].values == LABELS.index("B-LOC"))[1]
    logits[wrong] = np.eye(len(LABELS))[LABELS.index("B-PER")]
    logits[made.ids.offsets[2] + 1] = np.eye(len(LABELS))[LABELS.index("B-PER")]
    found = entities.decode({"logits": logits}, made, LABELS, SPANS)
    shown = entities.shown_rows(found, rows, made, LABELS, SPANS)
    assert shown["text"] == rows["text"].to_pylist()
    assert shown["label"] == ["New York (LOC), Paris (LOC)", "none", "none"]
    assert shown["predicted"] == ["New York (LOC), Paris (PER)", "none", "fox (PER)"]
    assert shown["score"] == [0.5, 1, 0]


# --- scores


def chunks(tags: list[str]) -> set[tuple[int, int, str]]:
    """conlleval's startOfChunk and endOfChunk, tag by tag."""
    found, start, before = set(), 0, "O"
    for at, tag in enumerate([*tags, "O"]):
        a, kind_a = before[0], before[2:]
        b, kind_b = tag[0], tag[2:]
        ends = (a, b) in {
            ("B", "B"),
            ("B", "O"),
            ("I", "B"),
            ("I", "O"),
            ("E", "E"),
            ("E", "I"),
            ("E", "O"),
            ("E", "B"),
        }
        ends |= (
            a == "S" or (a in "BI" and b == "S") or (a == "E" and b == "S") or (a != "O" and kind_a != kind_b)
        )
        begins = b in "BS" or (a, b) in {
            ("O", "I"),
            ("O", "E"),
            ("E", "E"),
            ("E", "I"),
            ("S", "E"),
            ("S", "I"),
        }
        begins |= b != "O" and kind_a != kind_b
        if ends and a != "O":
            found.add((start, at, kind_a))
        if begins:
            start = at
        before = tag
    return found


TAG = st.sampled_from(["O", *(f"{p}-{t}" for p in "BIES" for t in ("LOC", "PER", "ORG"))])
PAIRS = st.lists(st.lists(st.tuples(TAG, TAG), max_size=12), min_size=1, max_size=6)


@settings(max_examples=200, deadline=None)
@given(PAIRS, st.integers(0, 6))
def test_scores_are_conllevals(rows, cut):
    names = ["O", *(f"{p}-{t}" for p in "BIES" for t in ("LOC", "ORG", "PER"))]

    def scores(some: list) -> EntityScores:
        made = EntityScores(names)
        offsets = np.cumsum([0, *map(len, some)])
        flat = np.array([[names.index(tag) for tag in pair] for row in some for pair in row], int).reshape(
            -1, 2
        )
        made.add(Lists(flat[:, 0], offsets), Lists(flat[:, 1], offsets))
        return made

    whole = scores(rows)
    parts = scores(rows[:cut])
    parts.merge(scores(rows[cut:]))
    result = whole.result()
    assert parts.result() == result
    sides = [
        {(n, *c) for n, row in enumerate(rows) for c in chunks([pair[k] for pair in row])} for k in (0, 1)
    ]
    f1s = []
    for kind in ("LOC", "ORG", "PER", None):
        true, guess = ({c for c in side if kind in (None, c[3])} for side in sides)
        right = len(true & guess)
        precision, recall = right / len(guess) if guess else 0, right / len(true) if true else 0
        f1 = 2 * precision * recall / (precision + recall) if right else 0
        names_of = (
            (f"{kind}_precision", f"{kind}_recall", f"{kind}_f1") if kind else ("precision", "recall", "f1")
        )
        assert [result[name] for name in names_of] == pytest.approx([precision, recall, f1])
        if kind and (true or guess):
            f1s.append(f1)
    assert result["macro_f1"] == pytest.approx(np.mean(f1s) if f1s else 0)
    flat_pairs = [pair for row in rows for pair in row]
    assert result["accuracy"] == pytest.approx(sum(a == b for a, b in flat_pairs) / max(len(flat_pairs), 1))


def test_scores_of_a_case_by_hand():
    names = LABELS
    true = ["B-PER", "I-PER", "O", "B-LOC", "O", "B-LOC"]
    guess = ["B-PER", "I-PER", "O", "B-LOC", "I-LOC", "B-PER"]
    scores = EntityScores(names)
    offsets = np.array([0, 6])
    scores.add(*(Lists(np.array([names.index(tag) for tag in side]), offsets) for side in (true, guess)))
    # right: PER 0-2. LOC 3-5 has another end than LOC 3-4, PER 5-6 another type than LOC 5-6
    result = scores.result()
    assert (result["precision"], result["recall"], result["f1"]) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    assert (result["PER_precision"], result["PER_recall"], result["PER_f1"]) == pytest.approx(
        (1 / 2, 1, 2 / 3)
    )
    assert (result["LOC_f1"], result["LOC_support"]) == (0, 2)
    assert result["macro_f1"] == pytest.approx(1 / 3)
    assert result["accuracy"] == pytest.approx(4 / 6)


@pytest.mark.parametrize("rows", [0, 2])
def test_a_table_without_usable_rows_makes_no_examples(rows):
    given_table = table([None] * rows, [None] * rows)
    made, reasons = entities.prepare(given_table, TOKENIZERS["bytes"], LABELS, BIO, max_length=32)
    assert (len(made), len(reasons)) == (0, rows)
    nothing = np.zeros((0, len(LABELS)))
    assert decoded(entities, nothing, made, given_table, LABELS, BIO) == [None] * rows
    assert scored(entities, nothing, made, given_table, LABELS, BIO)["f1"] == 0
    made, _ = entities.prepare(
        span_table(*[(" ", [])] * rows), TOKENIZERS["bytes"], LABELS, SPANS, max_length=32
    )
    assert len(made) == 0


# --- real data


@pytest.mark.skipif(not WNUT.exists(), reason="no WNUT-17 here")
@pytest.mark.parametrize("longest", [128, 24])
def test_wnut_comes_back_whole(longest):
    rows, settings = pq.read_table(WNUT / "test.parquet"), EntitiesSettings(tags="ner_tags", overlap=8)
    labels = entities.find_labels(rows, settings)
    assert len(labels) == 13
    made, reasons = entities.prepare(rows, TOKENIZERS["bytes"], labels, settings, max_length=longest)
    assert not any(reasons)
    result = scored(entities, perfect(made, labels), made, rows, labels, settings)
    assert result["f1"] == 1
    entities_of_wnut = sum(tag.startswith("B-") for row in rows["ner_tags"].to_pylist() for tag in row)
    assert (
        sum(value for name, value in result.items() if name.endswith("_support")) == entities_of_wnut == 1079
    )
