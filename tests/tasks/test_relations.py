"""Relations: marks to markers and positions, cuts around the two places, and the official SemEval-2010 scores."""

import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raybert.config import ConfigError, load
from raybert.config.tasks import RelationsSettings
from raybert.tasks import relations
from raybert.tasks.relation_scores import RelationScores
from tests.conftest import SHARED
from tests.tasks.by_table import decoded, scored
from tests.tasks.toys import KINDS, tokenizer

MARKED = RelationsSettings()
SPANS = RelationsSettings(spans=True)
NAMES = [
    "Cause-Effect(e1,e2)",
    "Cause-Effect(e2,e1)",
    "Message-Topic(e1,e2)",
    "Message-Topic(e2,e1)",
    "Other",
]
TOKENIZERS = {kind: tokenizer(kind) for kind in KINDS}
SIZES = {kind: made.get_vocab_size() for kind, made in TOKENIZERS.items()}
MARKERS = {kind: relations.add_markers(made, MARKED) for kind, made in TOKENIZERS.items()}
SEMEVAL = SHARED / "semeval2010_task8"


def table(*texts: str | None, labels: list[str | None] | None = None) -> pa.Table:
    return pa.table({"text": pa.array(texts, pa.string()), "label": labels or ["Other"] * len(texts)})


def pieces(examples, kind: str = "wordpiece", n: int = 0) -> str:
    return " ".join(TOKENIZERS[kind].id_to_token(i) for i in examples.ids.take(np.array([n])).values)


# --- markers


def test_markers_are_new_tokens_and_stay_the_same():
    for kind in KINDS:
        assert MARKERS[kind] == list(range(SIZES[kind], SIZES[kind] + 4))
        assert relations.add_markers(TOKENIZERS[kind], MARKED) == MARKERS[kind]
        assert TOKENIZERS[kind].get_vocab_size() == SIZES[kind] + 4


def test_marks_become_markers_and_the_text_between_is_as_without_them():
    rows = table("The <e1>fox</e1> jumped over <e2>New York</e2>s", labels=["Message-Topic(e2,e1)"])
    made, reasons = relations.prepare(rows, TOKENIZERS["wordpiece"], NAMES, MARKED, max_length=32)
    assert reasons.tolist() == [None]
    assert pieces(made) == "[CLS] the [E1] fox [/E1] jump ##ed over [E2] new york [/E2] ##s [SEP]"
    assert (made.targets["first"].tolist(), made.targets["second"].tolist()) == ([2], [8])
    assert made.targets["labels"].tolist() == [3]
    assert made.boundary.tolist() == [14]


def test_the_second_place_may_come_first():
    rows = table("<e2>fox</e2> and <e1> dog </e1>")
    made, _ = relations.prepare(rows, TOKENIZERS["wordpiece"], NAMES, MARKED, max_length=32)
    assert pieces(made) == "[CLS] [E2] fox [/E2] and [E1] dog [/E1] [SEP]"
    assert (made.targets["first"].tolist(), made.targets["second"].tolist()) == ([5], [1])


