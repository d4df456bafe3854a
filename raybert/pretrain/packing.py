"""Which instances go together in one forward pass without padding: bins of a token budget, filled as well as can be."""

import numpy as np

from raybert.pretrain.counter import mix, permutation

# Names of the independent streams of random numbers
_WITHIN, _AMONG = range(2)


def pack(lengths: np.ndarray, budget: int, *, seed: int = 0) -> list[np.ndarray]:
    """Bins of at most `budget` tokens: int64 arrays of instance numbers, every instance in one of them.

    A bin takes instances in random order while the longest would still fit, so that bins are alike in their mix of
    lengths; then always the longest that fits, over a histogram of the lengths left (as best-fit packing of
    Krell et al., arXiv 2107.02027). Bins come in random order. The result is a function of the arguments. Raises
    ValueError for a length below 1 or above the budget.
    """
    lengths = np.asarray(lengths, np.int64)
    if not len(lengths):
        return []
    longest = int(lengths.max())
    if longest > budget:
        raise ValueError(f"a sequence of {longest} tokens does not fit in a bin of {budget}")
    if lengths.min() < 1:
        raise ValueError("a sequence without tokens cannot be packed")
    order = permutation(len(lengths), mix(seed, _WITHIN))
    bins = _fill(lengths[order].tolist(), budget, longest)
    return [order[bins[i]] for i in permutation(len(bins), mix(seed, _AMONG))]


def _fill(lengths: list[int], budget: int, longest: int) -> list[list[int]]:
    """Bins of places in `lengths`; instances are taken in order while `longest` tokens are free."""
    left = _Histogram(lengths)
    following, bins = 0, []
    while left.lengths:
        free, members = budget, []
        while free >= longest and following < len(lengths):
            if not left.taken[following]:
                left.take(following)
                members.append(following)
                free -= lengths[following]
            following += 1
        while length := left.longest(free):
            place = left.any_of(length)
            left.take(place)
            members.append(place)
            free -= length
        bins.append(members)
    return bins


class _Histogram:
    """The instances not yet packed, by length. `lengths` has bit l set while there is one of length l."""

    def __init__(self, lengths: list[int]) -> None:
        self.taken = [False] * len(lengths)
        self.lengths = 0
        self._of = lengths
        self._places: dict[int, list[int]] = {}
        for place in reversed(range(len(lengths))):
            self._places.setdefault(lengths[place], []).append(place)
        self._counts = {length: len(places) for length, places in self._places.items()}
        for length in self._counts:
            self.lengths |= 1 << length

    def longest(self, limit: int) -> int:
        """The longest length left of at most `limit`, 0 if there is none."""
        return max((self.lengths & ((2 << limit) - 1)).bit_length() - 1, 0)

    def any_of(self, length: int) -> int:
        """The first instance of this length that is left."""
        places = self._places[length]
        while self.taken[places[-1]]:
            places.pop()
        return places[-1]

    def take(self, place: int) -> None:
        """Count one instance as packed."""
        length = self._of[place]
        self.taken[place] = True
        self._counts[length] -= 1
        if not self._counts[length]:
            self.lengths &= ~(1 << length)
