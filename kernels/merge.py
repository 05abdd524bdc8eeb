"""Merging what a query got from disjoint sets of keys, by their log-sum-exp (Rabe and Staats 2021; flash-decoding, Dao 2023).

    lse = log Σ_p exp(lse_p)        out = Σ_p exp(lse_p - lse) · out_p

Exact, whatever the sets are: splits of one long context, a shared prefix and the rest, the shares of several GPUs. A part
that saw no key has lse_p = -inf and weighs nothing; a query without any key gets 0 and -inf.

A program instance takes some rows and up to 16 parts of each at once, so that all their loads are in flight together;
more parts take more rounds. It reads every part once, which for two parts of a long prefill costs as much as three copies
of the output: there it is better to attend to both sets in one kernel.
"""

import torch

from kernels.attention_tile import Attended
from kernels.cost import Cost
from kernels.dispatch import use_triton
from kernels.library import operator
from kernels.spec import KernelConfig, KernelSpec
from kernels.triton_api import jit, tl, triton
from kernels.work import Traffic, Work

TILE_ROWS = 16
"""Rows times parts of a tile."""


def merge_attention_reference(outs: torch.Tensor, log_sum_exps: torch.Tensor) -> Attended:
    """Merge outs [P, T, H, D] with log_sum_exps [P, T, H], by torch, in float32."""
    total = torch.logsumexp(log_sum_exps, dim=0)
    weights = torch.exp(log_sum_exps - total.nan_to_num(neginf=0.0)).unsqueeze(-1)
    return Attended(torch.where(weights > 0, outs.float() * weights, 0.0).sum(0).to(outs.dtype), total)


@jit(varies=("num_rows", "num_parts"))
def _merge_attention(
    outs_ptr, lses_ptr, out_ptr, lse_ptr, num_rows, num_parts,
    HEAD_DIM: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    rows = tl.program_id(0) * BLOCK_R + tl.arange(0, BLOCK_R)
    columns = tl.arange(0, BLOCK_D)
    acc = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    total = tl.zeros([BLOCK_R], tl.float32)
    peak = tl.full([BLOCK_R], float("-inf"), tl.float32)
    for first in range(0, num_parts, BLOCK_P):
        parts = first + tl.arange(0, BLOCK_P)
        inside = (parts < num_parts)[:, None] & (rows < num_rows)[None, :]
        places = parts.to(tl.int64)[:, None] * num_rows + rows[None, :]  # [P, R]
        lse = tl.load(lses_ptr + places, mask=inside, other=float("-inf")) * 1.4426950408889634
        new_peak = tl.maximum(peak, tl.max(lse, axis=0))
        anchor = tl.where(new_peak == float("-inf"), 0.0, new_peak)
        weights = tl.exp2(lse - anchor[None, :])
        out_places = outs_ptr + places[:, :, None] * HEAD_DIM + columns[None, None, :]
        # What a part without keys holds is never read: it need not even have been written.
        wanted = (weights > 0.0)[:, :, None] & (columns < HEAD_DIM)[None, None, :]
        outs = tl.load(out_places, mask=wanted, other=0.0).to(tl.float32)  # [P, R, D]
        decay = tl.exp2(peak - anchor)
        acc = acc * decay[:, None] + tl.sum(outs * weights[:, :, None], axis=0)
        total = total * decay + tl.sum(weights, axis=0)
        peak = new_peak
    some = tl.where(total > 0.0, total, 1.0)
    real = rows < num_rows
    places = rows.to(tl.int64)[:, None] * HEAD_DIM + columns[None, :]
    merged = (acc / some[:, None]).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + places, merged, mask=real[:, None] & (columns < HEAD_DIM)[None, :])
    if lse_ptr is not None:
        lse = tl.where(total > 0.0, (peak + tl.log2(some)) * 0.6931471805599453, float("-inf"))
        tl.store(lse_ptr + rows, lse, mask=real)


