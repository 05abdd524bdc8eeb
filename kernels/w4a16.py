"""The product with weights of 4 bits and activations of 16 (W4A16), for the few rows of a decode step.

    Y = X · Wᵀ + bias        W[n, k] = scale[g, n] · (q[n, k] - zero[g, n]),   q and zero in 0 … 15,   g = k // G

    x [M, K]   packed [N, K/2] uint8   scale [K/G, N]   zero [K/G, N] uint8   bias [N]   →   y [M, N] in the dtype of x

Two weights share a byte. The low halves of a group's bytes are its first G/2 weights, the high halves its last:

    group g of row n:     byte         0        1              G/2-1
                          high   │ q[G/2]  │ q[G/2+1] │ … │ q[G-1]   │   · x[G/2 … G-1]   the second product
                          low    │ q[0]    │ q[1]     │ … │ q[G/2-1] │   · x[0 … G/2-1]   the first product

so that bytes come apart into two tiles without any of their elements moving between threads; even and odd weights in a byte
would have to be interleaved again. A half becomes a float without a conversion: 0x4300 | q is 128 + q in bfloat16 (0x6400 | q
is 1024 + q in float16), and the difference to 128 + zero is exact. The scale is applied to a group's sum, not to its weights.

The weights are the left operand, Yᵀ = W · Xᵀ: matrix instructions want 64 or 128 rows there, and are content with 16 on the
right.

A weight takes half a byte and 1/G of its scale and zero point: 4.2 bits for G = 128, so up to 3.8 times the speed of bfloat16
at 1 to 16 rows, where reading weights is all the work. Unpacking, some 4.5 instructions a weight, is the next bound. It loses
beyond some 64 rows, where arithmetic is the work and unpacking comes on top: there, unpack once and use `kernels.matmul`.
Groups of 32 read 4.75 bits, and small products keep the matrix units waiting. Follows GPTQ's and AWQ's groups (Frantar et al.
2022, Lin et al. 2023) and the conversion of Kim et al. 2022 (FasterTransformer).
"""

from typing import Any

import torch

from kernels.cost import Cost
from kernels.dispatch import use_triton
from kernels.library import operator
from kernels.matmul import sum_parts
from kernels.matmul_plan import plan_split
from kernels.operands import num_multiprocessors
from kernels.spec import KernelConfig, KernelSpec
from kernels.tiles import INTERPRETING, tile_product
from kernels.triton_api import jit, tl, triton
from kernels.tuned import Tunable, bucket
from kernels.work import Traffic, Work

_CONFIGS = tuple(
    KernelConfig({"BLOCK_M": 16, "BLOCK_N": n}, warps, stages)
    for n, warps, stages in ((128, 4, 4), (64, 4, 4), (64, 4, 6), (128, 8, 4), (128, 4, 6))
)


