"""The product of two quantized matrices, W8A8: int8 · int8 summed in int32, or FP8 · FP8 summed in float32.

    C[m, n] = row_scale[m] · column_scale[n] · Σₖ a[m, k] · b[k, n]  + bias[n]

    a [M, K], b [K, N]   int8, or float8_e4m3fn
    row_scale [M], column_scale [N]   float32: a scale a token, a scale an output channel

The scales do not depend on k, so they are applied once to the finished sum. The int8 sum is exact. The FP8 sum on Hopper is
not: its tensor cores keep some 14 bits while they add up. `fast_accumulation=False` moves the sum to float32 registers after
every tile, 128 products (DeepSeek-V3 2024); that takes twice the registers, so a smaller tile.

Both operands must have the sum's elements next to each other, b as the transpose of a weight [N, K]; anything else, and rows
that are no multiple of 16 bytes, is copied first. Twice the products and half the bytes of bfloat16, a tile at a time by TMA,
with programs that stay (see `kernels.matmul`).

It loses at few rows to W4A16, which reads half of the bytes; there is no split over K here. On Blackwell int8 falls back to the
slow path of matrix instructions: use FP8. FP8 needs compute capability 8.9; below, the reference computes it in float32.
Follows SmoothQuant's W8A8 (Xiao et al. 2022) and FP8 formats (Micikevicius et al. 2022).
"""

import torch
import torch.nn.functional as F

from kernels.chips import Unit
from kernels.cost import Cost
from kernels.device import device_limits
from kernels.dispatch import use_triton
from kernels.library import operator
from kernels.matmul_plan import CONFIGS, num_tiles, plan_matmul
from kernels.operands import allow_descriptors, check_product, num_multiprocessors
from kernels.spec import KernelConfig, KernelSpec
from kernels.tiles import tile_in_groups
from kernels.triton_api import jit, tl
from kernels.tuned import Tunable, bucket
from kernels.work import Traffic, Work, product_traffic

FP8 = torch.float8_e4m3fn


def scaled_matmul_reference(
    a: torch.Tensor,
    b: torch.Tensor,
    row_scale: torch.Tensor,
    column_scale: torch.Tensor,
    bias: torch.Tensor | None,
    dtype: torch.dtype,
) -> torch.Tensor:
    """The formula by torch: int8 in float64, which holds every sum of int8 products exactly, FP8 in float32."""
    wide = torch.float64 if a.dtype == torch.int8 else torch.float32
    c = (a.to(wide) @ b.to(wide)).float() * row_scale[:, None] * column_scale
    return (c if bias is None else c + bias.float()).to(dtype)


@jit(varies=("M",))
def _scaled_matmul(
    a_ptr, b_ptr, c_ptr, row_scale_ptr, column_scale_ptr, bias_ptr, M, N, K, a_stride, b_stride,
    PROMOTES: tl.constexpr, INTEGERS: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr, GROUP: tl.constexpr,
):  # fmt: skip
    SUM: tl.constexpr = tl.int32 if INTEGERS else tl.float32
    a_tiles = tl.make_tensor_descriptor(a_ptr, [M, K], [a_stride, 1], [BLOCK_M, BLOCK_K])
    b_tiles = tl.make_tensor_descriptor(b_ptr, [N, K], [b_stride, 1], [BLOCK_N, BLOCK_K])
    num_tiles_m = tl.cdiv(M, BLOCK_M)
    num_tiles_n = tl.cdiv(N, BLOCK_N)
    finished = tl.program_id(0) - tl.num_programs(0)  # runs behind `tile`: what ends one tile must not hold up the next
    for tile in tl.range(tl.program_id(0), num_tiles_m * num_tiles_n, tl.num_programs(0), flatten=True):
        tile_m, tile_n = tile_in_groups(tile, num_tiles_m, num_tiles_n, GROUP)
        accumulator = tl.zeros((BLOCK_M, BLOCK_N), SUM)
        for k in range(0, K, BLOCK_K):  # past the edges TMA reads zeros
            a = a_tiles.load([tile_m * BLOCK_M, k])
            b = b_tiles.load([tile_n * BLOCK_N, k]).T
            if PROMOTES:
                accumulator = tl.dot(a, b, accumulator, max_num_imprecise_acc=BLOCK_K, out_dtype=SUM)
            else:
                accumulator = tl.dot(a, b, accumulator, out_dtype=SUM)
        finished += tl.num_programs(0)
        tile_m, tile_n = tile_in_groups(finished, num_tiles_m, num_tiles_n, GROUP)
        rows = tile_m * BLOCK_M + tl.arange(0, BLOCK_M)
        columns = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
        row_scale = tl.load(row_scale_ptr + rows, mask=rows < M, other=0.0)
        column_scale = tl.load(column_scale_ptr + columns, mask=columns < N, other=0.0)
        c = accumulator.to(tl.float32) * row_scale[:, None] * column_scale[None, :]
        if bias_ptr is not None:
            c += tl.load(bias_ptr + columns, mask=columns < N, other=0.0).to(tl.float32)[None, :]
        places = c_ptr + rows.to(tl.int64)[:, None] * N + columns[None, :]
        tl.store(places, c.to(c_ptr.dtype.element_ty), mask=(rows[:, None] < M) & (columns[None, :] < N))


