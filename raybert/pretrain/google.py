"""The instances that google-research/bert's `create_pretraining_data.py` makes, draw for draw."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

CLS, SEP, MASK = "[CLS]", "[SEP]", "[MASK]"
_PAIR_SPECIALS = 3  # [CLS] A [SEP] B [SEP]
_DONOR_TRIES = 10

Sentence = list[str]
Document = list[Sentence]


@dataclass(frozen=True)
class Instance:
    """One training sequence `[CLS] A [SEP] B [SEP]` with its masks.

    `tokens` are those after masking; `segment_ids` are 0 up to the first [SEP], then 1; `is_random_next` says that
    B does not follow A; `masked_positions` ascend, `masked_labels` are the true tokens there.
    """

    tokens: list[str]
    segment_ids: list[int]
    is_random_next: bool
    masked_positions: list[int]
    masked_labels: list[str]


class _Settings(NamedTuple):
    room: int  # tokens of A and B together
    max_predictions: int
    mask_probability: float
    short_probability: float
    whole_words: bool


def split_documents(lines: Iterable[str]) -> list[list[str]]:
    """Documents as lists of sentences: one sentence a line, an empty line between documents.

    Lines are stripped of white space. Empty documents are kept; `create_instances` drops them.
    """
    documents: list[list[str]] = [[]]
    for line in lines:
        sentence = line.strip()
        if sentence:
            documents[-1].append(sentence)
        else:
            documents.append([])
    return documents


def create_instances(
    documents: list[list[list[str]]],
    vocabulary: Sequence[str],
    random: Random,
    *,
    max_length: int = 128,
    max_predictions: int = 20,
    mask_probability: float = 0.15,
    duplicates: int = 10,
    short_probability: float = 0.1,
    whole_words: bool = False,
) -> list[Instance]:
    """Shuffled instances of tokenized documents (lists of sentences, which are lists of WordPieces).

    The same as those of google-research/bert's `create_pretraining_data.py` for one input file whose `vocabulary`
    is in the file's order and whose generator is in the same state: every draw is made in the same order. Every
    document must be given at once, because the random second segment comes from any of them. As there, a segment
    pair called random may by chance come from the document itself (always, where there is only one).

    Raises ValueError if max_length is below 5: the script draws a length between 2 and max_length - 3.
    """
    if max_length < _PAIR_SPECIALS + 2:
        raise ValueError(f"max_length is {max_length}; pairs need at least {_PAIR_SPECIALS + 2}")
    settings = _Settings(
        max_length - _PAIR_SPECIALS, max_predictions, mask_probability, short_probability, whole_words
    )
    kept = [[sentence for sentence in document if sentence] for document in documents]
    kept = [document for document in kept if document]
    random.shuffle(kept)
    instances: list[Instance] = []
    for _ in range(duplicates):
        for number in range(len(kept)):
            instances += _document_instances(kept, number, vocabulary, random, settings)
    random.shuffle(instances)
    return instances


def _document_instances(
    documents: list[Document], number: int, vocabulary: Sequence[str], random: Random, settings: _Settings
) -> list[Instance]:
    """The instances of one document: chunks of about the target length, each cut in two segments."""
    document = documents[number]
    target = settings.room
    if random.random() < settings.short_probability:
        target = random.randint(2, settings.room)
    instances = []
    start = 0
    while start < len(document):
        end = _fill(document, start, target)
        middle = start + (random.randint(1, end - start - 1) if end - start >= 2 else 1)
        first = _join(document[start:middle])
        is_random = end - start == 1 or random.random() < 0.5
        if is_random:
            second = _random_segment(documents, number, target - len(first), random)
        else:
            second = _join(document[middle:end])
        _truncate(first, second, settings.room, random)
        instances.append(_masked(first, second, is_random, vocabulary, random, settings))
        # a random pair leaves the rest of its chunk to the next one
        start = middle if is_random else end
    return instances


def _fill(document: Document, start: int, target: int) -> int:
    """End of the run of sentences from `start` that has at least `target` tokens, or of the document."""
    length = 0
    for end in range(start, len(document)):
        length += len(document[end])
        if length >= target:
            return end + 1
    return len(document)


def _join(sentences: Iterable[Sentence]) -> Sentence:
    return [token for sentence in sentences for token in sentence]


def _random_segment(documents: list[Document], number: int, target: int, random: Random) -> Sentence:
    """Sentences of a random document from a random one on, one at least, until there are `target` tokens."""
    other = number
    for _ in range(_DONOR_TRIES):
        other = random.randint(0, len(documents) - 1)
        if other != number:
            break
    donor = documents[other]
    start = random.randint(0, len(donor) - 1)
    return _join(donor[start : _fill(donor, start, target)])


def _truncate(first: Sentence, second: Sentence, room: int, random: Random) -> None:
    """Drop tokens of the longer segment in place, at either end, until both fit."""
    while len(first) + len(second) > room:
        longer = first if len(first) > len(second) else second
        if random.random() < 0.5:
            del longer[0]
        else:
            longer.pop()


def _masked(
    first: Sentence,
    second: Sentence,
    is_random: bool,
    vocabulary: Sequence[str],
    random: Random,
    settings: _Settings,
) -> Instance:
    """The instance of two segments, masked."""
    tokens = [CLS, *first, SEP, *second, SEP]
    segment_ids = [0] * (len(first) + 2) + [1] * (len(second) + 1)
    candidates = _candidates(tokens, settings.whole_words)
    random.shuffle(candidates)
    # Python's round: a half goes to the even number, 10 * 0.15 tokens are 2 and 30 * 0.15 are 4
    wanted = min(settings.max_predictions, max(1, round(len(tokens) * settings.mask_probability)))
    output = list(tokens)
    chosen: list[int] = []
    for positions in candidates:
        if len(chosen) >= wanted:
            break
        if len(chosen) + len(positions) > wanted:
            continue
        for position in positions:
            output[position] = _replacement(tokens[position], vocabulary, random)
        chosen += positions
    chosen.sort()
    return Instance(output, segment_ids, is_random, chosen, [tokens[position] for position in chosen])


def _candidates(tokens: Sentence, whole_words: bool) -> list[list[int]]:
    """Positions that are masked together: single tokens, or a word with its `##` continuations.

    A `##` at the beginning of B (its head was truncated) joins the last word of A, as in the script.
    """
    groups: list[list[int]] = []
    for position, token in enumerate(tokens):
        if token in (CLS, SEP):
            continue
        if whole_words and groups and token.startswith("##"):
            groups[-1].append(position)
        else:
            groups.append([position])
    return groups


def _replacement(token: str, vocabulary: Sequence[str], random: Random) -> str:
    """[MASK] in 80 of 100 cases, else the token itself or any token, each in half of them."""
    if random.random() < 0.8:
        return MASK
    if random.random() < 0.5:
        return token
    return vocabulary[random.randint(0, len(vocabulary) - 1)]
