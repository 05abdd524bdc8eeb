"""The matrix product with what follows it: C = activation(A · B + bias) + residual, the sum over K in float32.

    a [M, K]   b [K, N]   bias [N]   residual [M, N]   →   c [M, N]

Strides are free: a weight stored [N, K] is passed as `weight.t()`. The operands are of one floating dtype, which is C's too.
Three kernels do it, and `plan_matmul` chooses:

    plain        a program computes a tile of C and ends; any strides, any sizes
    persistent   as many programs as multiprocessors, each computing tile after tile: the loads of the next overlap the
                 writing of the last. Tiles come by TMA (Hopper's copy engine), which spares the registers that addresses take
                 and so allows the largest tile; it wants rows that start at multiples of 16 bytes
    split_k      a program sums a part of K for its tile, in float32; a second kernel adds the parts in a fixed order

Fusing what follows saves a pass over C per operation: 4·M·N bytes each in bfloat16.

It loses to cuBLAS at shapes between its few tile sizes, and with two operands that both run along M and N (neither along K).
float32 keeps its digits (see `kernels.tiles`), at a sixth of the speed of 16 bits. split_k launches twice, which costs
some 3 µs where it is not part of a CUDA graph. Follows Triton's tutorials on grouped and persistent products (Tillet et al.
2019) and CUTLASS's split-K (Kerr et al. 2017).
"""

from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F

from kernels.cost import Cost
from kernels.dispatch import use_triton
from kernels.library import operator
from kernels.matmul_plan import (
    CONFIGS,
    PLAIN_CONFIGS,
    MatmulPlan,
    float32_tile,
    num_tiles,
    plan_matmul,
    plan_split,
    plan_tile,
)
from kernels.operands import allow_descriptors, can_copy_tiles, check_product, num_multiprocessors
from kernels.spec import KernelConfig, KernelSpec
from kernels.tiles import FLOAT32, activate, tile_in_groups, tile_product
from kernels.triton_api import jit, tl, triton
from kernels.tuned import Tunable, bucket
from kernels.work import Traffic, Work, product_traffic, programs_work

Activation = Literal["none", "silu", "gelu"]
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_SUM_BLOCK = 1024


