"""Random numbers that depend on nothing but whose token they are for.

Philox (see `kernels.philox`) is a function of two numbers and has no state that preemption, batching, chunking or another
device could change. A request's seed is its key, and what it counts is the place of a token:

    step  =  sample index (upper 32 bits)  |  output position (lower 32 bits)

The sampling kernel takes key and count and makes the number itself; elsewhere `number` is the same one as a float.
"""

from typing import NamedTuple

from kernels.philox import philox

_SCALE = 2.0**-53


class Counter(NamedTuple):
    """Which random number; both are within an int64, which is what a kernel takes."""

    seed: int
    step: int


def counter(seed: int, sample_index: int, position: int) -> Counter:
    """Return the random number's place for one output position of one sample; seeds that differ by 2^64 are one."""
    return Counter((seed + (1 << 63)) % (1 << 64) - (1 << 63), sample_index << 32 | position)


def number(place: Counter) -> float:
    """Return that random number in [0, 1): its upper 53 bits, which is what a float holds."""
    return (philox(*place) >> 11) * _SCALE


def uniform(seed: int, sample_index: int, position: int) -> float:
    """Return the number in [0, 1), uniform, for one output position of one sample."""
    return number(counter(seed, sample_index, position))
