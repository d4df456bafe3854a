"""Answers: windows and their targets, spans back to characters, and SQuAD's scores."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raybert.config.tasks import AnswersSettings
from raybert.tasks import answers
from raybert.tasks.answer_scores import AnswerScores, exact_match, normalize_answer, word_f1
from raybert.tasks.examples import IGNORED, Examples
from tests.conftest import SHARED
from tests.tasks.by_table import decoded, scored
from tests.tasks.toys import KINDS, tokenizer

ALL = AnswersSettings()
SOME = AnswersSettings(allow_unanswerable=True)
TOKENIZERS = {kind: tokenizer(kind) for kind in KINDS}
RESTAURANT = SHARED / "restaurant8k_qa"


def table(*rows: tuple[str | None, str | None, str | None, int | None]) -> pa.Table:
    names = ("question", "context", "answer", "answer_start")
    kinds = (pa.string(), pa.string(), pa.string(), pa.int64())
    columns = zip(*rows, strict=True)
    return pa.table({n: pa.array(c, k) for n, c, k in zip(names, columns, kinds, strict=True)})


def perfect(examples: Examples) -> np.ndarray:
    """Logits that are right for every sequence, also where the answer is at [CLS]."""
    logits = np.random.default_rng(0).normal(size=(len(examples.ids.values), 2))
    for k, name in enumerate(("starts", "ends")):
        logits[examples.ids.offsets[:-1] + examples.targets[name], k] += 9
    return logits


def prepare(rows: pa.Table, kind: str = "wordpiece", settings: AnswersSettings = ALL, longest: int = 64):
    return answers.prepare(rows, TOKENIZERS[kind], ["start", "end"], settings, max_length=longest)


def by_row(
    logits: np.ndarray, made: Examples, rows: pa.Table, settings: AnswersSettings
) -> list[dict | None]:
    return decoded(answers, logits, made, rows, [], settings)


# --- examples


def test_targets_point_at_the_tokens_of_the_answer():
    rows = table(("in Paris?", "the fox jumps, New Yorks", "New Yorks", 15))
    made, reasons = prepare(rows)
    pieces = [TOKENIZERS["wordpiece"].id_to_token(i) for i in made.ids.values]
    assert " ".join(pieces) == "[CLS] in paris ? [SEP] the fox jumps , new york ##s [SEP]"
    assert (made.targets["starts"].tolist(), made.targets["ends"].tolist()) == ([9], [11])
    assert made.boundary.tolist() == [5]
    x = IGNORED
    assert made.targets["char_starts"].values.tolist() == [x, x, x, x, x, 0, 4, 8, 13, 15, 19, 23, x]
    assert made.targets["char_ends"].values.tolist() == [x, x, x, x, x, 3, 7, 13, 14, 18, 23, 24, x]
    assert reasons.tolist() == [None]


def test_tokens_beside_the_answer_are_no_part_of_it():
    made, _ = prepare(table(("dog", "a-fox-b", "fox", 2)))
    assert (made.targets["starts"].tolist(), made.targets["ends"].tolist()) == ([5], [5])


@pytest.mark.parametrize("kind", KINDS)
def test_a_pair_is_laid_out_as_the_tokenizer_does(kind):
    made, _ = prepare(table(("over the fox", "lazy dog in Paris", "dog", 5)), kind)
    whole = TOKENIZERS[kind].encode("over the fox", "lazy dog in Paris")
    assert made.ids.values.tolist() == whole.ids
    boundary = whole.type_ids.index(1) if 1 in whole.type_ids else len(whole.ids)
    assert made.boundary.tolist() == [boundary]


def test_a_window_without_the_whole_answer_points_at_cls():
    rows = table(("a", "b c d e f g h i j", "f g", 8))
    made, _ = prepare(rows, settings=AnswersSettings(overlap=2), longest=8)
    texts = [
        " ".join(TOKENIZERS["wordpiece"].id_to_token(i) for i in made.ids.take(np.array([n])).values)
        for n in range(len(made))
    ]
    assert texts == [f"[CLS] a [SEP] {words} [SEP]" for words in ("b c d e", "d e f g", "f g h i", "g h i j")]
    assert made.row.tolist() == [0] * 4
    assert made.targets["starts"].tolist() == [0, 5, 3, 0]
    assert made.targets["ends"].tolist() == [0, 6, 4, 0]


WORD = st.text("abcdefgNYP019.,!-'é中文😀", min_size=1, max_size=9)
WORDS = st.lists(WORD, min_size=1, max_size=30)


@settings(max_examples=60, deadline=None)
@given(
    WORDS,
    st.lists(WORD, min_size=1, max_size=3),
    st.data(),
    st.sampled_from(KINDS),
    st.integers(0, 20),
)
def test_right_predictions_give_the_answer_back(words, question, data, kind, overlap):
    first = data.draw(st.integers(0, len(words) - 1))
    last = data.draw(st.integers(first, min(first + 2, len(words) - 1)))
    start = len(" ".join([*words[:first], ""])) if first else 0
    answer = " ".join(words[first : last + 1])
    context = " ".join(words)
    longest = data.draw(st.integers(10, 80))
    rows = table((" ".join(question), context, answer, start), ("dog", "fox", None, None))
    settings = AnswersSettings(allow_unanswerable=True, overlap=overlap, max_answer=80)
    made, reasons = prepare(rows, kind, settings, longest)
    asked = len(TOKENIZERS[kind].encode(" ".join(question), add_special_tokens=False))
    specials = TOKENIZERS[kind].num_special_tokens_to_add(is_pair=True)
    half = (longest - specials) // 2
    if asked > half:
        assert reasons[0] == f"question has {asked} tokens; max_length={longest} has room for {half}"
        return
    assert reasons.tolist() == [None, None]
    assert made.ids.lengths.max() <= longest
    mine = made.take(np.flatnonzero(made.row == 0))
    tokens = TOKENIZERS[kind].encode(context, add_special_tokens=False)
    # the windows cover all tokens of the context
    places = set(zip(mine.targets["char_starts"].values, mine.targets["char_ends"].values, strict=True)) - {
        (-100, -100)
    }
    assert places == set(tokens.offsets)
    nothing = by_row(perfect(made), made, rows, settings)[1]
    assert (nothing["answer"], nothing["start"]) == (None, None)
    if (mine.targets["starts"] > 0).any():
        # a window without the answer bets on [CLS], so its null score is high; what counts is the span
        best = by_row(perfect(made), made, rows, AnswersSettings(max_answer=80))[0]
        got = (best["start"], best["start"] + len(best["answer"]), best["answer"])
        assert got[2] == context[got[0] : got[1]]
        # pieces may run over the ends of the answer by signs without a piece of their own
        assert got[0] <= start
        assert got[1] >= start + len(answer)
        if kind == "wordpiece":
            assert got == (start, start + len(answer), answer)


# --- reasons


@pytest.mark.parametrize(
    ("answer", "start", "expected"),
    [
        ("fox", 3, None),
        ("fox", 5, "repaired"),
        ("fox", None, "repaired"),
        ("fox", -1, "repaired"),
        (
            "cat",
            4,
            "answer 'cat' is not at character 4, where 'ox ' stands, and does not occur in the context",
        ),
        (
            "a",
            4,
            "answer 'a' is not at character 4, where 'o' stands, and occurs more than once in the context",
        ),
        ("a", None, "answer 'a' has no start, and occurs more than once in the context"),
        (
            "a",
            99,
            "answer 'a' is not at character 99, where '' stands, and occurs more than once in the context",
        ),
        (None, None, "answer is empty; task.allow_unanswerable=true learns such rows"),
        ("", 0, "answer is empty; task.allow_unanswerable=true learns such rows"),
        ("\u200b\u0001", 11, "answer has no tokens"),
    ],
)
def test_an_answer_that_is_not_there_says_what_is(answer, start, expected):
    rows = table(("dog", "fox", "fox", 0), ("dog", "a, fox and \u200b\u0001", answer, start))
    made, reasons = prepare(rows)
    true = answers.true_answers(rows, ALL)
    assert reasons.tolist() == [None, None if expected == "repaired" else expected]
    assert true.repaired.tolist() == [False, expected == "repaired"]
    if reasons[1] is None:
        assert true.spans[1].tolist() == [3, 6]
        assert made.row.tolist() == [0, 1]


def test_questions_and_contexts_that_cannot_be_used():
    rows = table(
        (None, "fox", "fox", 0),
        ("dog", None, "fox", 0),
        (" ", "fox", "fox", 0),
        ("dog", "\u200b\u0001", None, None),
        ("\u200b\u0001", "fox", "fox", 0),
        ("a " * 31, "fox", "fox", 0),
        ("a " * 30, "fox", "fox", 0),
    )
    made, reasons = prepare(rows, settings=SOME)
    assert reasons.tolist() == [
        "question is null",
        "context is null",
        "question is empty",
        "context has no tokens",
        "question has no tokens",
        "question has 31 tokens; max_length=64 has room for 30",
        None,
    ]
    assert made.row.tolist() == [6]


def test_tables_that_cannot_be_used_say_why():
    good = table(("dog", "fox", "fox", 0))
    with pytest.raises(ValueError, match="no column 'answer_start'"):
        prepare(good.drop_columns("answer_start"))
    with pytest.raises(
        ValueError, match="'answer_start' must hold whole numbers, or lists of them, not string"
    ):
        prepare(good.set_column(3, "answer_start", pa.array(["0"])))
    with pytest.raises(ValueError, match="'answer' must hold strings, or lists of them, not int64"):
        prepare(good.set_column(2, "answer", pa.array([0])))
    with pytest.raises(ValueError, match="max_length=4 leaves no room"):
        prepare(good, longest=4)


def test_several_right_answers_in_lists_or_in_squads_struct():
    rows = pa.table(
        {
            "question": ["dog", "dog"],
            "context": ["the brown fox", "the brown fox"],
            "answers": [
                {"text": ["brown fox", "fox"], "answer_start": [4, 10]},
                {"text": [], "answer_start": []},
            ],
        }
    )
    squad = AnswersSettings(
        answer="answers.text", answer_start="answers.answer_start", allow_unanswerable=True
    )
    assert answers.columns(squad) == ["question", "context", "answers"]
    made, reasons = prepare(rows, settings=squad)
    assert reasons.tolist() == [None, None]
    assert (made.targets["starts"].tolist(), made.targets["ends"].tolist()) == ([4, 0], [5, 0])
    true = answers.true_answers(rows, squad)
    assert true.answers == [["brown fox", "fox"], []]
    assert true.spans.tolist() == [[4, 13], [-1, -1]]
    with pytest.raises(ValueError, match="'answers' has no field 'txt'"):
        prepare(rows, settings=AnswersSettings(answer="answers.txt", answer_start="answers.answer_start"))


# --- spans


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_the_best_span_is_the_best_of_all(seed, longest):
    rng = np.random.default_rng(seed)
    contexts = [" ".join(rng.choice(list("abcdef"), rng.integers(1, 25))) for _ in range(3)]
    rows = table(*[("dog", context, context[0], 0) for context in contexts])
    made, _ = prepare(rows, settings=AnswersSettings(overlap=3), longest=16)
    logits = rng.normal(size=(len(made.ids.values), 2))
    spans: dict[int, list] = {}
    nulls: dict[int, list] = {}
    for n in range(len(made)):
        begin, end = made.ids.offsets[n : n + 2]
        row = int(made.row[n])
        nulls.setdefault(row, []).append(logits[begin].sum())
        inside = [k for k in range(begin, end) if made.targets["char_starts"].values[k] >= 0]
        for i in inside:
            for j in inside:
                if i <= j < i + longest:
                    a, b = made.targets["char_starts"].values[i], made.targets["char_ends"].values[j]
                    spans.setdefault(row, []).append((logits[i, 0] + logits[j, 1], a, b))
    for row, answer in enumerate(by_row(logits, made, rows, AnswersSettings(max_answer=longest))):
        score, a, b = max(spans[row])
        assert (answer["start"], answer["answer"]) == (a, contexts[row][a:b])
        assert answer["score"] == pytest.approx(score)
        assert answer["null_difference"] == pytest.approx(min(nulls[row]) - score)


def test_no_answer_needs_to_be_better_by_the_threshold():
    rows = table(("dog", "a b", "a", 0), (None, "a", "a", 0))
    made, _ = prepare(rows)
    logits = np.zeros((6, 2))
    logits[0], logits[3], logits[4] = 1.5, (1, 0), (0, 1)

    def decode(**changes: object) -> dict:
        return by_row(logits, made, rows, AnswersSettings(**changes))

    span = {"answer": "a b", "start": 0, "score": 2.0, "null_difference": 1.0}
    nothing = {"answer": None, "start": None, "score": 3.0, "null_difference": 1.0}
    assert decode() == [span, None]
    assert decode(allow_unanswerable=True) == [nothing, None]
    assert decode(allow_unanswerable=True, null_threshold=0.5) == [nothing, None]
    assert decode(allow_unanswerable=True, null_threshold=1.0) == [span, None]
    assert decode(max_answer=1)[0]["answer"] == "a"


def test_rows_of_a_report_are_as_good_as_their_f1():
    rows = table(("dog", "a b", "a", 0), ("fox", "the c d", None, None))
    made, _ = prepare(rows, settings=SOME)
    made = answers.with_truth(made, rows, [], SOME)
    found = [{"answer": "a b"}, {"answer": None}]
    shown = answers.shown_rows(found, rows, made, [], SOME)
    assert (shown["text"], shown["label"]) == (["dog", "fox"], ["a", "no answer"])
    assert (shown["predicted"], shown["score"]) == (["a b", "no answer"], [0, 1])
    assert answers.shown_rows([{"answer": "b a"}, {"answer": "c"}], rows, made, [], SOME)["score"] == [0, 0]


# --- scores


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Beatles!", "beatles"),
        ("an A.B.C. the", "abc"),
        ("theatre, a-1", "theatre a1"),
        ("", ""),
        ("The", ""),
        ("São\tPaulo\n(city)", "são paulo city"),
    ],
)
def test_answers_are_normalized_as_squad_does(text, expected):
    assert normalize_answer(text) == expected


@pytest.mark.parametrize(
    ("true", "predicted", "exact", "f1"),
    [
        ("the brown fox", "Brown fox.", 1, 1),
        ("brown fox", "the quick brown dog", 0, 2 * (1 / 3) * (1 / 2) / (1 / 3 + 1 / 2)),
        ("a b b", "b b b", 0, 2 * (2 / 3) * 1 / (2 / 3 + 1)),
        ("fox", "", 0, 0),
        ("", "", 1, 1),
        ("the", "", 1, 1),
        ("fox", "dog", 0, 0),
    ],
)
def test_exact_match_and_f1_by_hand(true, predicted, exact, f1):
    assert exact_match(true, predicted) == exact
    assert word_f1(true, predicted) == pytest.approx(f1)


def test_scores_take_the_best_answer_and_tell_rows_without_one_apart():
    rows = [(["fox", "brown fox"], "brown fox"), (["fox"], ""), (["fox"], "red fox"), ([], ""), ([], "fox")]
    true, predicted = zip(*rows, strict=True)
    whole, first, second = AnswerScores(), AnswerScores(), AnswerScores()
    whole.add(true, predicted)
    first.add(true[:2], predicted[:2])
    second.add(true[2:], predicted[2:])
    first.merge(second)
    assert whole.result() == first.result()
    assert whole.result() == pytest.approx(
        {
            "exact_match": 2 / 5,
            "f1": (1 + 0 + 2 / 3 + 1 + 0) / 5,
            "has_answer_exact_match": 1 / 3,
            "has_answer_f1": (1 + 0 + 2 / 3) / 3,
            "has_answer_support": 3,
            "no_answer_exact_match": 1 / 2,
            "no_answer_f1": 1 / 2,
            "no_answer_support": 2,
        }
    )


@pytest.mark.parametrize("rows", [0, 2])
def test_a_table_without_usable_rows_makes_no_examples(rows):
    given_table = table(*[(None, None, None, None)] * rows) if rows else table(("a", "a", "a", 0)).slice(0, 0)
    made, reasons = prepare(given_table)
    assert (len(made), len(reasons)) == (0, rows)
    assert by_row(np.zeros((0, 2)), made, given_table, ALL) == [None] * rows
    assert scored(answers, np.zeros((0, 2)), made, given_table, [], ALL)["f1"] == 0


# --- real data


@pytest.mark.skipif(not RESTAURANT.exists(), reason="no Restaurant8k here")
@pytest.mark.parametrize("longest", [128, 32])
def test_restaurant8k_comes_back(longest):
    rows = pq.read_table(RESTAURANT / "test.parquet")
    settings = AnswersSettings(overlap=8)
    made, reasons = prepare(rows, "wordpiece", settings, longest)
    asked = [text for text, why in zip(rows["question"].to_pylist(), reasons, strict=True) if why]
    assert not asked or longest == 32
    result = scored(answers, perfect(made), made, rows, [], settings)
    assert result["has_answer_support"] == len(rows) - len(asked)
    if longest == 128:
        assert result["exact_match"] > 0.999  # `13:00` of `13:00pm`, which ends inside of a piece
