"""How a row of logits is cut at a top-k or a top-p without sorting it (after FlashInfer's pivot search, Ye et al. 2025).

Top-k, top-p and min-p all keep a beginning of the row as a sort would order it: largest first, and equals by lowest index. So
what a row keeps is two numbers: the smallest logit that counts, the *cutoff*, and the index of the last of its equals.

    logits      1.5   3.0   0.5   1.5   2.0   1.5
    kept         ×     ×           ×     ×            top-k 4: cutoff 1.5, last of its equals at index 3

    measure     how many (or how probable) are the logits above a pivot: one pass over the row
    cutoff      the pivot moves by bisection between two logits of the row, until they are one
    locate      the first index at which a running sum passes a limit: the last equal, and later the draw itself

Pivots are not floats but the integers of their bits in an order that agrees with the floats': a bisection of these ends
after 32 steps whatever the numbers are. Probabilities are whole multiples of 2^-40 of the largest one: their sums are exact,
so neither the size of a block nor the number of warps has a say in which token is drawn.
"""

from kernels.triton_api import jit, tl

UNITS = 2.0**40
"""To the most probable token's weight. 2^18 tokens lose less than 2^-22 together, and their sum fits into 63 bits."""
UNIT = tl.constexpr(UNITS)
LOWEST = tl.constexpr(-(2**31))
STAGES = tl.constexpr(4)
"""Blocks on their way at once: a pass does little arithmetic, and one block a time would leave the memory waiting."""
HIGHEST = tl.constexpr(2**31 - 1)


@jit
def load_logits(values_ptr, index, num_values):
    """Load logits as float32, -inf beyond the end; both zeros become one."""
    value = tl.load(values_ptr + index, mask=index < num_values, other=float("-inf")).to(tl.float32)
    return tl.where(value == 0.0, 0.0, value)


@jit
def key_of(value):
    """Map float32 to int32 so that the order stays: a negative float's other bits count backwards."""
    bits = value.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@jit
def value_of(key):
    """Undo `key_of`."""
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@jit
def ratio_of(value, largest, temperature):
    """Return how probable a logit is, as a share of the most probable one: float32 in [0, 1]."""
    return tl.exp((value - largest) / temperature)


@jit
def weight_of(ratio):
    """Return the ratio as a whole number of units."""
    return (ratio * UNIT).to(tl.int64)


@jit
def measure(values_ptr, num_values, pivot, largest, temperature, min_p, BLOCK: tl.constexpr):
    """Count and weigh the keys from pivot on that min-p leaves; and return the smallest of them and the largest below pivot."""
    lanes = tl.arange(0, BLOCK)
    count, weight = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int64)
    smallest, below = tl.full((BLOCK,), HIGHEST, tl.int32), tl.full((BLOCK,), LOWEST, tl.int32)
    for start in tl.range(0, num_values, BLOCK, num_stages=STAGES):
        value = load_logits(values_ptr, start + lanes, num_values)
        key, ratio = key_of(value), ratio_of(value, largest, temperature)
        counts = (start + lanes < num_values) & (key >= pivot) & (ratio >= min_p)
        count += counts.to(tl.int32)
        weight += tl.where(counts, weight_of(ratio), 0)
        smallest = tl.minimum(smallest, tl.where(counts, key, HIGHEST))
        below = tl.maximum(below, tl.where(key < pivot, key, LOWEST))
    return tl.sum(count, 0), tl.sum(weight, 0), tl.min(smallest, 0), tl.max(below, 0)


