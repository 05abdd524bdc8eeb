"""The embedding: a row of a table for each token.

    y[t] = table[token_ids[t]]    or zeros, where the id lies outside of the table

Zeros are what a shard of a table split by rows must give for the tokens of other shards, so that the sum over all shards is the
embedding (Megatron-LM; Shoeybi et al. 2019); and -1 can pad a batch.

A program instance copies BLOCK elements of one row, all of its threads next to each other: however the rows are scattered,
each is read in whole lines of memory. It is a copy and cannot win over one; it loses where rows are a few bytes and most of
each line is thrown away.
"""

import torch
import torch.nn.functional as F

from kernels.cost import Cost
from kernels.dispatch import use_triton
from kernels.library import operator
from kernels.spec import KernelConfig, KernelSpec
from kernels.triton_api import jit, tl, triton
from kernels.tuned import Tunable, bucket
from kernels.work import programs_work

CONFIGS = tuple(
    KernelConfig({"BLOCK": block}, warps, 1) for block, warps in ((1024, 4), (2048, 4), (4096, 8), (512, 2))
)


def embedding_reference(table: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Rows of table [V, H] for token_ids [...], by torch."""
    outside = (token_ids < 0) | (token_ids >= table.shape[0])
    return F.embedding(token_ids.masked_fill(outside, 0), table).masked_fill(outside.unsqueeze(-1), 0.0)


@jit(varies=("token_ids_ptr",))
def _embedding(table_ptr, token_ids_ptr, y_ptr, num_rows, num_columns, table_stride, BLOCK: tl.constexpr):
    blocks_per_row = tl.cdiv(num_columns, BLOCK)
    token = (tl.program_id(0) // blocks_per_row).to(tl.int64)
    columns = tl.program_id(0) % blocks_per_row * BLOCK + tl.arange(0, BLOCK)
    inside = columns < num_columns
    row = tl.load(token_ids_ptr + token).to(tl.int64)
    known = (row >= 0) & (row < num_rows)
    values = tl.load(table_ptr + row * table_stride + columns, mask=inside & known, other=0.0)
    tl.store(y_ptr + token * num_columns + columns, values, mask=inside)


_TUNED = Tunable("embedding", (_embedding,), CONFIGS)


@operator(lambda table, token_ids: table.new_empty([*token_ids.shape, table.shape[1]]))
def embedding(table: torch.Tensor, token_ids: torch.Tensor) -> torch.Tensor:
    """Gather the rows of table [V, H], of a floating-point dtype, that token_ids [...] (int64 or int32) name.

    Ids outside of 0 to V - 1 give rows of zeros. Returns a contiguous tensor [..., H] of the table's dtype. Raises ValueError
    for shapes or dtypes that do not fit.
    """
    if table.dim() != 2 or not table.shape[0] or not table.is_floating_point():
        raise ValueError(f"table is {list(table.shape)} of {table.dtype}; it must be [V, H] of a floating-point dtype")
    if token_ids.dtype not in (torch.int64, torch.int32):
        raise ValueError(f"token_ids are of {token_ids.dtype}; they must be of int64 or int32")
    if not use_triton(table, token_ids):
        return embedding_reference(table, token_ids)
    num_rows, num_columns = table.shape
    table = table if table.stride(1) == 1 else table.contiguous()
    y = torch.empty([*token_ids.shape, num_columns], dtype=table.dtype, device=table.device)
    if y.numel():
        shape = {"tokens": bucket(token_ids.numel()), "columns": num_columns, "dtype": table.dtype}
        config = _TUNED.config(table.device, shape, lambda: CONFIGS[0])
        grid = (token_ids.numel() * triton.cdiv(num_columns, config.blocks["BLOCK"]),)
        _embedding[grid](
            table, token_ids.contiguous(), y, num_rows, num_columns, table.stride(0),
            **config.blocks, num_warps=config.num_warps,
        )  # fmt: skip
    return y


def embedding_cost(num_tokens: int, hidden_size: int, dtype_bytes: int) -> Cost:
    """Read a row and write it, and read the ids; no arithmetic."""
    return Cost(flops=0, num_bytes=2 * num_tokens * hidden_size * dtype_bytes + 8 * num_tokens)


def _specs() -> tuple[KernelSpec, ...]:
    arguments = {"table_ptr": "*bf16", "token_ids_ptr": "*i64", "y_ptr": "*bf16"}
    arguments |= dict.fromkeys(("num_rows", "num_columns", "table_stride"), "i32")
    aligned = tuple(name for name in arguments if name != "num_rows")
    tokens, hidden = 16_384, 4096
    work = programs_work(
        f"{tokens:,} rows of {hidden:,}, bf16",
        embedding_cost(tokens, hidden, 2),
        lambda config: tokens * -(-hidden // config.blocks["BLOCK"]),
        turns=2,  # the id, then the row
    )
    return (KernelSpec("embedding", _embedding, arguments, {}, CONFIGS, aligned, work=work),)


SPECS = _specs()
