"""One step of the online softmax (Milakov and Gimelshein 2018; FlashAttention, Dao et al. 2022), over keys that lie anywhere.

A tile of queries walks over the keys, BLOCK_N at a time. What it knows of the keys seen so far is three things a row:

    peak    m  = max of the scores              m' = max(m, max s)
    total   l  = Σ exp(s - m)                   l' = l · exp(m - m') + Σ exp(s - m')
    acc     o  = Σ exp(s - m) · v               o' = o · exp(m - m') + exp(s - m') · V

and at the end softmax(s) · V = o / l and log Σ exp(s) = m + log l. No score ever goes to memory. Exponents are kept to
the base 2, which is what the hardware has: exp(s - m) = 2^(s · log2 e - m · log2 e).

Keys are found by a page and a slot, whether they are paged, [N, B, 2, Hkv, D] with a table of block ids for each
sequence, or dense, [Tk, Hkv, D], which is one long page. Quantized keys and values (int8 or FP8) have one scale a token
and head. It belongs to a whole column of scores, and so it multiplies scores and probabilities, not the tiles: (q · k̂) ·
scale.
"""

from typing import NamedTuple

import torch

from kernels.triton_api import jit, tl

LOG2_E = 1.4426950408889634


class Attended(NamedTuple):
    """What queries got from some keys; enough to be merged with what they get from others."""

    out: torch.Tensor
    """[T, Hq, D]; 0 where a query saw no key."""
    log_sum_exp: torch.Tensor
    """[T, Hq] float32, of the scaled scores; -inf where a query saw no key."""


def attend_reference(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, *, causal: bool, window: int = 0
) -> Attended:
    """Attend the query [Tq, Hq, D] of one sequence to its key and value [Tk, Hkv, D], by torch, in float32 at least.

    causal: the query is the end of the sequence; token i of it sees the keys 0 to Tk - Tq + i, and with a window the last
    `window` of those.
    """
    num_queries, num_keys, group = query.shape[0], key.shape[0], query.shape[1] // key.shape[1]
    working = torch.promote_types(query.dtype, torch.float32)
    spread_key, spread_value = (x.to(working).repeat_interleave(group, dim=1) for x in (key, value))  # [Tk, Hq, D]
    scores = torch.einsum("qhd,khd->qhk", query.to(working), spread_key) * scale
    if causal:
        distance = torch.arange(num_keys - num_queries, num_keys).unsqueeze(1) - torch.arange(num_keys)  # [Tq, Tk]
        hidden = (distance < 0) | (distance >= window if window else False)
        scores.masked_fill_(hidden.to(scores.device).unsqueeze(1), float("-inf"))
    log_sum_exp = torch.logsumexp(scores, dim=-1)
    weights = torch.exp(scores - log_sum_exp.nan_to_num(neginf=0.0).unsqueeze(-1))
    return Attended(torch.einsum("qhk,khd->qhd", weights, spread_value).to(query.dtype), log_sum_exp)


@jit
def _rows(ptr, offsets, inside, HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    """Load the heads [BLOCK_N, BLOCK_D] that begin at `offsets`, zeros beyond the keys and beyond the head."""
    columns = tl.arange(0, BLOCK_D)
    places = ptr + offsets[:, None] + columns[None, :]
    if MASKED:
        return tl.load(places, mask=inside[:, None] & (columns < HEAD_DIM)[None, :], other=0.0)
    if HEAD_DIM < BLOCK_D:
        return tl.load(places, mask=(columns < HEAD_DIM)[None, :], other=0.0)
    return tl.load(places)


@jit
def _scales(places, inside, MASKED: tl.constexpr):
    return tl.load(places, mask=inside, other=0.0) if MASKED else tl.load(places)


@jit
def attend_tile(
    query, acc, total, peak, low, high, start, num_keys,
    k_ptr, v_ptr, k_scale_ptr, v_scale_ptr, table_ptr,
    k_page_stride, k_token_stride, v_page_stride, v_token_stride, scale_page_stride, scale_token_stride, log2_scale,
    PAGE: tl.constexpr, HEAD_DIM: tl.constexpr, COMPUTE: tl.constexpr, PRECISION: tl.constexpr,
    MASKED: tl.constexpr, WINDOWED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Let query [M, D] see the keys from `start` on; return the new acc [M, D], total [M] and peak [M].

    Row r sees the keys from low[r] to high[r] - 1; without MASKED every row sees the whole tile, and it lies within the
    keys. The pointers are those of this KV head (and of this sequence, where keys are dense). PAGE is 0 for dense keys.
    """
    slot = tl.arange(0, BLOCK_N)
    keys = start + slot
    inside = keys < num_keys
    if PAGE > 0:
        table_places = table_ptr + keys // PAGE
        page = (tl.load(table_places, mask=inside, other=0) if MASKED else tl.load(table_places)).to(tl.int64)
        slot = keys % PAGE
        k_rows, v_rows = page * k_page_stride + slot * k_token_stride, page * v_page_stride + slot * v_token_stride
        scale_rows = page * scale_page_stride + slot * scale_token_stride
    else:  # one page, so long that only the way to the tile needs 64 bits
        far = tl.full([], start, tl.int64)
        k_ptr += far * k_token_stride
        v_ptr += far * v_token_stride
        k_rows, v_rows, scale_rows = slot * k_token_stride, slot * v_token_stride, slot * scale_token_stride
        if k_scale_ptr is not None:
            k_scale_ptr += far * scale_token_stride
            v_scale_ptr += far * scale_token_stride
    k = _rows(k_ptr, k_rows, inside, HEAD_DIM, BLOCK_D, MASKED).to(COMPUTE)
    scores = tl.dot(query, tl.trans(k), input_precision=PRECISION)  # [M, N]
    if k_scale_ptr is not None:
        scores *= _scales(k_scale_ptr + scale_rows, inside, MASKED)[None, :]
    if MASKED:
        visible = keys[None, :] < high[:, None]
        if WINDOWED:
            visible &= keys[None, :] >= low[:, None]
        scores = tl.where(visible, scores, float("-inf"))
    new_peak = tl.maximum(peak, tl.max(scores, axis=1) * log2_scale)
    # A row that has seen nothing yet has the peak -inf, and -inf - -inf is not a number.
    anchor = tl.where(new_peak == float("-inf"), 0.0, new_peak) if MASKED else new_peak
    weights = tl.exp2(scores * log2_scale - anchor[:, None])
    decay = tl.exp2(peak - anchor)
    total = total * decay + tl.sum(weights, axis=1)
    if v_scale_ptr is not None:
        weights *= _scales(v_scale_ptr + scale_rows, inside, MASKED)[None, :]
    v = _rows(v_ptr, v_rows, inside, HEAD_DIM, BLOCK_D, MASKED).to(COMPUTE)
    acc = tl.dot(weights.to(COMPUTE), v, acc * decay[:, None], input_precision=PRECISION)
    return acc, total, new_peak


@jit
def finish(acc, total, peak):
    """Return the attended values [M, D] and the natural log-sum-exp [M]: 0 and -inf for a row that saw no key."""
    some = tl.where(total > 0.0, total, 1.0)
    return acc / some[:, None], tl.where(total > 0.0, (peak + tl.log2(some)) * 0.6931471805599453, float("-inf"))