def test_names_and_markers_are_settings():
    settings = RelationsSettings(first="a.b", second="c", markers=["[A]", "[/A]", "[C]", "[/C]"])
    made = tokenizer("wordpiece")
    rows = table("<a.b>fox</a.b> <c>dog</c>")
    with pytest.raises(ValueError, match=r"no token \[A\]; add task.markers first"):
        relations.prepare(rows, made, NAMES, settings, max_length=32)
    relations.add_markers(made, settings)
    examples, reasons = relations.prepare(rows, made, NAMES, settings, max_length=32)
    assert (
        made.decode(examples.ids.values, skip_special_tokens=False) == "[CLS] [A] fox [/A] [C] dog [/C] [SEP]"
    )
    assert reasons.tolist() == [None]
    with pytest.raises(ConfigError, match=r"task\.first and task\.second are both 'x'"):
        load(RelationsSettings, settings={"first": "x", "second": "x"})
    with pytest.raises(ConfigError, match="must be four different tokens"):
        load(RelationsSettings, settings={"markers": ["a", "a", "b", "c"]})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<e1>a</e1> b", "<e2> occurs 0 times; each of <e1> </e1> <e2> </e2> must occur once"),
        ("a <e1>a <e2>b</e2>", "</e1> occurs 0 times; each of <e1> </e1> <e2> </e2> must occur once"),
        (
            "<e1>a</e1> <e1>a</e1> <e2>b</e2>",
            "<e1> occurs 2 times; each of <e1> </e1> <e2> </e2> must occur once",
        ),
        ("</e1>a<e1> <e2>b</e2>", "</e1> comes before <e1>"),
        ("<e1>a <e2>b</e1> c</e2>", "<e1>..</e1> and <e2>..</e2> cross"),
        ("<e1>a <e2>b</e2></e1>", "<e1>..</e1> and <e2>..</e2> cross"),
        ("<e1> </e1> <e2>b</e2>", "there is nothing between <e1> and </e1>"),
        ("<e1>\u200b\u0001</e1> <e2>b</e2>", "e1 has no tokens"),
        (None, "text is null"),
        (" ", "text is empty"),
    ],
)
def test_a_row_with_wrong_marks_is_rejected_saying_why(text, expected):
    rows = table("<e1>fox</e1> <e2>dog</e2>", text, "<e1>fox</e1> <e2>York</e2>")
    made, reasons = relations.prepare(rows, TOKENIZERS["wordpiece"], NAMES, MARKED, max_length=32)
    assert reasons.tolist() == [None, expected, None]
    assert made.row.tolist() == [0, 2]
    assert pieces(made, n=1) == "[CLS] [E1] fox [/E1] [E2] york [/E2] [SEP]"


def test_places_in_one_token_are_rejected():
    rows = table("<e1>ju</e1><e2>mp</e2> dog")
    _, reasons = relations.prepare(rows, TOKENIZERS["wordpiece"], NAMES, MARKED, max_length=32)
    assert reasons.tolist() == ["e1 and e2 share a token"]


def test_spans_in_columns():
    def prepare(first: dict | None, second: dict | None) -> tuple[object, str | None]:
        kind = pa.struct({"start": pa.int64(), "end": pa.int64()})
        rows = pa.table(
            {"text": ["fox and dog"], "e1": pa.array([first], kind), "e2": pa.array([second], kind)}
        )
        made, reasons = relations.prepare(rows, TOKENIZERS["wordpiece"], None, SPANS, max_length=32)
        return made, reasons[0]

    made, reason = prepare({"start": 8, "end": 11}, {"start": 0, "end": 3})
    assert reason is None
    assert pieces(made) == "[CLS] [E2] fox [/E2] and [E1] dog [/E1] [SEP]"
    assert "labels" not in made.targets
    assert prepare(None, {"start": 0, "end": 3})[1] == "e1 is null"
    assert prepare({"start": 8, "end": 12}, {"start": 0, "end": 3})[1] == "e1 (8:12) is not in the text"
    assert prepare({"start": 8, "end": None}, {"start": 0, "end": 3})[1] == "e1 (8:-1) is not in the text"
    assert prepare({"start": 2, "end": 11}, {"start": 0, "end": 3})[1] == "e1 and e2 overlap"
    with pytest.raises(ValueError, match=r"'e1' must hold {start, end}, not int64"):
        relations.prepare(
            pa.table({"text": ["a"], "e1": [1], "e2": [2]}), TOKENIZERS["bytes"], None, SPANS, max_length=32
        )


