"""Instances as google-research/bert makes them: a second, literal writing of the definition, and hand-made cases."""

import random

import pytest

from raybert.pretrain.google import Instance, create_instances, split_documents

VOCABULARY = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *(f"w{i}" for i in range(40)),
    "##a",
    "##b",
    "##c",
]


class ByTheLetter:
    """The definition in its own order: one index that steps back, truncation and masking one token at a time."""

    def __init__(self, vocabulary, rng, length, most, share, short, whole):
        self.vocabulary, self.rng, self.whole = vocabulary, rng, whole
        self.length, self.most, self.share, self.short = length, most, share, short

    def everything(self, documents, times):
        all_of_them = [d for d in documents if d]
        self.rng.shuffle(all_of_them)
        made = []
        for _ in range(times):
            for index in range(len(all_of_them)):
                made.extend(self.one_document(all_of_them, index))
        self.rng.shuffle(made)
        return made

    def one_document(self, documents, index):
        most = self.length - 3
        target = most
        if self.rng.random() < self.short:
            target = self.rng.randint(2, most)
        made, chunk, i = [], [], 0
        while i < len(documents[index]):
            chunk.append(documents[index][i])
            if i == len(documents[index]) - 1 or sum(len(s) for s in chunk) >= target:
                a_end = 1
                if len(chunk) >= 2:
                    a_end = self.rng.randint(1, len(chunk) - 1)
                a = [t for s in chunk[:a_end] for t in s]
                b = []
                random_next = len(chunk) == 1 or self.rng.random() < 0.5
                if random_next:
                    for _ in range(10):
                        other = self.rng.randint(0, len(documents) - 1)
                        if other != index:
                            break
                    j = self.rng.randint(0, len(documents[other]) - 1)
                    while j < len(documents[other]):
                        b.extend(documents[other][j])
                        if len(b) >= target - len(a):
                            break
                        j += 1
                    i -= len(chunk) - a_end
                else:
                    b = [t for s in chunk[a_end:] for t in s]
                while len(a) + len(b) > most:
                    side = a if len(a) > len(b) else b
                    side.pop(0 if self.rng.random() < 0.5 else -1)
                made.append(self.masked(a, b, random_next))
                chunk = []
            i += 1
        return made

    def masked(self, a, b, random_next):
        tokens = ["[CLS]", *a, "[SEP]", *b, "[SEP]"]
        sets = []
        for i in range(len(tokens)):
            if tokens[i] in ("[CLS]", "[SEP]"):
                continue
            if self.whole and sets and tokens[i].startswith("##"):
                sets[-1].append(i)
            else:
                sets.append([i])
        self.rng.shuffle(sets)
        number = min(self.most, max(1, round(len(tokens) * self.share)))
        found, covered, out = {}, set(), tokens[:]
        for group in sets:
            if len(found) >= number:
                break
            if len(found) + len(group) > number or any(i in covered for i in group):
                continue
            for i in group:
                covered.add(i)
                if self.rng.random() < 0.8:
                    out[i] = "[MASK]"
                elif self.rng.random() >= 0.5:
                    out[i] = self.vocabulary[self.rng.randint(0, len(self.vocabulary) - 1)]
                found[i] = tokens[i]
        types = [0] * (len(a) + 2) + [1] * (len(b) + 1)
        return Instance(out, types, random_next, sorted(found), [found[i] for i in sorted(found)])


