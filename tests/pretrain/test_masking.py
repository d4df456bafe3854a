"""Masks: shares against their definitions, whole words and spans, and that nothing but the instance decides."""

import numpy as np
import pytest

from raybert.pretrain.masking import STYLES, Masking, mask

VOCABULARY, CLS, SEP, MASK = 1000, 1, 2, 3
SPECIAL = np.array([0, CLS, SEP, MASK])


class Batch:
    """Instances `[CLS] A [SEP] B [SEP]` of ordinary ids with words of 1 to 4 tokens."""

    def __init__(self, lengths, seed=0):
        rng = np.random.default_rng(seed)
        self.offsets = np.cumsum([0, *lengths])
        self.values = rng.integers(4, VOCABULARY, self.offsets[-1]).astype(np.int32)
        self.starts = rng.random(self.offsets[-1]) < 0.6
        middles = self.offsets[:-1] + np.array(lengths, int) // 2
        for place, token in ((self.offsets[:-1], CLS), (self.offsets[1:] - 1, SEP), (middles, SEP)):
            self.values[place], self.starts[place] = token, True
        self.keys = np.arange(len(lengths), dtype=np.uint64) + 77

    def take(self, rows):
        """Some of the instances in another order."""
        other = object.__new__(Batch)
        slices = [slice(self.offsets[row], self.offsets[row + 1]) for row in rows]
        other.offsets = np.cumsum([0, *(part.stop - part.start for part in slices)])
        other.values = np.concatenate([self.values[part] for part in slices])
        other.starts = np.concatenate([self.starts[part] for part in slices])
        other.keys = self.keys[list(rows)]
        return other

    def mask(self, style="token", probability=0.15, seed=0, epoch=0):
        return mask(
            self.values,
            self.starts,
            self.offsets,
            self.keys,
            masking=Masking(probability, style),
            seed=seed,
            epoch=epoch,
            vocabulary=VOCABULARY,
            mask_id=MASK,
            special_ids=SPECIAL,
        )

    def rows(self, masked, positions):
        """Per instance its masked ids and the places of its predictions."""
        found = []
        for begin, end in zip(self.offsets, self.offsets[1:], strict=False):
            inside = positions[(positions >= begin) & (positions < end)] - begin
            found.append((masked[begin:end].tolist(), inside.tolist()))
        return found

    def words(self):
        """Token ranges of the words, none of a special token."""
        special = np.isin(self.values, SPECIAL)
        cuts = np.flatnonzero(self.starts | special | np.roll(special, 1))
        ranges = zip(cuts, np.append(cuts[1:], len(self.values)), strict=True)
        return [(a, b) for a, b in ranges if not special[a]]


@pytest.fixture(scope="module")
def batch():
    return Batch([128, 60, 300, 7, 41] * 60)


@pytest.mark.parametrize("probability", [0.15, 0.4])
@pytest.mark.parametrize("style", STYLES)
def test_share_of_tokens(batch, style, probability):
    maskable = int(np.sum(~np.isin(batch.values, SPECIAL)))
    chosen = np.mean([len(batch.mask(style, probability, epoch=epoch)[1]) for epoch in range(4)])
    share = chosen / maskable
    if style == "span":
        assert probability <= share < probability + 0.01  # a budget, over by less than a word an instance
        return
    # the variance of a sum of whole words is that of tokens times E[size^2] / E[size]
    sizes = np.array([b - a for a, b in batch.words()]) if style == "word" else np.ones(1)
    deviation = np.sqrt(probability * (1 - probability) * (sizes**2).mean() / sizes.mean() / (4 * maskable))
    # short instances without a prediction get one: those of 7 tokens lift the share by a little
    assert -4 * deviation < share - probability < 4 * deviation + 0.003


