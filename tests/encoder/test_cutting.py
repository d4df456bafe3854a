"""Long texts are cut before they are tokenized, and no token, length or flag tells: against `tokenizers` itself."""

from collections.abc import Callable
from functools import cache
from unittest import mock

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, normalizers, pre_tokenizers, processors

from raybert.encoder import tokenizing
from raybert.encoder.tokenizing import TextTokenizer
from tests.encoder.tiny import FAMILIES, _tokenizer

WORDS = """the of words a e x new york York's unbelievably 1,000 42 don't foo-bar up-to ... `` '' ## ▁ [MASK] <mask> </s>
<both> 中文 日本語です é ñandú русский ελληνικά हिन्दी 한국어 ไทย العربية עברית straße İstanbul ﬁne ½ ﷺ ａｂｃ"""
# combining alone, with nothing to combine with, joined emoji, control characters, characters that normalize to
# nothing or to a space and a mark, and half a syllable
ODD = "e\u0301 \u0301 \u0345 \u037a 👩\u200d👩\u200d👧 🏳️\u200d🌈 \0 \7 \u200b \u200d \u00ad \ufffd \u3164 \u1100\u1161"
PIECES = WORDS.split() + ODD.split(" ")
SPACES = (" ", " ", " ", "", "  ", "   ", "\n", "\t", "\r\n", "\u3000", "\u00a0", " \n ")
RUNS = st.tuples(st.sampled_from(PIECES) | st.text(max_size=6), st.sampled_from(SPACES), st.integers(1, 40))
TEXTS = st.lists(RUNS, max_size=12).map(lambda runs: "".join((word + space) * n for word, space, n in runs))


def _adding(*tokens: str | AddedToken) -> Callable[[Tokenizer], object]:
    return lambda tokenizer: tokenizer.add_tokens(list(tokens))


def _with(**parts: object) -> Callable[[Tokenizer], object]:
    return lambda tokenizer: [setattr(tokenizer, name, part) for name, part in parts.items()]


def _normalizing(*steps: normalizers.Normalizer) -> Callable[[Tokenizer], object]:
    return _with(normalizer=normalizers.Sequence(list(steps)))


def _splitting(*steps: pre_tokenizers.PreTokenizer) -> Callable[[Tokenizer], object]:
    return _with(pre_tokenizer=pre_tokenizers.Sequence(list(steps)))


BOTH = AddedToken("<both>", lstrip=True, rstrip=True, normalized=False)
MASK = AddedToken("<mask>", lstrip=True, special=True)
NO_ACCENTS = (normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase())
QUOTES = (normalizers.Replace("``", '"'), normalizers.Replace("''", '"'))
WITHOUT_REGEX = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
# name: family and what is changed in its tokenizer. These are cut ...
CUT = {family: (family, []) for family in FAMILIES} | {
    "cased, stripped": ("bert", [_normalizing(normalizers.NFC(), normalizers.Strip())]),
    "without accents": ("bert", [_normalizing(*NO_ACCENTS)]),
    "no space before dots": (
        "bert",
        [_normalizing(normalizers.Replace(" ...", "...")), _splitting(pre_tokenizers.WhitespaceSplit())],
    ),
    "digits": ("bert", [_splitting(pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True))]),
    "added words": ("bert", [_adding(BOTH, AddedToken("new", single_word=True), "up-to", "x")]),
    "added, with spaces around": ("roberta", [_adding(MASK, BOTH, "york", " e")]),
    "prefix space": ("roberta", [_with(pre_tokenizer=pre_tokenizers.ByteLevel(add_prefix_space=True))]),
    "runs of spaces": ("modernbert", [_normalizing(normalizers.NFC()), _adding("  ", "   ", "      ")]),
    "as ALBERT": (
        "albert",
        [
            _normalizing(*QUOTES, *NO_ACCENTS, normalizers.Nmt(), normalizers.Replace(Regex(" {2,}"), " ")),
            _splitting(pre_tokenizers.Metaspace()),
        ],
    ),
    "first word": ("xlm-roberta", [_splitting(pre_tokenizers.Metaspace(prepend_scheme="first"))]),
}
# ... and in these a word can depend on the one behind it, so they are not.
JOINING = {
    "added two words": ("bert", [_adding("new york")]),
    "added with a space at the end": ("bert", [_adding("new ")]),
    "added with a tab": ("bert", [_adding("new\tyork")]),
    "added ideographs": ("bert", [_adding(AddedToken("中文", normalized=False))]),
    "spaces dropped": ("bert", [_normalizing(normalizers.Replace(" ", ""))]),
    "replaced across words": ("bert", [_normalizing(normalizers.Replace("w y", "wy"))]),
    "replaced looking ahead": ("bert", [_normalizing(normalizers.Replace(Regex("w(?= y)"), "x"))]),
    "added and stripped": (
        "bert",
        [_normalizing(normalizers.Strip()), _adding(AddedToken("new ", normalized=False))],
    ),
    "split by an expression": (
        "bert",
        [_splitting(pre_tokenizers.Split(Regex(" ?new york| ?\\w+"), "isolated"), WITHOUT_REGEX)],
    ),
    "not split": ("roberta", [_with(pre_tokenizer=WITHOUT_REGEX)]),
    "no pre-tokenizer": ("roberta", [_with(pre_tokenizer=None)]),
    "one piece": ("xlm-roberta", [_with(pre_tokenizer=pre_tokenizers.Metaspace(split=False))]),
}


