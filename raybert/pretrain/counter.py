"""Random numbers that are a function of their name (seed, epoch, key, position), not of what was drawn before.

The generator is splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, OOPSLA 2014):
every part of a name picks one number of the stream that the parts before it start.
"""

import numpy as np

_ALL = (1 << 64) - 1
_STEP, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_TO_UNIT = 2.0**-53


def mix(*parts: int) -> int:
    """64 random bits for a name of integers: the scalar form of `bits`, and equal to it."""
    state = 0
    for part in parts:
        state = (state + _STEP * (part + 1)) & _ALL
        state = ((state ^ (state >> 30)) * _FIRST) & _ALL
        state = ((state ^ (state >> 27)) * _SECOND) & _ALL
        state ^= state >> 31
    return state


def bits(*parts: int | np.ndarray) -> np.ndarray:
    """64 random bits each, uint64, for names whose parts are integers or integer arrays that broadcast."""
    state = np.zeros(1, np.uint64)
    for part in parts:
        place = np.atleast_1d(np.asarray(part & _ALL if isinstance(part, int) else part)).astype(np.uint64)
        state = state + np.uint64(_STEP) * (place + np.uint64(1))
        state = (state ^ (state >> np.uint64(30))) * np.uint64(_FIRST)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(_SECOND)
        state ^= state >> np.uint64(31)
    return state


def uniform(*parts: int | np.ndarray) -> np.ndarray:
    """Numbers in [0, 1), float64, multiples of 2^-53; names as in `bits`."""
    return (bits(*parts) >> np.uint64(11)) * _TO_UNIT


def permutation(size: int, *parts: int) -> np.ndarray:
    """A random order of `size` things, int64: the same on every machine and with every numpy."""
    return np.argsort(bits(*parts, np.arange(size)), kind="stable")


class Draws:
    """The numbers with names (*name, 0), (*name, 1), ...: one after the other, for decisions made in turn."""

    def __init__(self, *name: int) -> None:
        self._name = mix(*name)
        self._count = -1

    def bits(self) -> int:
        """64 random bits."""
        self._count += 1
        return mix(self._name, self._count)

    def uniform(self) -> float:
        """A number in [0, 1)."""
        return (self.bits() >> 11) * _TO_UNIT

    def below(self, limit: int) -> int:
        """An integer in [0, limit); uniform but for a bias of limit / 2^64."""
        return (self.bits() * limit) >> 64

    def heads(self, flips: int) -> int:
        """How many of so many fair coins show heads."""
        count = 0
        while flips > 64:
            count += self.bits().bit_count()
            flips -= 64
        return count + (self.bits() & ((1 << flips) - 1)).bit_count() if flips else count
