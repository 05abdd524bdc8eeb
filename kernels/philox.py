"""Philox4x32-10: random numbers by their number, without a state (Salmon et al. 2011, "As easy as 1, 2, 3").

    random(seed, step) = ten rounds of   c0, c1, c2, c3 ← hi(B·c2) ^ c1 ^ k0,  lo(B·c2),  hi(A·c0) ^ c3 ^ k1,  lo(A·c0)
                         from the counter c = (step's low half, its high half, 0, 0) and the key k = (seed's halves)

Whoever knows seed and step knows the number: nothing to save, and nothing that the order of a batch could change.
"""

from kernels.triton_api import jit, tl

_MASK = 0xFFFFFFFF


def philox(seed: int, step: int) -> int:
    """Return the random 64-bit number of a step; seed and step are taken modulo 2^64."""
    c0, c1, c2, c3 = step & _MASK, step >> 32 & _MASK, 0, 0
    k0, k1 = seed & _MASK, seed >> 32 & _MASK
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = b >> 32 ^ c1 ^ k0, b & _MASK, a >> 32 ^ c3 ^ k1, a & _MASK
        k0, k1 = k0 + 0x9E3779B9 & _MASK, k1 + 0xBB67AE85 & _MASK
    return c0 << 32 | c1


@jit
def random_64(seed, step):
    """Return the same number in a kernel, as uint64; seed and step are int64."""
    low, high = (step & 0xFFFFFFFF).to(tl.uint32), ((step >> 32) & 0xFFFFFFFF).to(tl.uint32)
    first, second, _, _ = tl.philox(seed, low, high, low * 0, low * 0)
    return (first.to(tl.uint64) << 32) | second.to(tl.uint64)
