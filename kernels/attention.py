"""Attention over a paged KV cache (PagedAttention; Kwon et al. 2023).

    out = softmax(q · Kᵀ / sqrt(D) + mask) · V

The queries of one step come flat, [T, Hq, D], and in groups: all decodes of similar length as one padded group, each
prefill chunk as one group of its own.

    rows      0 1 2 3 | 4 5 6 7 8 | 9 10 11
              decodes | chunk of  | chunk of
              a b c d | request e | request f        q_len 1 | 5 | 3

The reference gathers a group's blocks into [B, Tk, Hkv, D] and calls scaled_dot_product_attention once. In a decode
group the query heads that share a KV head (GQA; Ainslie et al. 2023) become query rows of that head, so that no key is
read twice. A cache in 8 bits is dequantized as it is gathered, into memory that lives until the group is attended.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F

from kernels.cost import Cost
from kernels.kv_store import KVCache, cache_parts, dequantize


class PagedBatch(NamedTuple):
    """The same step for the Triton kernels, which find each sequence's blocks by themselves: decodes first, then chunks.

    All int32 on the GPU, nothing padded but the tables' rows; built once a step, used by every layer.
    """

    num_decodes: int
    key_lens: torch.Tensor
    """[S]: keys of each sequence, the step's own among them."""
    block_tables: torch.Tensor
    """[S, W]: behind a sequence's last block, anything."""
    query_starts: torch.Tensor
    """[C + 1]: the first row of each chunk, counted from the first chunk's, and the end of the last one."""
    max_key_len: int
    """Of the decodes."""
    max_query_len: int
    """Of the chunks."""


class QueryGroup(NamedTuple):
    """Sequences of one step that are attended together. Built once a step, used by every layer."""

    start: int
    """First row of the group in the flat query; its rows are contiguous."""
    num_sequences: int
    query_len: int
    """Rows of each sequence."""
    key_len: int
    """Keys that each sequence attends to at most; shorter ones are masked."""
    blocks: torch.Tensor | slice
    """Block ids [num_sequences · blocks each] (int64); or a slice where one sequence's blocks are consecutive."""
    mask: torch.Tensor | None
    """Added to the scores, broadcastable to [B, Hq, query_len, key_len]; None where all keys count."""
    is_causal: bool
    """Whether this is a whole prompt from its first token on: query i sees keys 0 to i."""
    scratch: torch.Tensor | None = None
    """Where `blocks` may be gathered, [len(blocks), B, 2, Hkv, D] in the cache's dtype; one for all layers, so that none has to
    allocate."""


def paged_attention(
    query: torch.Tensor, kv_cache: KVCache, groups: list[QueryGroup], out: torch.Tensor | None = None
) -> torch.Tensor:
    """Attend every query to its own sequence's keys.

    query: [T, Hq, D]; kv_cache: [N, B, 2, Hkv, D], plain or quantized, which already holds the step's own keys and values.
    Returns [T, Hq, D] in the dtype of query.
    """
    if len(groups) == 1:
        return _attend(query, kv_cache, groups[0])
    out = torch.empty_like(query) if out is None else out
    for group in groups:
        rows = slice(group.start, group.start + group.num_sequences * group.query_len)
        out[rows] = _attend(query[rows], kv_cache, group)
    return out


def paged_batch_attention(query: torch.Tensor, kv_cache: KVCache, batch: PagedBatch) -> torch.Tensor:
    """Do what `paged_attention` does, with a launch for all decodes and one for all chunks.

    query: [T, Hq, D]; kv_cache: [N, B, 2, Hkv, D], plain or quantized. Returns [T, Hq, D] in the dtype of query.
    """
    from kernels.flash_attention import paged_flash_attention
    from kernels.paged_decode import paged_decode

    decodes, rows = batch.num_decodes, len(query)
    cache, scales = cache_parts(kv_cache)
    parts = []
    if decodes:
        tables, lens = batch.block_tables[:decodes], batch.key_lens[:decodes]
        parts.append(paged_decode(query[:decodes], cache, lens, tables, batch.max_key_len, scales))
    if decodes < rows:
        tables, lens = batch.block_tables[decodes:], batch.key_lens[decodes:]
        starts, longest = batch.query_starts, batch.max_query_len
        parts.append(paged_flash_attention(query[decodes:], cache, starts, lens, tables, longest, scales))
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _attend(query: torch.Tensor, kv_cache: KVCache, group: QueryGroup) -> torch.Tensor:
    num_sequences, query_len = group.num_sequences, group.query_len
    _, num_heads, head_dim = query.shape
    cache, scales = cache_parts(kv_cache)
    num_kv_heads = cache.shape[3]
    if isinstance(group.blocks, slice):
        blocks = cache[group.blocks]
    else:
        blocks = torch.index_select(cache, 0, group.blocks, out=group.scratch)
    if scales is not None:
        blocks = dequantize(blocks, scales[group.blocks], query.dtype)
    kv = blocks.view(num_sequences, -1, 2, num_kv_heads, head_dim)[:, : group.key_len]  # [B, Tk, 2, Hkv, D]
    key = kv[:, :, 0].transpose(1, 2)  # [B, Hkv, Tk, D]
    value = kv[:, :, 1].transpose(1, 2)
    if query_len == 1:
        folded = query.view(num_sequences, num_kv_heads, num_heads // num_kv_heads, head_dim)
        attended = F.scaled_dot_product_attention(folded, key, value, attn_mask=group.mask)  # [B, Hkv, G, D]
        return attended.reshape(num_sequences, num_heads, head_dim)
    per_sequence = query.view(num_sequences, query_len, num_heads, head_dim).transpose(1, 2)  # [B, Hq, Tq, D]
    attended = F.scaled_dot_product_attention(
        per_sequence, key, value, attn_mask=group.mask, is_causal=group.is_causal, enable_gqa=num_heads != num_kv_heads
    )
    return attended.transpose(1, 2).reshape(-1, num_heads, head_dim)


def paged_attention_cost(
    query_lens: list[int], key_lens: list[int], num_heads: int, num_kv_heads: int, head_dim: int, dtype_bytes: int
) -> Cost:
    """Two matrix products over the keys that are visible; K and V read once a sequence, q and out once."""
    flops = num_bytes = 0
    for query_len, key_len in zip(query_lens, key_lens, strict=True):
        visible = query_len * key_len - query_len * (query_len - 1) // 2
        flops += 4 * visible * num_heads * head_dim
        num_bytes += 2 * (query_len * num_heads + key_len * num_kv_heads) * head_dim * dtype_bytes
    return Cost(flops, num_bytes)