def matmul_reference(
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str = "none",
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """activation(a [M, K] · b [K, N] + bias [N]) + residual [M, N], by torch: rounded after each of the steps."""
    c = a @ b if bias is None else torch.addmm(bias, a, b)
    if activation != "none":
        c = F.silu(c) if activation == "silu" else F.gelu(c)
    return c if residual is None else c.add_(residual)


@jit
def _finish(
    accumulator, first_row, first_column, c_ptr, bias_ptr, residual_ptr, M, N, residual_stride, ACTIVATION: tl.constexpr
):
    """Apply what follows the product to a tile, and store it to C. bias_ptr and residual_ptr may be None."""
    BLOCK_M: tl.constexpr = accumulator.shape[0]
    BLOCK_N: tl.constexpr = accumulator.shape[1]
    if BLOCK_N <= 128:
        _finish_part(
            accumulator, first_row, first_column, c_ptr, bias_ptr, residual_ptr, M, N, residual_stride, ACTIVATION
        )
    else:  # the residual does not fit into the registers next to all of a large tile
        HALF: tl.constexpr = BLOCK_N // 2
        left, right = tl.split(accumulator.reshape(BLOCK_M, 2, HALF).permute(0, 2, 1))
        _finish_part(left, first_row, first_column, c_ptr, bias_ptr, residual_ptr, M, N, residual_stride, ACTIVATION)
        _finish_part(
            right, first_row, first_column + HALF, c_ptr, bias_ptr, residual_ptr, M, N, residual_stride, ACTIVATION
        )


@jit
def _finish_part(
    accumulator, first_row, first_column, c_ptr, bias_ptr, residual_ptr, M, N, residual_stride, ACTIVATION: tl.constexpr
):
    rows = first_row + tl.arange(0, accumulator.shape[0])
    columns = first_column + tl.arange(0, accumulator.shape[1])
    if bias_ptr is not None:
        accumulator += tl.load(bias_ptr + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
    accumulator = activate(accumulator, ACTIVATION)
    inside = (rows[:, None] < M) & (columns[None, :] < N)
    rows = rows.to(tl.int64)[:, None]
    if residual_ptr is not None:
        places = residual_ptr + rows * residual_stride + columns[None, :]
        accumulator += tl.load(places, mask=inside, other=0.0).to(tl.float32)
    tl.store(c_ptr + rows * N + columns[None, :], accumulator.to(c_ptr.dtype.element_ty), mask=inside)


@jit(varies=("M",))
def _matmul(
    a_ptr, b_ptr, c_ptr, bias_ptr, residual_ptr, M, N, K, part_length,
    a_m_stride, a_k_stride, b_k_stride, b_n_stride, residual_stride,
    ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    tile_m, tile_n = tile_in_groups(tl.program_id(0), tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N), GROUP)
    part = tl.program_id(1)
    first_k = part * part_length
    rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    ks = tl.arange(0, BLOCK_K)
    # What moves along K are two scalars: whole tiles of 64-bit addresses would take the registers that the product needs.
    a_ptr += first_k.to(tl.int64) * a_k_stride
    b_ptr += first_k.to(tl.int64) * b_k_stride
    a_offsets = rows.to(tl.int64)[:, None] * a_m_stride + ks[None, :] * a_k_stride
    b_offsets = ks[:, None] * b_k_stride + columns.to(tl.int64)[None, :] * b_n_stride
    accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for k in range(first_k, tl.minimum(first_k + part_length, K), BLOCK_K):
        left = ks < K - k  # parts are multiples of BLOCK_K, but for the last
        a = tl.load(a_ptr + a_offsets, mask=(rows < M)[:, None] & left[None, :], other=0.0)  # [BLOCK_M, BLOCK_K]
        b = tl.load(b_ptr + b_offsets, mask=left[:, None] & (columns < N)[None, :], other=0.0)  # [BLOCK_K, BLOCK_N]
        accumulator = tile_product(a, b, accumulator, PRECISION)
        a_ptr += BLOCK_K * a_k_stride
        b_ptr += BLOCK_K * b_k_stride
    c_ptr += part.to(tl.int64) * M * N  # part 0 is all there is, unless C is the workspace of split_k
    _finish(
        accumulator,
        tile_m * BLOCK_M,
        tile_n * BLOCK_N,
        c_ptr,
        bias_ptr,
        residual_ptr,
        M,
        N,
        residual_stride,
        ACTIVATION,
    )


@jit(varies=("M",))
def _matmul_persistent(
    a_ptr, b_ptr, c_ptr, bias_ptr, residual_ptr, M, N, K, a_stride, b_stride, residual_stride,
    B_IS_TRANSPOSED: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    a_tiles = tl.make_tensor_descriptor(a_ptr, [M, K], [a_stride, 1], [BLOCK_M, BLOCK_K])
    if B_IS_TRANSPOSED:
        b_tiles = tl.make_tensor_descriptor(b_ptr, [N, K], [b_stride, 1], [BLOCK_N, BLOCK_K])
    else:
        b_tiles = tl.make_tensor_descriptor(b_ptr, [K, N], [b_stride, 1], [BLOCK_K, BLOCK_N])
    num_tiles_m = tl.cdiv(M, BLOCK_M)
    num_tiles_n = tl.cdiv(N, BLOCK_N)
    finished = tl.program_id(0) - tl.num_programs(0)  # runs behind `tile`: what ends one tile must not hold up the next
    for tile in tl.range(tl.program_id(0), num_tiles_m * num_tiles_n, tl.num_programs(0), flatten=True):
        tile_m, tile_n = tile_in_groups(tile, num_tiles_m, num_tiles_n, GROUP)
        accumulator = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for k in range(0, K, BLOCK_K):  # past the edges TMA reads zeros
            a = a_tiles.load([tile_m * BLOCK_M, k])
            if B_IS_TRANSPOSED:
                b = b_tiles.load([tile_n * BLOCK_N, k]).T
            else:
                b = b_tiles.load([k, tile_n * BLOCK_N])
            accumulator = tile_product(a, b, accumulator, "ieee")
        finished += tl.num_programs(0)
        tile_m, tile_n = tile_in_groups(finished, num_tiles_m, num_tiles_n, GROUP)
        _finish(
            accumulator,
            tile_m * BLOCK_M,
            tile_n * BLOCK_N,
            c_ptr,
            bias_ptr,
            residual_ptr,
            M,
            N,
            residual_stride,
            ACTIVATION,
        )


@jit(varies=("M",))
def _sum_parts(
    parts_ptr, c_ptr, bias_ptr, residual_ptr, M, N, part_stride, residual_stride,
    SPLIT: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    place = parts_ptr + row * N + columns
    total = tl.zeros((BLOCK,), tl.float32)
    for _ in tl.static_range(SPLIT):
        total += tl.load(place, mask=columns < N, other=0.0)
        place += part_stride
    _finish_part(
        total[None, :], row, tl.program_id(1) * BLOCK, c_ptr, bias_ptr, residual_ptr, M, N, residual_stride, ACTIVATION
    )


_TUNED = Tunable("matmul", (_matmul, _matmul_persistent, _sum_parts), CONFIGS)


@operator(lambda a, b, bias=None, activation="none", residual=None: a.new_empty(a.shape[0], b.shape[1]))
def matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str = "none",
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return activation(a [M, K] · b [K, N] + bias [N]) + residual [M, N], contiguous and in the dtype of a.

    activation: "none", "silu" or "gelu" (the exact one, by erf). Raises ValueError for shapes or dtypes that do not match.
    """
    check_product(a, b, bias, residual, _DTYPES)
    if activation not in get_args(Activation):
        raise ValueError(f"activation is {activation!r}; it must be one of {', '.join(get_args(Activation))}")
    if not use_triton(*(tensor for tensor in (a, b, bias, residual) if tensor is not None)):
        return matmul_reference(a, b, bias, activation, residual)
    (M, K), N, multiprocessors = a.shape, b.shape[1], num_multiprocessors(a.device)
    shape = {
        "M": bucket(M),
        "N": N,
        "K": K,
        "dtype": a.dtype,
        "a_by_rows": a.stride(1) == 1,
        "b_by_rows": b.stride(1) == 1,
    }
    is_float32 = a.dtype == torch.float32
    config = _TUNED.config(
        a.device, shape, lambda: float32_tile(M) if is_float32 else plan_matmul(M, N, K, multiprocessors).config
    )
    plan = plan_tile(config, M, N, K, multiprocessors)
    return launch_matmul(plan, a, b, bias, activation, residual)


def launch_matmul(
    plan: MatmulPlan,
    a: torch.Tensor,
    b: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str = "none",
    residual: torch.Tensor | None = None,
) -> torch.Tensor:
    """Compute `matmul` in a given way. What asks for persistent without strides, dtype or GPU for it gets plain."""
    (M, K), N = a.shape, b.shape[1]
    c = torch.empty((M, N), dtype=a.dtype, device=a.device)
    if not c.numel():
        return c
    bias = None if bias is None else bias.contiguous()
    residual = residual if residual is None or residual.stride(1) == 1 else residual.contiguous()
    epilogue = (bias, residual, M, N)
    residual_stride = 0 if residual is None else residual.stride(0)
    config = plan.config
    is_persistent = plan.variant == "persistent" and a.element_size() == 2
    if is_persistent and can_copy_tiles(a) and (can_copy_tiles(b) or can_copy_tiles(b.t())):
        is_transposed = not can_copy_tiles(b)
        allow_descriptors(a.device)
        _matmul_persistent[(min(num_tiles(config, M, N), num_multiprocessors(a.device)),)](
            a, b, c, *epilogue, K, a.stride(0), b.stride(1 if is_transposed else 0), residual_stride,
            B_IS_TRANSPOSED=is_transposed, ACTIVATION=activation,
            **config.blocks, num_warps=config.num_warps, num_stages=config.num_stages,
        )  # fmt: skip
        return c
    config = (
        PLAIN_CONFIGS[0] if config.blocks["BLOCK_N"] > 128 else config
    )  # with addresses next to it, 128 × 256 would spill
    tiles = num_tiles(config, M, N)
    strides = (*a.stride(), *b.stride())
    constants = {**config.blocks, "num_warps": config.num_warps, "num_stages": config.num_stages, "PRECISION": FLOAT32}
    length = triton.cdiv(triton.cdiv(K, plan.split), config.blocks["BLOCK_K"]) * config.blocks["BLOCK_K"]
    if plan.split == 1:
        _matmul[(tiles, 1)](
            a, b, c, *epilogue, K, length, *strides, residual_stride, ACTIVATION=activation, **constants
        )  # fmt: skip
        return c
    parts = torch.empty((plan.split, M, N), dtype=torch.float32, device=a.device)
    _matmul[(tiles, plan.split)](
        a, b, parts, None, None, M, N, K, length, *strides, 0, ACTIVATION="none", **constants
    )  # fmt: skip
    sum_parts(parts, c, bias, activation, residual)
    return c


def sum_parts(
    parts: torch.Tensor,
    c: torch.Tensor,
    bias: torch.Tensor | None = None,
    activation: str = "none",
    residual: torch.Tensor | None = None,
) -> None:
    """Write activation(sum of parts [S, M, N] over S + bias [N]) + residual [M, N] to c [M, N]; all but residual contiguous."""
    split, M, N = parts.shape
    _sum_parts[(M, triton.cdiv(N, _SUM_BLOCK))](
        parts, c, bias, residual, M, N, M * N, 0 if residual is None else residual.stride(0),
        SPLIT=split, ACTIVATION=activation, BLOCK=_SUM_BLOCK, num_warps=4,
    )  # fmt: skip


def matmul_cost(M: int, N: int, K: int, dtype_bytes: int) -> Cost:
    """2·M·N·K operations; both operands are read once and C is written once."""
    return Cost(flops=2 * M * N * K, num_bytes=(M * K + K * N + M * N) * dtype_bytes)


def _specs() -> tuple[KernelSpec, ...]:
    pointers: dict[str, Any] = dict.fromkeys(("a_ptr", "b_ptr", "c_ptr"), "*bf16")
    sizes: dict[str, Any] = dict.fromkeys(("M", "N", "K"), "i32")
    bare = {"bias_ptr": None, "residual_ptr": None, "residual_stride": 0, "ACTIVATION": "none"}
    plain = {
        **pointers,
        **sizes,
        "part_length": "i32",
        "a_m_stride": "i32",
        "b_n_stride": "i32",
    }  # b is a weight [N, K]
    unit = {"a_k_stride": 1, "b_k_stride": 1, "PRECISION": FLOAT32}
    split = {**plain, "c_ptr": "*fp32"}
    epilogue = {**plain, "bias_ptr": "*bf16", "residual_ptr": "*bf16", "residual_stride": "i32"}
    persistent = {**pointers, **sizes, "a_stride": "i32", "b_stride": "i32"}
    parts = {"parts_ptr": "*fp32", "c_ptr": "*bf16", "M": "i32", "N": "i32", "part_stride": "i32"}
    narrow = (CONFIGS[-1], *CONFIGS[-3:-1])
    sums = tuple(KernelConfig({"BLOCK": block}, warps, 1) for block, warps in ((1024, 4), (512, 4), (2048, 8)))
    square, wide, extra = _square_work(4096), _few_rows_work(16, 4096, 14_336), 2 * (4096 + 4096**2)  # bias, residual
    with_epilogue = Work(
        f"{square.shape}, bias, GELU and residual",
        square.cost._replace(num_bytes=square.cost.num_bytes + extra),
        lambda config: (tiles := square.traffic(config))._replace(num_bytes=tiles.num_bytes + extra),
        "bf16",
    )
    summed = programs_work(
        "4 parts of 16 × 4096, fp32 to bf16",
        Cost(flops=4 * 16 * 4096, num_bytes=(4 * 4 + 2) * 16 * 4096),
        lambda config: 16 * -(-4096 // config.blocks["BLOCK"]),
    )
    return (
        KernelSpec("matmul", _matmul, plain, {**bare, **unit}, PLAIN_CONFIGS, tuple(plain), True, work=square),
        KernelSpec(
            "matmul_epilogue", _matmul, epilogue, {**unit, "ACTIVATION": "gelu"}, PLAIN_CONFIGS, tuple(epilogue), True,
            work=with_epilogue,
        ),
        KernelSpec("matmul_split_k", _matmul, split, {**bare, **unit}, narrow, tuple(split), True, work=wide),
        KernelSpec(
            "matmul_persistent", _matmul_persistent, persistent, {**bare, "B_IS_TRANSPOSED": True}, CONFIGS[:3],
            tuple(persistent), True, work=square,
        ),
        KernelSpec("matmul_sum_parts", _sum_parts, parts, {**bare, "SPLIT": 4}, sums, tuple(parts), work=summed),
    )  # fmt: skip


def _square_work(size: int) -> Work:
    cost = matmul_cost(size, size, size, 2)
    return Work(
        f"{size} × {size} × {size}, bf16", cost, lambda config: product_traffic(config, size, size, size), "bf16"
    )


def _few_rows_work(M: int, N: int, K: int) -> Work:
    """Split over K as it would be on 132 multiprocessors, each part written in float32."""

    def traffic(config: KernelConfig) -> Traffic:
        split = plan_split(num_tiles(config, M, N), K, 2 * 132)
        return product_traffic(config, M, N, K, (2, 2, 4), split)

    cost = Cost(flops=2 * M * N * K, num_bytes=2 * (M * K + K * N) + 4 * M * N)
    return Work(f"{M} × {K} × {N}, bf16 to fp32", cost, traffic, "bf16")


SPECS = _specs()