@jit
def find_cutoff(
    values_ptr, num_values, low, high, limit, largest, temperature, min_p, BY_WEIGHT: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    """Return the largest key from which on the row measures `limit` at least, and what the keys beyond it measure.

    low, high: keys of the row; from low on it measures enough, beyond high it does not measure anything.
    """
    beyond = limit * 0
    while low < high:
        pivot = (low | high) - ((low ^ high) >> 1)  # the mean, rounded up, without the sum that would overflow
        count, weight, smallest, below = measure(values_ptr, num_values, pivot, largest, temperature, min_p, BLOCK)
        measured = weight if BY_WEIGHT else count.to(tl.int64)
        is_enough = measured >= limit
        low = tl.where(is_enough, smallest, low)
        high = tl.where(is_enough, high, below)
        beyond = tl.where(is_enough, beyond, measured)
    return low, beyond


@jit
def locate(
    values_ptr, num_values, cutoff, last_equal, each, limit, largest, temperature,
    AMONG_EQUALS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Return the first index at which a running sum exceeds `limit`, or num_values if none does; and the sum there.

    Summed up are the logits that equal the cutoff, as `each` of them counts, or else the weights of all that are kept. Blocks
    are summed up until the one is found in which it happens; only that one is scanned.
    """
    lanes = tl.arange(0, BLOCK)
    before, reached, start, found = limit * 0, limit * 0, num_values * 0, num_values
    while start < num_values:
        value = load_logits(values_ptr, start + lanes, num_values)
        key = key_of(value)
        equals = (key == cutoff) & (start + lanes < num_values)
        if AMONG_EQUALS:
            share = tl.where(equals, each, 0)
        else:
            keeps = (key > cutoff) | (equals & (start + lanes <= last_equal))
            share = tl.where(keeps, weight_of(ratio_of(value, largest, temperature)), 0)
        total = tl.sum(share, 0)
        start += BLOCK
        if before + total > limit:
            sums = before + tl.cumsum(share, 0)
            exceeds = sums > limit
            found = start - BLOCK + tl.min(tl.where(exceeds, lanes, BLOCK), 0)
            reached = tl.min(tl.where(exceeds, sums, before + total), 0)
            start = num_values
        before += total
    return found, reached


@jit
def select_candidates(
    row_ptr, values_ptr, indices_ptr, num_values, lane_keys, wanted, largest, temperature, min_p, BLOCK: tl.constexpr
):  # fmt: skip
    """Copy the row's largest logits, `wanted` of them at least and all their equals, in order, to values_ptr and indices_ptr.

    All three are [BLOCK]. lane_keys: the largest key of every BLOCK-th column. The wanted-largest of these is a bound that so
    many logits reach at least, and hardly more if lanes are many: the largest of a row seldom share one. Returns how many
    reach it, which may be more than were copied; and count, weight and smallest key of the whole row, as `measure` does.
    """
    low, high = tl.min(lane_keys, 0), tl.max(lane_keys, 0)
    reaching = tl.sum((lane_keys >= low).to(tl.int32), 0)
    while (low < high) & (reaching > wanted + wanted // 2):  # a rough bound is good enough
        pivot = (low | high) - ((low ^ high) >> 1)
        measured = tl.sum((lane_keys >= pivot).to(tl.int32), 0)
        is_enough = measured >= wanted
        low = tl.where(is_enough, pivot, low)
        high = tl.where(is_enough, high, pivot - 1)
        reaching = tl.where(is_enough, measured, reaching)
    lanes = tl.arange(0, BLOCK)
    count, weight = tl.zeros((BLOCK,), tl.int32), tl.zeros((BLOCK,), tl.int64)
    smallest, selected = tl.full((BLOCK,), HIGHEST, tl.int32), num_values * 0
    for start in tl.range(0, num_values, BLOCK, num_stages=STAGES):
        value = load_logits(row_ptr, start + lanes, num_values)
        key, ratio = key_of(value), ratio_of(value, largest, temperature)
        inside = start + lanes < num_values
        counts = inside & (ratio >= min_p)
        count += counts.to(tl.int32)
        weight += tl.where(counts, weight_of(ratio), 0)
        smallest = tl.minimum(smallest, tl.where(counts, key, HIGHEST))
        reaches = (inside & (key >= low)).to(tl.int32)
        num_reaching = tl.sum(reaches, 0)
        if num_reaching > 0:
            place = selected + tl.cumsum(reaches, 0) - 1
            fits = (reaches > 0) & (place < BLOCK)
            tl.store(values_ptr + place, value.to(values_ptr.dtype.element_ty), mask=fits)
            tl.store(indices_ptr + place, start + lanes, mask=fits)
        selected += num_reaching
    tl.debug_barrier()  # what one thread has stored, others will load
    return selected, tl.sum(count, 0), tl.sum(weight, 0), tl.min(smallest, 0)