def test_tables_that_cannot_be_used_say_why():
    def prepare(rows: pa.Table) -> None:
        relations.prepare(rows, TOKENIZERS["bytes"], NAMES, MARKED, max_length=32)

    good = "<e1>fox</e1> <e2>dog</e2>"
    with pytest.raises(ValueError, match="no column 'label'"):
        prepare(table(good).select(["text"]))
    with pytest.raises(ValueError, match="'label' must hold strings, not int64"):
        prepare(pa.table({"text": [good], "label": [1]}))
    with pytest.raises(
        ValueError, match=r"labels that are not in the training data: Born-In\(e1,e2\), Died$"
    ):
        prepare(table(good, good, good, labels=["Died", "Other", "Born-In(e1,e2)"]))
    with pytest.raises(ValueError, match="'label' has 1 different labels; at least 2"):
        relations.find_labels(table(good), MARKED)
    _, reasons = relations.prepare(
        table(good, good, labels=["", "Other"]), TOKENIZERS["bytes"], NAMES, MARKED, max_length=32
    )
    assert reasons.tolist() == ["label is empty", None]


# --- cuts


WORD = st.text("abcdefgNYP019.,é中", min_size=1, max_size=7)


@st.composite
def marked(draw: st.DrawFn) -> list[str]:
    words = draw(st.lists(WORD, min_size=2, max_size=20))
    a, b = sorted(draw(st.tuples(*[st.integers(0, len(words) - 1)] * 2)))
    c, d = sorted(draw(st.tuples(*[st.integers(0, len(words) - 1)] * 2)))
    if b >= c:
        a, b, c, d = 0, 0, len(words) - 1, len(words) - 1
    names = draw(st.permutations(["e1", "e2"]))
    for (start, stop), name in zip(((a, b), (c, d)), names, strict=True):
        words[start] = f"<{name}>{words[start]}"
        words[stop] += f"</{name}>"
    return words


@settings(max_examples=100, deadline=None)
@given(marked(), st.sampled_from(KINDS), st.integers(8, 40))
def test_both_places_stay_inside_in_the_middle_or_the_row_is_rejected(words, kind, longest):
    text = " ".join(words)
    made, reasons = relations.prepare(table(text), TOKENIZERS[kind], NAMES, MARKED, max_length=longest)
    plain = re.sub("</?e[12]>", "", text)
    ids = TOKENIZERS[kind].encode(plain).ids[1:-1]
    room, markers = longest - 6, MARKERS[kind]
    if not len(made):
        longest_place = re.search("<e[12]>.*</e[12]>", text).group()
        inner = TOKENIZERS[kind].encode(re.sub("</?e[12]>", "", longest_place)).ids[1:-1]
        assert len(inner) + 2 > room, "what does not fit is longer (a piece more or less at the ends)"
        assert reasons[0].startswith("from e1 to e2 are ")
        return
    values = made.ids.values.tolist()
    assert len(values) == min(longest, len(ids) + 6)
    assert [values.count(marker) for marker in markers] == [1, 1, 1, 1]
    assert values[made.targets["first"][0]] == markers[0]
    assert values[made.targets["second"][0]] == markers[2]
    kept = [i for i in values[1:-1] if i not in markers]
    at = [values.index(marker) for marker in markers]
    for begin, end, name in ((at[0], at[1], "e1"), (at[2], at[3], "e2")):
        place = re.search(f"<{name}>(.*)</{name}>", text).group(1)
        # a byte-level piece may have a space in front, so compare what is read
        read = TOKENIZERS[kind].decode([i for i in values[begin + 1 : end] if i not in markers])
        if kind == "bytes":
            assert read.strip() == place
    starts = [s for s in range(len(ids) - len(kept) + 1) if ids[s : s + len(kept)] == kept]
    assert starts, "the ids are those of the text without marks, in one stretch"
    left, right = min(at) - 1, len(values) - 2 - max(at)
    if len(ids) > room and starts[0] > 0 and starts[-1] + len(kept) < len(ids):
        assert abs(left - right) <= 1, "the places are in the middle"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("a b c d e <e1>f</e1> g <e2>h</e2> i j k l m", "d e [E1] f [/E1] g [E2] h [/E2] i j"),
        ("a <e1>f</e1> g <e2>h</e2> i j k l m", "a [E1] f [/E1] g [E2] h [/E2] i j k"),
        ("a b c d e <e1>f</e1> g <e2>h</e2> i", "c d e [E1] f [/E1] g [E2] h [/E2] i"),
    ],
)
def test_a_long_row_keeps_as_much_on_both_sides(text, kept):
    made, _ = relations.prepare(table(text), TOKENIZERS["wordpiece"], NAMES, MARKED, max_length=13)
    assert pieces(made) == f"[CLS] {kept} [SEP]"
    assert made.ids.values[made.targets["first"]].tolist() == MARKERS["wordpiece"][:1]