@pytest.mark.parametrize("style", STYLES)
def test_what_becomes_of_the_chosen(batch, style):
    kept = masked = random = count = 0
    tokens = np.zeros(VOCABULARY, int)
    for epoch in range(6):
        ids, positions = batch.mask(style, 0.3, epoch=epoch)
        true, now = batch.values[positions], ids[positions]
        count += len(positions)
        masked += int(np.sum(now == MASK))
        kept += int(np.sum(now == true))
        random += int(np.sum((now != true) & (now != MASK)))
        tokens += np.bincount(now[(now != true) & (now != MASK)], minlength=VOCABULARY)
        others = np.setdiff1d(np.arange(len(ids)), positions)
        assert (ids[others] == batch.values[others]).all()
    # the decision is a span's, of 4.5 tokens or so: fewer decisions than tokens
    tolerance = 4 * np.sqrt(0.25 / (count / (10 if style == "span" else 1)))
    assert abs(masked / count - 0.8) < tolerance
    assert abs(kept / count - 0.1) < tolerance
    assert abs(random / count - 0.1) < tolerance
    # uniform over the whole vocabulary, special tokens and all
    halves = tokens[: VOCABULARY // 2].sum() / tokens.sum()
    assert abs(halves - 0.5) < 4 * np.sqrt(0.25 / tokens.sum())
    assert tokens[[0, CLS, SEP]].sum() > 0


@pytest.mark.parametrize("style", STYLES)
def test_only_the_instance_decides(batch, style):
    whole = batch.rows(*batch.mask(style))
    rows = [7, 3, 200, 4, 299]
    part = batch.take(rows)
    assert part.rows(*part.mask(style)) == [whole[row] for row in rows]
    again = batch.mask(style)
    assert batch.rows(*again) == whole
    for other in (batch.mask(style, epoch=1), batch.mask(style, seed=1)):
        assert batch.rows(*other) != whole
    moved = batch.take(rows)
    moved.keys = moved.keys + np.uint64(1)
    assert moved.rows(*moved.mask(style)) != [whole[row] for row in rows]


@pytest.mark.parametrize("style", STYLES)
def test_positions_ascend_and_special_tokens_are_never_chosen(batch, style):
    ids, positions = batch.mask(style, 0.9)
    assert ids.dtype == np.int32
    assert positions.dtype == np.int64
    assert (np.diff(positions) > 0).all()
    assert not np.isin(batch.values[positions], SPECIAL).any()


@pytest.mark.parametrize("style", STYLES)
def test_short_instances_have_a_prediction(style):
    batch = Batch([4, 5, 6] * 100)  # 1 to 3 tokens to choose from
    _, positions = batch.mask(style, 0.01)
    row = np.searchsorted(batch.offsets, positions, side="right") - 1
    assert set(row.tolist()) == set(range(300))
    assert (batch.mask("token", 0.01)[1].size) == 300
    # any of them, not always the first
    assert len(set((positions - batch.offsets[row])[row % 3 == 2].tolist())) > 1


@pytest.mark.parametrize("style", STYLES)
def test_nothing_to_choose(style):
    batch = Batch([5])
    batch.values[:] = SEP
    batch.starts[:] = True
    ids, positions = batch.mask(style)
    assert (ids == batch.values).all()
    assert len(positions) == 0
    empty = Batch([])
    assert [len(part) for part in empty.mask(style)] == [0, 0]


@pytest.mark.parametrize("style", ["word", "span"])
def test_words_are_whole(batch, style):
    chosen = np.zeros(len(batch.values), bool)
    chosen[batch.mask(style)[1]] = True
    words = batch.words()
    assert sum(b - a for a, b in words) == int(np.sum(~np.isin(batch.values, SPECIAL)))
    shares = {chosen[a:b].mean() for a, b in words}
    assert shares == {0.0, 1.0}


def test_fates_are_drawn_per_token_in_words_and_per_span_in_spans(batch):
    def mixed(style):
        """Share of chosen runs of neighbours of one word in which some tokens are masked and some are not."""
        ids, positions = batch.mask(style, 0.15)
        chosen = np.zeros(len(ids), bool)
        chosen[positions] = True
        fates = [(ids[a:b] == MASK).mean() for a, b in batch.words() if b - a > 1 and chosen[a]]
        return np.mean([0 < fate < 1 for fate in fates])

    assert mixed("word") > 0.2
    assert mixed("span") == 0


def test_span_lengths():
    # one long instance of one-token words with a small share: spans seldom meet
    batch = Batch([4000] * 40)
    batch.starts[:] = True
    _, positions = batch.mask("span", 0.02)
    runs = np.split(positions, np.flatnonzero(np.diff(positions) > 1) + 1)
    lengths = np.array([len(run) for run in runs])
    # geometric with p = 0.2 of at most 10: mean 3.797; the last span of a budget is cut, two may touch
    assert abs(lengths.mean() - 3.8) < 0.25
    assert np.mean(lengths > 10) < 0.03
    shares = np.bincount(lengths, minlength=11)[1:4] / len(lengths)
    expected = 0.2 * 0.8 ** np.arange(3) / (1 - 0.8**10)
    assert np.abs(shares - expected).max() < 0.04


def test_the_budget_of_spans():
    batch = Batch([102] * 50)
    batch.starts[:] = True
    _, positions = batch.mask("span", 0.15)
    row = np.searchsorted(batch.offsets, positions, side="right") - 1
    assert (np.bincount(row) == round(0.15 * 99)).all()


@pytest.mark.parametrize("style", ["word", "span"])
def test_words_and_spans_end_with_their_instance(style):
    # ordinary tokens only, and no instance begins with a start
    batch = Batch([30] * 200)
    batch.values[:] = 9
    batch.starts[:] = np.tile(np.arange(30) % 3 == 1, 200)
    whole = batch.rows(*batch.mask(style))
    for row in range(0, 200, 10):
        alone = batch.take([row])
        assert alone.rows(*alone.mask(style)) == [whole[row]]


@pytest.mark.parametrize(
    ("probability", "style"), [(0, "token"), (1, "token"), (-0.1, "word"), (0.15, "words")]
)
def test_settings_that_cannot_be(probability, style):
    with pytest.raises(ValueError, match="masking"):
        Masking(probability, style)
