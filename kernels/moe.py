"""The experts of a mixture (Shazeer et al. 2017; Mixtral 2024): a product for each token with the weights of its experts.

    y[t] = Σⱼ w[t, j] · down[e] · (silu(gate) · up),   [gate, up] = gate_up[e] · x[t],   e = expert_ids[t, j]

    x [T, H]   expert_ids, w [T, k]   gate_up [E, 2·I, H]   down [E, H, I]   →   y [T, H]

Slots (token and choice) are sorted into blocks of one expert each (see `kernels.moe_align`), so that a block of rows is
multiplied by one weight, as in a dense product; its rows are gathered on the way in and scattered on the way out:

    align ─▶ grouped_matmul (rows of x, each k times) ─▶ silu_mul ─▶ grouped_matmul (rows of slots) ─▶ combine

Expert after expert costs a launch each and leaves the machine idle at a few tokens an expert; this is one launch for all. It
loses where most of a block is padding: about B / 2 rows of each expert's last block are multiplied for nothing, hence the small
blocks of `moe_block_size` for few tokens. At one token, reading k experts is all the work, and blocks of 16 rows cost nothing.
The combination sums in float32 in the order of j: no atomics, so that the result repeats bit by bit.
"""

from typing import Any

import torch

from kernels.activations import silu_mul
from kernels.cost import Cost
from kernels.dispatch import use_triton
from kernels.library import operator
from kernels.matmul_plan import CONFIGS, float32_tile
from kernels.moe_align import Alignment, moe_align
from kernels.spec import KernelConfig, KernelSpec
from kernels.tiles import FLOAT32, tile_in_groups, tile_product
from kernels.triton_api import jit, tl, triton
from kernels.tuned import Tunable, bucket
from kernels.work import Traffic, Work, product_traffic, programs_work

_TILES = {config.blocks["BLOCK_M"]: config for config in reversed(CONFIGS) if config.blocks["BLOCK_N"] <= 128}
"""The largest tile for each height, but for those that leave no registers for addresses."""
_COMBINE = KernelConfig({"BLOCK": 1024}, 4, 1)