def corpus(seed: int, documents: int, longest: int) -> list[list[list[str]]]:
    rng = random.Random(seed)
    words = VOCABULARY[5:]
    return [
        [[rng.choice(words) for _ in range(rng.randint(1, longest))] for _ in range(rng.randint(0, 9))]
        for _ in range(documents)
    ]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize(
    ("seed", "documents", "longest", "length", "most", "share", "short"),
    [
        (1, 30, 12, 64, 20, 0.15, 0.1),
        (2, 30, 40, 32, 4, 0.15, 0.5),
        (3, 1, 30, 48, 20, 0.15, 0.1),
        (4, 20, 90, 24, 3, 0.3, 1.0),
        (5, 12, 6, 5, 1, 0.15, 0.3),
        (12345, 40, 25, 128, 20, 0.15, 0.1),
    ],
)
def test_both_writings_agree(seed, documents, longest, length, most, share, short, whole):
    given = corpus(seed, documents, longest)
    ours, theirs = random.Random(seed), random.Random(seed)
    made = create_instances(
        given,
        VOCABULARY,
        ours,
        max_length=length,
        max_predictions=most,
        mask_probability=share,
        duplicates=3,
        short_probability=short,
        whole_words=whole,
    )
    expected = ByTheLetter(VOCABULARY, theirs, length, most, share, short, whole).everything(given, 3)
    assert made == expected
    assert ours.getstate() == theirs.getstate()
    assert len(made) >= 3


def test_the_input_is_left_alone():
    given = corpus(7, 10, 10)
    copy = [[list(sentence) for sentence in document] for document in given]
    create_instances(given, VOCABULARY, random.Random(1))
    assert given == copy


def test_empty_documents_and_sentences_count_for_nothing():
    given = [document for document in corpus(8, 10, 10) if document]
    padded = [[], *([[], *document, []] for document in given), [[]]]
    made = create_instances(given, VOCABULARY, random.Random(1))
    assert made == create_instances(padded, VOCABULARY, random.Random(1))
    assert create_instances([[], [[]]], VOCABULARY, random.Random(1)) == []


@pytest.mark.parametrize("whole", [False, True])
def test_what_every_instance_is(whole):
    documents = corpus(11, 60, 30)
    made = create_instances(documents, VOCABULARY, random.Random(3), max_length=64, whole_words=whole)
    for instance in made:
        tokens = list(instance.tokens)
        for position, label in zip(instance.masked_positions, instance.masked_labels, strict=True):
            tokens[position] = label
        ends = [i for i, token in enumerate(tokens) if token == "[SEP]"]
        assert len(tokens) <= 64
        assert tokens[0] == "[CLS]"
        assert len(ends) == 2
        assert ends[1] == len(tokens) - 1
        assert instance.segment_ids == [int(i > ends[0]) for i in range(len(tokens))]
        wanted = min(20, max(1, round(len(tokens) * 0.15)))
        assert instance.masked_positions == sorted(set(instance.masked_positions))
        assert len(instance.masked_positions) <= wanted
        assert whole or len(instance.masked_positions) == min(wanted, len(tokens) - 3)
        assert not {0, *ends} & set(instance.masked_positions)
    share = sum(instance.is_random_next for instance in made) / len(made)
    assert 0.5 < share < 0.75


def test_half_a_token_is_rounded_to_the_even_number():
    # 7 + 3 special tokens: 1.5 becomes 2; 27 + 3: 4.5 becomes 4
    for words, wanted in ((7, 2), (27, 4)):
        documents = [[["w1"] * 2, ["w2"] * (words - 2)]]
        lengths = {
            len(instance.tokens): len(instance.masked_positions)
            for seed in range(20)
            for instance in create_instances(documents, VOCABULARY, random.Random(seed), duplicates=1)
            if not instance.is_random_next
        }
        assert lengths[words + 3] == wanted


def test_a_continuation_at_the_start_of_b_joins_the_last_word_of_a():
    documents = [[["w1"], ["##a"]]]
    for seed in range(20):
        made = create_instances(
            documents, VOCABULARY, random.Random(seed), mask_probability=0.4, duplicates=1, whole_words=True
        )
        for instance in made:
            if not instance.is_random_next:
                assert instance.masked_positions == [1, 3]


def test_too_short():
    with pytest.raises(ValueError, match="max_length is 4"):
        create_instances([[["a"]]], VOCABULARY, random.Random(1), max_length=4)


def test_documents_of_a_file():
    lines = ["One.\n", " Two. \n", "\n", "\n", "\t\n", "Three.", ""]
    assert split_documents(lines) == [["One.", "Two."], [], [], ["Three."], []]
    assert split_documents([]) == [[]]