@operator(
    lambda a, b, row_scale, column_scale, bias=None, dtype=torch.bfloat16, fast_accumulation=True: a.new_empty(
        a.shape[0], b.shape[1], dtype=dtype
    )
)
def scaled_matmul(
    a: torch.Tensor,
    b: torch.Tensor,
    row_scale: torch.Tensor,
    column_scale: torch.Tensor,
    bias: torch.Tensor | None = None,
    dtype: torch.dtype = torch.bfloat16,
    fast_accumulation: bool = True,
) -> torch.Tensor:
    """Return row_scale [M] · column_scale [N] · (a [M, K] · b [K, N]) + bias [N], contiguous, in a floating dtype.

    a, b: both int8 or both float8_e4m3fn. fast_accumulation matters to FP8 on Hopper only. Raises ValueError for shapes or
    dtypes that do not match.
    """
    check_product(a, b, bias, None, (torch.int8, FP8))
    M, N = a.shape[0], b.shape[1]
    if (
        row_scale.shape != (M,)
        or column_scale.shape != (N,)
        or {row_scale.dtype, column_scale.dtype} != {torch.float32}
    ):
        raise ValueError(
            f"row_scale is {row_scale.dtype} {list(row_scale.shape)} and column_scale {column_scale.dtype} "
            f"{list(column_scale.shape)}; they must be torch.float32 [{M}] and [{N}]"
        )
    tensors = (a, b, row_scale, column_scale)
    if not use_triton(*tensors if bias is None else (*tensors, bias)) or not _multiplies(a) or not a.shape[1]:
        return scaled_matmul_reference(*tensors, bias, dtype)
    c = torch.empty((M, N), dtype=dtype, device=a.device)
    if c.numel():
        K, is_fast = a.shape[1], fast_accumulation or a.dtype != FP8
        is_lean = is_fast and (bias is None or device_limits(a.device).capability < 100)
        shape = {"M": bucket(M), "N": N, "K": K, "dtype": a.dtype, "fast": is_fast, "bias": bias is not None}
        config = _TUNED.config(a.device, shape, lambda: scaled_config(M, N, K, num_multiprocessors(a.device), is_lean))
        launch_scaled_matmul(config, *tensors, bias, c, fast_accumulation)
    return c


def _multiplies(x: torch.Tensor) -> bool:
    return x.dtype == torch.int8 or device_limits(x.device).capability >= 89


def scaled_config(M: int, N: int, K: int, num_multiprocessors: int, is_lean: bool) -> KernelConfig:
    """Return the tile that the dense product would take, as many bytes along K, and so twice the elements.

    is_lean: the largest tile leaves registers for all else: there is no second sum to hold, and, on a B200, no bias.
    """
    config = plan_matmul(M, N, K, num_multiprocessors).config
    if not is_lean and config.blocks["BLOCK_N"] > 128:
        config = CONFIGS[1]
    return _of_bytes(config)