def pack_w4(q: torch.Tensor, group_size: int) -> torch.Tensor:
    """Pack q [N, K], values 0 … 15, as the picture at the top has it: [N, K/2] uint8. Raises ValueError for other values."""
    _check_groups(q.shape[1], group_size)
    if q.numel() and (int(q.min()) < 0 or int(q.max()) > 15):
        raise ValueError(f"q runs from {int(q.min())} to {int(q.max())}; 4 bits hold 0 to 15")
    N, K = q.shape
    low, high = q.to(torch.uint8).reshape(N, K // group_size, 2, group_size // 2).unbind(2)
    return (low | (high << 4)).view(N, K // 2)


def unpack_w4(packed: torch.Tensor, group_size: int) -> torch.Tensor:
    """Undo `pack_w4`: packed [N, K/2] → q [N, K] uint8."""
    N, num_bytes = packed.shape
    halves = packed.reshape(N, 2 * num_bytes // group_size, 1, group_size // 2)
    return torch.cat([halves & 15, halves >> 4], dim=2).view(N, 2 * num_bytes)


def w4a16_matmul_reference(
    x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """The formula by torch, in float32."""
    group_size = 2 * packed.shape[1] // scale.shape[0]
    scale, zero = (part.float().t().repeat_interleave(group_size, dim=1) for part in (scale, zero))  # [N, K]
    y = x.float() @ (scale * (unpack_w4(packed, group_size) - zero)).t()
    return (y if bias is None else y + bias.float()).to(x.dtype)


@jit
def _to_float(halves, DTYPE: tl.constexpr):
    """Return 128 + halves in bfloat16 or 1024 + halves in float16, which has ones for steps there."""
    if tl.bfloat16 == DTYPE:
        weights = (halves.to(tl.int16) | 0x4300).to(tl.bfloat16, bitcast=True)
    else:
        weights = (halves.to(tl.int16) | 0x6400).to(tl.float16, bitcast=True)
    return weights


@jit
def _difference(weights, zero):
    if INTERPRETING:  # it keeps bfloat16 as raw 16-bit integers, and would subtract those
        difference = (weights.to(tl.float32) - zero.to(tl.float32)).to(weights.dtype)
    else:
        difference = weights - zero
    return difference


@jit(varies=("M", "groups_a_part"))
def _w4a16_matmul(
    x_ptr, packed_ptr, scale_ptr, zero_ptr, y_ptr, bias_ptr, M, N, K, groups_a_part, x_stride,
    GROUP_SIZE: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = GROUP_SIZE // 2
    DTYPE: tl.constexpr = x_ptr.dtype.element_ty
    columns = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    rows = tl.program_id(1) * BLOCK_M + tl.arange(0, BLOCK_M)
    part = tl.program_id(2)
    ks = tl.arange(0, HALF)
    packed_offsets = columns.to(tl.int64)[:, None] * (K // 2) + ks[None, :]  # [BLOCK_N, HALF]
    x_offsets = ks[:, None] + rows.to(tl.int64)[None, :] * x_stride  # [HALF, BLOCK_M]
    is_column = columns < N
    is_row = (rows < M)[None, :]
    accumulator = tl.zeros((BLOCK_N, BLOCK_M), tl.float32)
    first = part * groups_a_part
    for group in range(first, tl.minimum(first + groups_a_part, K // GROUP_SIZE)):
        packed = tl.load(packed_ptr + group * HALF + packed_offsets, mask=is_column[:, None], other=0)
        x_first = tl.load(x_ptr + group * GROUP_SIZE + x_offsets, mask=is_row, other=0.0)
        x_last = tl.load(x_ptr + group * GROUP_SIZE + HALF + x_offsets, mask=is_row, other=0.0)
        scale = tl.load(scale_ptr + group * N + columns, mask=is_column, other=0.0).to(tl.float32)
        zero = _to_float(tl.load(zero_ptr + group * N + columns, mask=is_column, other=0), DTYPE)[:, None]
        low = _difference(_to_float(packed & 15, DTYPE), zero)
        high = _difference(_to_float(packed >> 4, DTYPE), zero)
        total = tile_product(low, x_first, tl.zeros((BLOCK_N, BLOCK_M), tl.float32), "ieee")
        accumulator += tile_product(high, x_last, total, "ieee") * scale[:, None]
    if bias_ptr is not None:
        accumulator += tl.load(bias_ptr + columns, mask=is_column, other=0.0).to(tl.float32)[:, None]
    y_ptr += part.to(tl.int64) * M * N  # part 0 is all there is, unless y is a workspace
    places = y_ptr + rows.to(tl.int64)[None, :] * N + columns[:, None]
    tl.store(places, accumulator.to(y_ptr.dtype.element_ty), mask=is_column[:, None] & is_row)


_TUNED = Tunable("w4a16_matmul", (_w4a16_matmul,), _CONFIGS)


@operator(lambda x, packed, scale, zero, bias=None: x.new_empty(x.shape[0], packed.shape[0]))
def w4a16_matmul(
    x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Return x [M, K] · Wᵀ + bias [N] in the dtype of x, contiguous; W as the formula at the top has it.

    x: bfloat16 or float16. The group size follows from the shapes of packed [N, K/2] and scale [K/G, N]: a power of two, 32 at
    least. Raises ValueError for shapes or dtypes that do not match.
    """
    _check(x, packed, scale, zero, bias)
    tensors = (x, packed, scale, zero)
    if not use_triton(*tensors if bias is None else (*tensors, bias)):
        return w4a16_matmul_reference(*tensors, bias)
    config = _tuned_config(x, packed, scale)
    split = plan_split(_num_tiles(config, x, packed), x.shape[1], 2 * num_multiprocessors(x.device))
    return launch_w4a16_matmul(config, split, *tensors, bias)


def _check(
    x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor, zero: torch.Tensor, bias: torch.Tensor | None
) -> None:
    if x.dim() != 2 or packed.dim() != 2 or x.shape[1] != 2 * packed.shape[1]:
        raise ValueError(f"x is {list(x.shape)} and packed {list(packed.shape)}; they must be [M, K] and [N, K/2]")
    if x.dtype not in (torch.bfloat16, torch.float16) or packed.dtype != torch.uint8 or zero.dtype != torch.uint8:
        raise ValueError(
            f"x is {x.dtype}, packed {packed.dtype} and zero {zero.dtype}; they must be torch.bfloat16 or torch.float16, "
            "torch.uint8 and torch.uint8"
        )
    N, K = packed.shape[0], x.shape[1]
    if scale.dim() != 2 or scale.shape[1] != N or zero.shape != scale.shape or not scale.shape[0] or K % scale.shape[0]:
        raise ValueError(
            f"scale is {list(scale.shape)} and zero {list(zero.shape)}; both must be [K/G, N] with K = {K} and N = {N}"
        )
    _check_groups(K, K // scale.shape[0])
    if bias is not None and bias.shape != (N,):
        raise ValueError(f"bias is {list(bias.shape)}; it must be [{N}]")


def _check_groups(K: int, group_size: int) -> None:
    if group_size < 32 or group_size & (group_size - 1) or K % group_size:
        raise ValueError(
            f"the group size is {group_size}; it must be a power of two, 32 at least, that divides K = {K}"
        )


def w4a16_config(num_rows: int) -> KernelConfig:
    """Return the tuned tile for 16 rows, with more rows in it, up to 64, where there are more."""
    config = _CONFIGS[0]
    rows = min(max(triton.next_power_of_2(num_rows), 16), 64)
    num_warps = 8 if rows == 64 else config.num_warps  # 4 have not the registers for so large a sum
    return KernelConfig({**config.blocks, "BLOCK_M": rows}, num_warps, config.num_stages)


def _tuned_config(x: torch.Tensor, packed: torch.Tensor, scale: torch.Tensor) -> KernelConfig:
    (M, K), N = x.shape, packed.shape[0]
    shape = {"M": bucket(M), "N": N, "K": K, "group": K // scale.shape[0], "dtype": x.dtype}
    fixed = {"BLOCK_M": min(max(bucket(M), 16), 64)}
    return _TUNED.config(x.device, shape, lambda: w4a16_config(M), fixed)


def _num_tiles(config: KernelConfig, x: torch.Tensor, packed: torch.Tensor) -> int:
    blocks = config.blocks
    return -(-packed.shape[0] // blocks["BLOCK_N"]) * -(-x.shape[0] // blocks["BLOCK_M"])


def launch_w4a16_matmul(
    config: KernelConfig,
    split: int,
    x: torch.Tensor,
    packed: torch.Tensor,
    scale: torch.Tensor,
    zero: torch.Tensor,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Compute `w4a16_matmul` with given tiles, and with the sum over K in so many parts."""
    (M, K), (N, _), num_groups = x.shape, packed.shape, scale.shape[0]
    y = torch.empty((M, N), dtype=x.dtype, device=x.device)
    if not y.numel():
        return y
    x = x if x.stride(1) == 1 else x.contiguous()
    bias = None if bias is None else bias.contiguous()
    parts = y if split == 1 else torch.empty((split, M, N), dtype=torch.float32, device=x.device)
    grid = (triton.cdiv(N, config.blocks["BLOCK_N"]), triton.cdiv(M, config.blocks["BLOCK_M"]), split)
    _w4a16_matmul[grid](
        x, packed.contiguous(), scale.contiguous(), zero.contiguous(), parts, bias if split == 1 else None,
        M, N, K, triton.cdiv(num_groups, split), x.stride(0), GROUP_SIZE=K // num_groups,
        **config.blocks, num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    if split > 1:
        sum_parts(parts, y, bias)
    return y


def w4a16_matmul_cost(M: int, N: int, K: int, group_size: int) -> Cost:
    """2·M·N·K operations; half a byte a weight, three bytes a group, two an activation."""
    num_bytes = N * K // 2 + 3 * N * K // group_size + 2 * (M * K + M * N)
    return Cost(flops=2 * M * N * K, num_bytes=num_bytes)


def _specs() -> tuple[KernelSpec, ...]:
    pointers: dict[str, Any] = {"x_ptr": "*bf16", "packed_ptr": "*u8", "scale_ptr": "*bf16", "zero_ptr": "*u8"}
    sizes = dict.fromkeys(("M", "N", "K", "groups_a_part", "x_stride"), "i32")
    aligned = (*pointers, "y_ptr", "N", "K", "x_stride")

    def spec(name: str, result: str, N: int, K: int, group_size: int) -> KernelSpec:
        signature = {**pointers, "y_ptr": result, **sizes}
        constants = {"bias_ptr": None, "GROUP_SIZE": group_size}
        M, cost = 16, w4a16_matmul_cost(16, N, K, group_size)

        def traffic(config: KernelConfig) -> Traffic:
            tiles_m, tiles_n = -(-M // config.blocks["BLOCK_M"]), -(-N // config.blocks["BLOCK_N"])
            split = plan_split(tiles_m * tiles_n, K, 2 * 132) if result == "*fp32" else 1
            programs, groups = tiles_m * tiles_n * split, -(-K // group_size // split)
            flops = 2 * programs * config.blocks["BLOCK_M"] * config.blocks["BLOCK_N"] * groups * group_size
            weights = (K // 2 + 3 * K // group_size) * N * tiles_m
            return Traffic(
                programs, flops, weights + 2 * M * K * tiles_n + (4 * split if split > 1 else 2) * M * N, groups
            )

        work = Work(f"{M} × {K} × {N}, 4-bit groups of {group_size}, bf16", cost, traffic, "bf16")
        return KernelSpec(name, _w4a16_matmul, signature, constants, _CONFIGS, aligned, True, work=work)

    # Llama-3-8B: gate and up have tiles enough for all multiprocessors, down has not, and its sum is split.
    return (
        spec("w4a16_matmul", "*bf16", 2 * 14_336, 4096, 128),
        spec("w4a16_matmul_parts", "*fp32", 4096, 14_336, 128),
        spec("w4a16_g32", "*bf16", 2 * 14_336, 4096, 32),
    )


SPECS = _specs()