def moe_reference(
    x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """The formula by torch, an expert after another."""
    y = torch.zeros(x.shape, dtype=torch.float32, device=x.device)
    for expert in range(gate_up.shape[0]):
        tokens, choices = (expert_ids == expert).nonzero(as_tuple=True)
        product = silu_mul(x[tokens] @ gate_up[expert].t()) @ down[expert].t()
        y.index_add_(0, tokens, product.float() * weights[tokens, choices].float()[:, None])
    return y.to(x.dtype)


def moe(
    x: torch.Tensor, gate_up: torch.Tensor, down: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor
) -> torch.Tensor:
    """Return the weighted sum of k experts' outputs for each token: x [T, H] → [T, H], in the dtype of x.

    gate_up [E, 2·I, H], down [E, H, I], expert_ids [T, k] of int32 or int64, weights [T, k] of a floating dtype. An id outside
    of 0 … E-1 (an expert of another GPU) adds nothing. Raises ValueError for shapes or dtypes that do not match.
    """
    num_experts, top_k = gate_up.shape[0], expert_ids.shape[-1]
    alignment = moe_align(expert_ids, num_experts, moe_block_size(expert_ids.numel(), num_experts))
    hidden = silu_mul(grouped_matmul(x, gate_up, *alignment, top_k))  # [T·k, I]
    y: torch.Tensor = moe_combine(grouped_matmul(hidden, down, *alignment, 1), expert_ids, weights, num_experts)
    return y


def moe_block_size(num_slots: int, num_experts: int) -> int:
    """Return how many rows a block should have: about as many as an expert gets, 16 to 128."""
    per_expert = max(num_slots // num_experts, 1)
    return min(max(1 << (per_expert - 1).bit_length(), 16), 128)


def grouped_matmul_reference(
    x: torch.Tensor, weight: torch.Tensor, alignment: Alignment, rows_repeat: int
) -> torch.Tensor:
    """Multiply block after block, by torch; slots of no block get zeros."""
    y = x.new_zeros(x.shape[0] * rows_repeat, weight.shape[1])
    block_size = len(alignment.slots) // max(len(alignment.block_experts), 1)
    for block, expert in enumerate(alignment.block_experts.tolist()):
        slots = alignment.slots[block * block_size : (block + 1) * block_size]
        slots = slots[slots < len(y)].long()
        y[slots] = x[slots // rows_repeat] @ weight[max(expert, 0)].t()
    return y


@jit(varies=("num_slots", "num_blocks"))
def _grouped_matmul(
    x_ptr, weight_ptr, y_ptr, slots_ptr, block_experts_ptr, num_slots, num_blocks, N, K,
    x_stride, expert_stride, weight_stride,
    ROWS_REPEAT: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    block, tile_n = tile_in_groups(tl.program_id(0), num_blocks, tl.cdiv(N, BLOCK_N), GROUP)
    expert = tl.load(block_experts_ptr + block).to(tl.int64)
    if expert < 0:
        return
    slots = tl.load(slots_ptr + block * BLOCK_M + tl.arange(0, BLOCK_M))
    is_slot = slots < num_slots
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    x_offsets = (slots // ROWS_REPEAT).to(tl.int64)[:, None] * x_stride + ks[None, :]
    weight_offsets = ks[:, None] + columns.to(tl.int64)[None, :] * weight_stride
    weight_ptr += expert * expert_stride
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(0, K, BLOCK_K):
        left = ks < K - k
        x = tl.load(x_ptr + k + x_offsets, mask=is_slot[:, None] & left[None, :], other=0.0)
        weight = tl.load(weight_ptr + k + weight_offsets, mask=left[:, None] & (columns < N)[None, :], other=0.0)
        accumulator = tile_product(x, weight, accumulator, PRECISION)
    places = y_ptr + slots.to(tl.int64)[:, None] * N + columns[None, :]
    tl.store(places, accumulator.to(y_ptr.dtype.element_ty), mask=is_slot[:, None] & (columns < N)[None, :])


@operator(lambda x, weight, slots, block_experts, rows_repeat: x.new_empty(x.shape[0] * rows_repeat, weight.shape[1]))
def grouped_matmul(
    x: torch.Tensor, weight: torch.Tensor, slots: torch.Tensor, block_experts: torch.Tensor, rows_repeat: int
) -> torch.Tensor:
    """Multiply row s // rows_repeat of x [R, K] by its expert's weight [E, N, K]ᵀ, for each slot s: [R · rows_repeat, N].

    slots and block_experts are an `Alignment` of R · rows_repeat slots. Rows of slots that are in no block are left
    unwritten. Raises ValueError for shapes or dtypes that do not match.
    """
    if x.dim() != 2 or weight.dim() != 3 or x.shape[1] != weight.shape[2] or x.dtype != weight.dtype:
        raise ValueError(
            f"x is {x.dtype} {list(x.shape)} and weight {weight.dtype} {list(weight.shape)}; they must be of one dtype, [R, K] "
            "and [E, N, K]"
        )
    if slots.numel() != len(block_experts) * (slots.numel() // max(len(block_experts), 1)):
        raise ValueError(f"there are {slots.numel()} slots for {len(block_experts)} blocks; blocks must be of one size")
    if not use_triton(x, weight, slots, block_experts):
        return grouped_matmul_reference(x, weight, Alignment(slots, block_experts), rows_repeat)
    N, num_slots = weight.shape[1], x.shape[0] * rows_repeat
    y = torch.empty((num_slots, N), dtype=x.dtype, device=x.device)
    if y.numel():
        block_size, experts = len(slots) // len(block_experts), len(weight)
        shape = {"block_size": block_size, "slots": bucket(num_slots), "N": N, "K": x.shape[1], "experts": experts}
        config = _TUNED.config(
            x.device,
            {**shape, "dtype": x.dtype},
            lambda: grouped_config(block_size, x.element_size()),
            {"BLOCK_M": block_size},
        )
        launch_grouped_matmul(config, x, weight, slots, block_experts, rows_repeat, y)
    return y


_TUNED = Tunable("moe_matmul", (_grouped_matmul,), tuple(_TILES.values()))


def grouped_config(block_size: int, dtype_bytes: int = 2) -> KernelConfig:
    """Return the tile for blocks of so many rows. Raises ValueError if it is not a power of two from 16 to 128."""
    if block_size not in _TILES:
        raise ValueError(f"blocks have {block_size} slots; it must be one of {', '.join(map(str, sorted(_TILES)))}")
    return _TILES[block_size] if dtype_bytes == 2 else float32_tile(block_size)


def launch_grouped_matmul(
    config: KernelConfig,
    x: torch.Tensor,
    weight: torch.Tensor,
    slots: torch.Tensor,
    block_experts: torch.Tensor,
    rows_repeat: int,
    y: torch.Tensor,
) -> None:
    """Write the products to y [R · rows_repeat, N], contiguous, with given tiles; BLOCK_M must be the size of the blocks."""
    x = x if x.stride(1) == 1 else x.contiguous()
    weight = weight if weight.stride(2) == 1 else weight.contiguous()
    num_blocks, (num_slots, N) = len(block_experts), y.shape
    _grouped_matmul[(num_blocks * triton.cdiv(N, config.blocks["BLOCK_N"]),)](
        x, weight, y, slots, block_experts, num_slots, num_blocks, N, x.shape[1],
        x.stride(0), weight.stride(0), weight.stride(1), ROWS_REPEAT=rows_repeat, PRECISION=FLOAT32,
        **config.blocks, num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip


def moe_combine_reference(
    y: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor, num_experts: int
) -> torch.Tensor:
    """Σⱼ weights[t, j] · y[t·k + j] over the j with an expert of ours, in float32, by torch."""
    is_ours = (expert_ids >= 0) & (expert_ids < num_experts)  # [T, k]
    terms = y.view(*expert_ids.shape, y.shape[1]).float() * weights.float().unsqueeze(2)
    return terms.masked_fill(~is_ours.unsqueeze(2), 0.0).sum(1).to(y.dtype)


@jit
def _combine(y_ptr, ids_ptr, weights_ptr, result_ptr, num_experts, H, TOP_K: tl.constexpr, BLOCK: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for j in tl.static_range(TOP_K):
        slot = token * TOP_K + j
        expert = tl.load(ids_ptr + slot)
        is_ours = (expert >= 0) & (expert < num_experts)  # other rows of y were never written
        y = tl.load(y_ptr + slot * H + columns, mask=(columns < H) & is_ours, other=0.0).to(tl.float32)
        total += y * tl.load(weights_ptr + slot).to(tl.float32)
    tl.store(result_ptr + token * H + columns, total.to(result_ptr.dtype.element_ty), mask=columns < H)


@operator(lambda y, expert_ids, weights, num_experts: y.new_empty(expert_ids.shape[0], y.shape[1]))
def moe_combine(y: torch.Tensor, expert_ids: torch.Tensor, weights: torch.Tensor, num_experts: int) -> torch.Tensor:
    """Return Σⱼ weights[t, j] · y[t·k + j]: y [T·k, H], expert_ids and weights [T, k] → [T, H].

    Ids outside of 0 … num_experts - 1 add nothing, whatever lies in y. Raises ValueError for shapes that do not match.
    """
    if y.dim() != 2 or weights.shape != expert_ids.shape or weights.dim() != 2 or len(y) != weights.numel():
        raise ValueError(
            f"y is {list(y.shape)}, expert_ids {list(expert_ids.shape)} and weights {list(weights.shape)}; they must be [T·k, "
            "H], [T, k] and [T, k]"
        )
    if not use_triton(y, expert_ids, weights):
        return moe_combine_reference(y, expert_ids, weights, num_experts)
    (T, top_k), H = weights.shape, y.shape[1]
    result = torch.empty((T, H), dtype=y.dtype, device=y.device)
    if result.numel():
        _combine[(T, triton.cdiv(H, _COMBINE.blocks["BLOCK"]))](
            y.contiguous(), expert_ids.contiguous(), weights.contiguous(), result, num_experts, H,
            TOP_K=top_k, **_COMBINE.blocks, num_warps=_COMBINE.num_warps,
        )  # fmt: skip
    return result


def grouped_matmul_cost(num_slots: int, num_rows: int, N: int, K: int, busy_experts: int, dtype_bytes: int) -> Cost:
    """2·N·K operations a slot; rows and slots once, and the weights of those experts that have a slot."""
    num_bytes = (num_rows * K + num_slots * N + busy_experts * N * K) * dtype_bytes
    return Cost(flops=2 * num_slots * N * K, num_bytes=num_bytes)


def moe_combine_cost(num_tokens: int, top_k: int, hidden_size: int, dtype_bytes: int) -> Cost:
    """Read k rows a token, write one."""
    num_bytes = (top_k + 1) * num_tokens * hidden_size * dtype_bytes
    return Cost(flops=2 * num_tokens * top_k * hidden_size, num_bytes=num_bytes)


def _specs() -> tuple[KernelSpec, ...]:
    grouped: dict[str, Any] = {"x_ptr": "*bf16", "weight_ptr": "*bf16", "y_ptr": "*bf16"}
    grouped |= {"slots_ptr": "*i32", "block_experts_ptr": "*i32", "num_slots": "i32", "num_blocks": "i32"}
    grouped |= dict.fromkeys(("N", "K", "x_stride", "expert_stride", "weight_stride"), "i32")
    aligned = tuple(name for name in grouped if name not in ("num_slots", "num_blocks"))
    combine: dict[str, Any] = {"y_ptr": "*bf16", "ids_ptr": "*i64", "weights_ptr": "*fp32", "result_ptr": "*bf16"}
    combine |= {"num_experts": "i32", "H": "i32"}
    repeats = {"ROWS_REPEAT": 8, "PRECISION": FLOAT32}
    sums = tuple(KernelConfig({"BLOCK": block}, warps, 1) for block, warps in ((1024, 4), (512, 4), (2048, 8)))
    num_experts, top_k, hidden, width = 128, 8, 2048, 2 * 768  # Qwen3-30B-A3B

    def work(tokens: int) -> Work:
        """gate_up, the tokens spread evenly over all experts."""
        slots = tokens * top_k

        def traffic(config: KernelConfig) -> Traffic:
            programs, flops, num_bytes, turns, _ = product_traffic(config, slots // num_experts, width, hidden)
            return Traffic(num_experts * programs, num_experts * flops, num_experts * num_bytes, turns + 2)

        cost = grouped_matmul_cost(slots, tokens, width, hidden, num_experts, 2)
        return Work(f"{tokens:,} tokens × {hidden}, {top_k} of {num_experts} experts, bf16", cost, traffic, "bf16")

    many = tuple(_TILES.values())[::-1]
    combined = programs_work(
        f"4,096 tokens × {hidden}, {top_k} experts, bf16",
        moe_combine_cost(4096, top_k, hidden, 2),
        lambda config: 4096 * -(-hidden // config.blocks["BLOCK"]),
        turns=2,
    )
    of_combine = ("y_ptr", "ids_ptr", "weights_ptr", "result_ptr", "H")
    return (
        KernelSpec("moe_matmul", _grouped_matmul, grouped, repeats, many, aligned, True, work=work(4096)),
        KernelSpec("moe_matmul_few", _grouped_matmul, grouped, repeats, (_TILES[16],), aligned, True, work=work(16)),
        KernelSpec("moe_combine", _combine, combine, {"TOP_K": top_k}, sums, of_combine, work=combined),
    )


SPECS = _specs()