def _of_bytes(config: KernelConfig) -> KernelConfig:
    blocks = {**config.blocks, "BLOCK_K": 2 * config.blocks["BLOCK_K"]}
    return KernelConfig(blocks, config.num_warps, config.num_stages)


_CONFIGS = tuple(map(_of_bytes, CONFIGS))
_TUNED = Tunable("scaled_matmul", (_scaled_matmul,), _CONFIGS)


def launch_scaled_matmul(
    config: KernelConfig,
    a: torch.Tensor,
    b: torch.Tensor,
    row_scale: torch.Tensor,
    column_scale: torch.Tensor,
    bias: torch.Tensor | None,
    c: torch.Tensor,
    fast_accumulation: bool,
) -> None:
    """Write the product to c [M, N], contiguous, with given tiles."""
    (M, K), N = a.shape, b.shape[1]
    a, weight = _tiles_of(a), _tiles_of(b.t())  # [M, K], [N, K], either with more columns that are not looked at
    allow_descriptors(a.device)
    _scaled_matmul[(min(num_tiles(config, M, N), num_multiprocessors(a.device)),)](
        a, weight, c, row_scale.contiguous(), column_scale.contiguous(), None if bias is None else bias.contiguous(),
        M, N, K, a.stride(0), weight.stride(0),
        PROMOTES=a.dtype == FP8 and not fast_accumulation, INTEGERS=a.dtype == torch.int8,
        **config.blocks, num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip


def _tiles_of(x: torch.Tensor) -> torch.Tensor:
    """Return x [R, K] as TMA can read it: rows that start at multiples of 16 bytes, copied and padded if they do not."""
    if x.stride(1) == 1 and x.stride(0) % 16 == 0 and x.stride(0) > 0 and x.data_ptr() % 16 == 0:
        return x
    padding = max(-x.shape[1] % 16, 0 if x.shape[1] else 16)
    return F.pad(x.view(torch.int8), (0, padding)).contiguous().view(x.dtype)


def scaled_matmul_cost(M: int, N: int, K: int, result_bytes: int) -> Cost:
    """2·M·N·K operations; a byte an element of a and b, result_bytes an element of C, and the scales."""
    return Cost(flops=2 * M * N * K, num_bytes=M * K + K * N + M * N * result_bytes + 4 * (M + N))


def _specs() -> tuple[KernelSpec, ...]:
    def spec(name: str, element: str, promotes: bool, configs: tuple[KernelConfig, ...]) -> KernelSpec:
        signature = {"a_ptr": f"*{element}", "b_ptr": f"*{element}", "c_ptr": "*bf16"}
        signature |= {"row_scale_ptr": "*fp32", "column_scale_ptr": "*fp32"}
        signature |= dict.fromkeys(("M", "N", "K", "a_stride", "b_stride"), "i32")
        constants = {"bias_ptr": None, "PROMOTES": promotes, "INTEGERS": element == "i8"}
        capability = 80 if element == "i8" else 89
        unit: Unit = "int8" if element == "i8" else "fp8"
        work = Work(f"{size} × {size} × {size}, {unit}", scaled_matmul_cost(size, size, size, 2), traffic, unit)
        aligned = tuple(signature)
        return KernelSpec(name, _scaled_matmul, signature, constants, configs, aligned, True, capability, work=work)

    size = 4096

    def traffic(config: KernelConfig) -> Traffic:
        tiles = product_traffic(config, size, size, size, (1, 1, 2))
        return tiles._replace(
            num_bytes=tiles.num_bytes + 4 * tiles.programs * (config.blocks["BLOCK_M"] + config.blocks["BLOCK_N"])
        )

    return (
        spec("int8_matmul", "i8", False, _CONFIGS[:5]),
        spec("fp8_matmul", "fp8e4nv", False, _CONFIGS[:5]),
        spec("fp8_matmul_promoted", "fp8e4nv", True, _CONFIGS[1:5]),
    )


SPECS = _specs()