@cache
def _made(name: str) -> TextTokenizer:
    return TextTokenizer(_json(name), max_length=8)


@cache
def _json(name: str) -> str:
    family, changes = (CUT | JOINING)[name]
    tokenizer = _tokenizer(family)[0]
    for change in changes:
        change(tokenizer)
    return tokenizer.to_str()


@pytest.mark.parametrize("name", [*CUT, *JOINING])
@settings(max_examples=150, deadline=None)
@given(text=TEXTS, limit=st.integers(1, 200))
@example("new york " * 9, 1)
@example("中文" * 9, 1)
@example("the ... of " * 9, 1)
def test_the_tokens_of_a_cut_text_are_the_first_of_the_text(name, text, limit):
    tokenizer = _made(name)
    part, whole = tokenizer._tokenizer.encode_batch_fast([tokenizer._cut(text, limit), text])
    assert part.ids == whole.ids[: len(part)]


@pytest.mark.parametrize("name", [*CUT, *JOINING])
@settings(max_examples=50, deadline=None)
@given(
    texts=st.lists(TEXTS, min_size=1, max_size=3),
    max_length=st.integers(4, 24),
    side=st.sampled_from(["right", "right", "right", "left"]),
    prompt=st.sampled_from(["", "", "query: "]),
    first_guess=st.sampled_from([1, 2, 6]),
)
@example(["new york " * 40, "中文" * 90, "words " * 80], 8, "right", "", 1)
@example([" " * 300 + "the end", "\u200b" * 400 + " of the", "x" * 500 + " a b"], 8, "right", "query: ", 1)
def test_cutting_changes_nothing(name, texts, max_length, side, prompt, first_guess):
    tokenizer = TextTokenizer(_json(name), max_length=max_length, prompt=prompt, truncation_side=side)
    with mock.patch.object(tokenizing, "_CHARS_PER_TOKEN", first_guess):
        found = tokenizer(texts)
    plain = Tokenizer.from_str(_json(name))
    whole = [prompt + text for text in texts]
    assert found.truncated.tolist() == [len(row) > max_length for row in plain.encode_batch_fast(whole)]
    plain.enable_truncation(max_length, direction=side)
    for i, expected in enumerate(plain.encode_batch_fast(whole)):
        assert found.ids(i).tolist() == expected.ids


@pytest.mark.parametrize("name", CUT)
@pytest.mark.parametrize(
    "word", ["the", "42", "naïve", "ελληνικά", "русский", "שלום", "العربية", "कमल", "한국어"]
)
def test_long_prose_is_cut(name, word):
    tokenizer = _made(name)
    assert tokenizer._cut(f"{word} " * 999, 100).removesuffix(word).endswith(f"{word} ")
    assert len(tokenizer._cut(f"{word} " * 999, 100)) < 100 + 2 * len(word)


def test_ideographs_are_cut_only_where_each_is_a_word():
    assert len(_made("bert")._cut("中文" * 500, 100)) < 104
    assert len(_made("xlm-roberta")._cut("中文" * 500, 100)) == 1000


@pytest.mark.parametrize("name", JOINING)
def test_tokenizers_that_join_words_are_not_cut(name):
    assert _made(name)._cuts is None


def test_left_truncation_is_not_cut():
    assert TextTokenizer(_json("bert"), max_length=8, truncation_side="left")._cuts is None


def test_only_what_is_needed_is_tokenized():
    tokenizer = TextTokenizer(_json("bert"), max_length=8)
    inner, given_lengths = tokenizer._tokenizer, []

    class Spy:
        def encode_batch_fast(self, batch):
            given_lengths.extend(map(len, batch))
            return inner.encode_batch_fast(batch)

    tokenizer._tokenizer = Spy()
    tokenizer(["the of " * 9999, "learning " * 9999, "the"])
    # "learning" is one token: the second text, and only that, needs a longer beginning
    assert given_lengths == [48, 53, 3, 98]


def test_a_post_processor_that_does_more_is_refused():
    own = _tokenizer("bert")[0]
    template = {
        "single": "[CLS] $A [SEP] $A",
        "pair": "$A $B",
        "special_tokens": [("[CLS]", 2), ("[SEP]", 3)],
    }
    own.post_processor = processors.TemplateProcessing(**template)
    with pytest.raises(ValueError, match="post-processor"):
        TextTokenizer(own.to_str(), max_length=8)
