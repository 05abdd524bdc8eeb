"""Random numbers that depend on nothing but whose token they are for."""

import hashlib

_SCALE = 2.0**-53


def uniform(seed: int, sample_index: int, position: int) -> float:
    """Return a number in [0, 1), uniform, for one output position of one sample.

    Counter-based (Salmon et al. 2011): no state that preemption, batching, chunking or another device could change.
    """
    key = b"%d:%d:%d" % (seed, sample_index, position)
    digest = hashlib.blake2b(key, digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * _SCALE