def _fake(outs: torch.Tensor, log_sum_exps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(outs[0]), torch.empty_like(log_sum_exps[0])


@operator(_fake)
def merge_attention(outs: torch.Tensor, log_sum_exps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Merge P partial attentions: outs [P, T, H, D], log_sum_exps [P, T, H] float32.

    Returns the attention over all their keys, [T, H, D] in the dtype of outs, and its log-sum-exp [T, H] float32. Raises
    ValueError for other shapes.
    """
    if outs.dim() != 4 or outs.shape[:3] != log_sum_exps.shape or not len(outs) or log_sum_exps.dtype != torch.float32:
        raise ValueError(
            f"outs are {list(outs.shape)} and log_sum_exps {list(log_sum_exps.shape)} {log_sum_exps.dtype}; they must be "
            "[P, T, H, D] and [P, T, H] float32, with one part at least"
        )
    if not use_triton(outs, log_sum_exps):
        merged = merge_attention_reference(outs, log_sum_exps)
        return merged.out, merged.log_sum_exp
    out = torch.empty(outs.shape[1:], dtype=outs.dtype, device=outs.device)
    log_sum_exp = torch.empty(outs.shape[1:3], dtype=torch.float32, device=outs.device)
    launch_merge(outs.contiguous(), log_sum_exps.contiguous(), out, log_sum_exp)
    return out, log_sum_exp


def launch_merge(
    outs: torch.Tensor, log_sum_exps: torch.Tensor, out: torch.Tensor, log_sum_exp: torch.Tensor | None
) -> None:
    """Merge contiguous parts into out [T, H, D] of any dtype and, if it is given, log_sum_exp [T, H]."""
    num_parts, num_rows, head_dim = len(outs), out.shape[0] * out.shape[1], out.shape[2]
    if not out.numel():
        return
    block_parts = min(triton.next_power_of_2(num_parts), TILE_ROWS)
    block_rows = TILE_ROWS // block_parts
    _merge_attention[(triton.cdiv(num_rows, block_rows),)](
        outs, log_sum_exps, out, log_sum_exp, num_rows, num_parts,
        HEAD_DIM=head_dim, BLOCK_D=triton.next_power_of_2(head_dim), BLOCK_R=block_rows, BLOCK_P=block_parts, num_warps=4,
    )  # fmt: skip


def merge_attention_cost(num_parts: int, num_tokens: int, num_heads: int, head_dim: int, dtype_bytes: int) -> Cost:
    """Read all parts with their log-sum-exp, write one."""
    rows = num_tokens * num_heads
    num_bytes = (num_parts + 1) * rows * (head_dim * dtype_bytes + 4)
    return Cost(flops=num_parts * rows * (2 * head_dim + 3), num_bytes=num_bytes)


def _work(num_parts: int, num_sequences: int, num_heads: int, head_dim: int) -> Work:
    cost = merge_attention_cost(num_parts, num_sequences, num_heads, head_dim, 4)
    num_rows = num_sequences * num_heads

    def traffic(config: KernelConfig) -> Traffic:
        block_rows, block_parts = config.blocks["BLOCK_R"], config.blocks["BLOCK_P"]
        programs, turns = -(-num_rows // block_rows), -(-num_parts // block_parts)
        flops = cost.flops * programs * block_rows * turns * block_parts // (num_rows * num_parts)
        return Traffic(programs, flops, cost.num_bytes, 2 * turns)  # how much a part weighs, then the part

    return Work(f"{num_parts} parts of {num_sequences} × {num_heads} heads of {head_dim}, fp32", cost, traffic)


SPECS = (
    KernelSpec(
        "merge_attention",
        _merge_attention,
        {
            "outs_ptr": "*fp32",
            "lses_ptr": "*fp32",
            "out_ptr": "*bf16",
            "lse_ptr": "*fp32",
            "num_rows": "i32",
            "num_parts": "i32",
        },
        {"HEAD_DIM": 128, "BLOCK_D": 128},
        tuple(
            KernelConfig({"BLOCK_R": r, "BLOCK_P": p}, warps)
            for r, p, warps in ((1, 16, 4), (2, 8, 4), (8, 2, 4), (1, 16, 2))
        ),
        ("outs_ptr", "lses_ptr", "out_ptr", "lse_ptr", "num_rows"),
        work=_work(16, 16, 32, 128),
    ),
)
