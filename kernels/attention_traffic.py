"""What the attention kernels load with a config: the keys that a tile of rows sees, again for each tile (see `work`)."""

from math import ceil

from kernels.spec import KernelConfig
from kernels.work import Traffic

KEY_NAMES = {"bf16": "bf16", "i8": "int8 keys", "fp8e4nv": "fp8 keys"}
"""By the type that a kernel is compiled for, in words."""


def prefill_traffic(
    config: KernelConfig, length: int, group: int, num_kv_heads: int, head_dim: int, key_bytes: int, window: int = 0
) -> Traffic:
    """One causal prompt in bfloat16; tiles of BLOCK_M rows, `group` rows a token. key_bytes: of a key and its value."""
    block_m, block_n = config.blocks["BLOCK_M"], config.blocks["BLOCK_N"]
    num_tiles = ceil(length * group / block_m)
    num_keys = turns = 0
    for tile in range(num_tiles):
        first, last = tile * block_m // group, min(((tile + 1) * block_m - 1) // group, length - 1)  # tokens
        begin = max(first + 1 - window, 0) // block_n * block_n if window else 0
        num_keys += last + 1 - begin
        turns += ceil((last + 1 - begin) / block_n)
    query_and_out = 2 * 2 * length * group * head_dim
    return Traffic(
        programs=num_tiles * num_kv_heads,
        flops=4 * turns * block_n * block_m * head_dim * num_kv_heads,
        num_bytes=(query_and_out + num_keys * key_bytes) * num_kv_heads,
        turns=1 + turns / num_tiles,
    )


def decode_traffic(
    config: KernelConfig, batch: int, length: int, group: int, num_kv_heads: int, head_dim: int, key_bytes: int, splits: int
) -> Traffic:  # fmt: skip
    """One token a sequence, its keys in so many splits; the group is padded to the 16 rows that tensor cores take."""
    turns = ceil(ceil(length / config.blocks["BLOCK_N"]) / splits)
    programs = batch * num_kv_heads * splits
    row = group * head_dim
    out_bytes = 2 * row if splits == 1 else 4 * (row + group)
    padded_keys = turns * config.blocks["BLOCK_N"]
    return Traffic(
        programs=programs,
        flops=4 * programs * padded_keys * max(group, 16) * head_dim,
        num_bytes=batch * num_kv_heads * length * key_bytes + programs * (2 * row + out_bytes),
        turns=2 + turns,  # the length, the query, then tile after tile
    )