def test_a_row_too_long_says_how_long():
    rows = table("<e1>a</e1> b c d e f <e2>g</e2>")
    _, reasons = relations.prepare(rows, TOKENIZERS["wordpiece"], NAMES, MARKED, max_length=12)
    assert reasons.tolist() == ["from e1 to e2 are 7 tokens; max_length=12 has room for 6"]
    made, reasons = relations.prepare(rows, TOKENIZERS["wordpiece"], NAMES, MARKED, max_length=13)
    assert (made.ids.lengths.tolist(), reasons.tolist()) == ([13], [None])


# --- predictions and scores


def test_predictions_by_row_with_their_probability():
    rows = table("<e1>fox</e1> <e2>dog</e2>", None, "<e1>a</e1> <e2>b</e2>")
    made, _ = relations.prepare(rows, TOKENIZERS["wordpiece"], NAMES, MARKED, max_length=32)
    logits = np.log(np.array([[0.1, 0.6, 0.1, 0.1, 0.1], [0.05, 0.05, 0.05, 0.05, 0.8]]))
    first, second, third = decoded(relations, logits, made, rows, NAMES, MARKED)
    assert first == {"label": "Cause-Effect(e2,e1)", "score": pytest.approx(0.6)}
    assert second is None
    assert third == {"label": "Other", "score": pytest.approx(0.8)}
    labelled, _ = relations.prepare(rows, TOKENIZERS["wordpiece"], NAMES, MARKED, max_length=32)
    assert scored(relations, logits, labelled, rows, NAMES, MARKED)["accuracy"] == 0.5


def scores(
    true: list[str], guess: list[str], names: list[str] = NAMES, **options: str | None
) -> dict[str, float]:
    made = RelationScores(names, **options)
    made.add(*(np.array([names.index(x) for x in side], int) for side in (true, guess)))
    return made.result()


def test_the_official_score_by_hand():
    ce12, ce21, mt12, mt21, other = NAMES
    true = [ce12, ce12, ce12, ce21, mt12, mt12, mt21, other, other, other]
    guess = [ce12, ce21, mt12, ce21, mt12, other, mt21, other, ce12, mt21]
    result = scores(true, guess)
    # Cause-Effect: right 2 (ce12, ce21), predicted 4 (one in the wrong direction), true 4
    assert (result["Cause-Effect_precision"], result["Cause-Effect_recall"]) == (2 / 4, 2 / 4)
    # Message-Topic: right 2, predicted 4, true 3
    assert (result["Message-Topic_precision"], result["Message-Topic_recall"]) == (2 / 4, 2 / 3)
    assert result["Message-Topic_f1"] == pytest.approx(4 / 7)
    assert result["macro_f1"] == pytest.approx((1 / 2 + 4 / 7) / 2)
    # without Other: right 4, predicted 8, true 7
    assert (result["precision"], result["recall"], result["f1"]) == pytest.approx((4 / 8, 4 / 7, 8 / 15))
    assert result["accuracy"] == 5 / 10
    assert result["Message-Topic_support"] == 3


def test_a_wrong_direction_is_wrong_and_other_is_left_out():
    ce12, ce21, mt12, _, other = NAMES
    assert scores([ce12] * 4, [ce21] * 4)["macro_f1"] == 0
    assert scores([ce12, other], [ce12, other])["macro_f1"] == 1
    # a relation that does not occur in the truth is no part of the mean, as in the official scorer
    assert scores([ce12, ce12], [ce12, mt12])["macro_f1"] == pytest.approx(2 / 3)
    assert scores([other], [other])["macro_f1"] == 0


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), min_size=1, max_size=40),
    st.integers(0, 40),
)
def test_scores_are_those_of_the_scorers_loops(pairs, cut):
    """As semeval2010_task8_scorer-v1.2.pl counts, row by row, with WRONG_DIR as a column of its own."""
    matrix, proposed, answers, wrong = {}, {}, {}, {}
    for true, guess in pairs:
        a, b = true.partition("(")[0], guess.partition("(")[0]
        answers[a] = answers.get(a, 0) + 1
        if a == b and true != guess:
            wrong[a] = wrong.get(a, 0) + 1
        else:
            matrix[b, a] = matrix.get((b, a), 0) + 1
            proposed[b] = proposed.get(b, 0) + 1
    f1s = []
    for name in sorted(answers):
        right = matrix.get((name, name), 0)
        precision = right / (proposed.get(name, 0) + wrong.get(name, 0)) if proposed.get(name) else 0
        recall = right / answers[name]
        if name != "Other":
            f1s.append(2 * precision * recall / (precision + recall) if right else 0)
    result = scores([a for a, _ in pairs], [b for _, b in pairs])
    assert result["macro_f1"] == pytest.approx(np.mean(f1s) if f1s else 0)
    parts = []
    for some in (pairs[:cut], pairs[cut:]):
        made = RelationScores(NAMES)
        made.add(*(np.array([NAMES.index(pair[k]) for pair in some], int) for k in (0, 1)))
        parts.append(made)
    parts[0].merge(parts[1])
    assert parts[0].result() == result


def test_labels_without_direction_or_other_are_scored_as_usual():
    names = ["none", "sibling", "spouse"]
    result = scores(
        ["sibling", "spouse", "none", "sibling"],
        ["sibling", "sibling", "spouse", "none"],
        names,
        other="none",
    )
    assert result["sibling_f1"] == pytest.approx(2 / 4)
    assert result["macro_f1"] == pytest.approx(1 / 4)
    assert "none_f1" not in result
    assert "none_f1" in scores(["none"], ["none"], names, other=None)


@pytest.mark.parametrize("rows", [0, 2])
def test_a_table_without_usable_rows_makes_no_examples(rows):
    given_table = table(*[None] * rows)
    made, reasons = relations.prepare(given_table, TOKENIZERS["bytes"], NAMES, MARKED, max_length=32)
    assert (len(made), len(reasons)) == (0, rows)
    assert decoded(relations, np.zeros((0, len(NAMES))), made, given_table, NAMES, MARKED) == [None] * rows


# --- real data


@pytest.mark.skipif(not SEMEVAL.exists(), reason="no SemEval-2010 task 8 here")
def test_semeval_is_read_whole():
    rows = pq.read_table(SEMEVAL / "test.parquet")
    labels = relations.find_labels(pq.read_table(SEMEVAL / "train.parquet"), MARKED)
    assert len(labels) == 19
    for kind in KINDS:
        made, reasons = relations.prepare(rows, TOKENIZERS[kind], labels, MARKED, max_length=512)
        assert not any(reasons)
        assert made.row.tolist() == list(range(len(rows)))
        at = made.ids.offsets[:-1]
        assert (made.ids.values[at + made.targets["first"]] == MARKERS[kind][0]).all()
        assert (made.ids.values[at + made.targets["second"]] == MARKERS[kind][2]).all()
    result = scored(relations, np.eye(len(labels))[made.targets["labels"]], made, rows, labels, MARKED)
    assert result["macro_f1"] == result["accuracy"] == 1
    supports = [value for name, value in result.items() if name.endswith("_support")]
    assert (len(supports), sum(supports)) == (9, 2263)
