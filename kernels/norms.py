"""RMSNorm (Zhang and Sennrich 2019), alone and with the residual connection before it, and LayerNorm (Ba et al. 2016).

    rms_norm       y = x / sqrt(mean(x²) + eps) · weight
    add_rms_norm   residual ← residual + x;   y = rms_norm(residual)
    layer_norm     y = (x - mean(x)) / sqrt(var(x) + eps) · weight + bias

The statistics are taken in float32 whatever the dtype of x: squares of bfloat16 values lose the digits that matter.

A program instance owns a row and keeps all of it in registers, so that x is read once and y written once: on a GPU such a
kernel is as fast as a copy. It loses where rows are few (a decode of one token leaves all multiprocessors but one idle: only
fusing it into its neighbours helps) and beyond some 16,384 columns, where a row no longer fits into the registers.
"""

from typing import Any

import torch
import torch.nn.functional as F

from kernels.cost import Cost
from kernels.dispatch import use_triton
from kernels.library import operator
from kernels.rows import as_rows
from kernels.spec import KernelConfig, KernelSpec
from kernels.triton_api import jit, tl, triton
from kernels.tuned import Tunable, bucket
from kernels.work import Work, rows_work

MAX_COLUMNS = 1 << 16
"""More than fits into the registers of a block, spilled or not."""


def rms_norm_reference(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm of x [..., H] with weight [H], by torch."""
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


@jit
def _rms_norm(
    x_ptr, residual_ptr, weight_ptr, y_ptr, num_columns, x_stride, residual_stride, eps,
    ADDS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < num_columns
    x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    if ADDS:
        place = residual_ptr + row * residual_stride + columns
        x += tl.load(place, mask=inside, other=0.0).to(tl.float32)
        rounded = x.to(residual_ptr.dtype.element_ty)
        tl.store(place, rounded, mask=inside)
        x = rounded.to(tl.float32)  # normalise what the next layer will read, not something a bit more exact
    inverse = tl.rsqrt(tl.sum(x * x, axis=0) / num_columns + eps)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    tl.store(y_ptr + row * num_columns + columns, (x * inverse * weight).to(y_ptr.dtype.element_ty), mask=inside)


def _check(x: torch.Tensor, weight: torch.Tensor) -> None:
    if x.shape[-1:] != weight.shape or x.shape[-1] > MAX_COLUMNS:
        raise ValueError(
            f"x is {list(x.shape)} and weight {list(weight.shape)}; weight must be [{x.shape[-1]}], and no row longer than "
            f"{MAX_COLUMNS}"
        )


@operator(lambda x, weight, eps: torch.empty_like(x, memory_format=torch.contiguous_format))
def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Normalise the last dimension of x [..., H] by its root mean square and scale by weight [H].

    Returns a contiguous tensor of x's shape and dtype. Raises ValueError for shapes that do not match.
    """
    if not use_triton(x, weight):
        return rms_norm_reference(x, weight, eps)
    _check(x, weight)
    rows = as_rows(x)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if rows.numel():
        _launch_rms_norm(rows, rows, weight, y, eps, adds=False)
    return y


@operator(lambda x, residual, weight, eps: torch.empty_like(residual), mutates=("residual",))
def add_rms_norm(x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """Add x [T, H] to residual [T, H], in place, and return the RMSNorm of the sum, scaled by weight [H].

    One pass instead of two: x and residual are read once, residual and the result written once. Raises ValueError for shapes
    that do not match.
    """
    if x.shape != residual.shape:
        raise ValueError(f"x is {list(x.shape)} and residual {list(residual.shape)}; they must be of one shape")
    if not use_triton(x, residual, weight):
        residual += x
        return rms_norm_reference(residual, weight, eps)
    _check(x, weight)
    if residual.stride(-1) != 1 or residual.dim() != 2:
        raise ValueError(
            f"residual has strides {residual.stride()}; it must be [T, H] with its columns next to each other"
        )
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel():
        _launch_rms_norm(as_rows(x), residual, weight, y, eps, adds=True)
    return y


def _launch_rms_norm(
    x: torch.Tensor, residual: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, eps: float, *, adds: bool
) -> None:
    num_rows, num_columns = x.shape
    config = tuned_row_config(_ADD_TUNED if adds else _TUNED, x)
    _rms_norm[(num_rows,)](
        x, residual, weight.contiguous(), y, num_columns, x.stride(0), residual.stride(0), eps,
        ADDS=adds, **config.blocks, num_warps=config.num_warps,
    )  # fmt: skip


def row_config(num_columns: int) -> KernelConfig:
    """Return the launch for kernels with a program a row: 8 to 16 columns a thread, and all in one block."""
    block = triton.next_power_of_2(num_columns)
    return KernelConfig({"BLOCK": block}, num_warps=min(max(block // 512, 1), 16), num_stages=1)


def tuned_row_config(tuned: Tunable, rows: torch.Tensor) -> KernelConfig:
    """Return the measured launch of such a kernel for rows [R, W], or `row_config`."""
    num_rows, num_columns = rows.shape
    fixed = {"BLOCK": triton.next_power_of_2(num_columns)}
    shape = {"rows": bucket(num_rows), "columns": num_columns, "dtype": rows.dtype}
    return tuned.config(rows.device, shape, lambda: row_config(num_columns), fixed)


def rms_norm_cost(num_tokens: int, hidden_size: int, dtype_bytes: int) -> Cost:
    """Read x once, write y once; the weight stays in cache."""
    elements = num_tokens * hidden_size
    return Cost(flops=4 * elements, num_bytes=(2 * elements + hidden_size) * dtype_bytes)


def add_rms_norm_cost(num_tokens: int, hidden_size: int, dtype_bytes: int) -> Cost:
    """Read x and the residual, write the residual and y."""
    elements = num_tokens * hidden_size
    return Cost(flops=5 * elements, num_bytes=(4 * elements + hidden_size) * dtype_bytes)


def layer_norm_reference(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """LayerNorm of x [..., H] with weight [H] and bias [H], by torch."""
    return F.layer_norm(x, (x.shape[-1],), weight, bias, eps)


@jit
def _layer_norm(x_ptr, weight_ptr, bias_ptr, y_ptr, num_columns, x_stride, eps, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < num_columns
    x = tl.load(x_ptr + row * x_stride + columns, mask=inside, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=0) / num_columns
    centred = tl.where(inside, x - mean, 0.0)  # two passes, but over registers: E[x²] - E[x]² would cancel
    inverse = tl.rsqrt(tl.sum(centred * centred, axis=0) / num_columns + eps)
    weight = tl.load(weight_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, mask=inside, other=0.0).to(tl.float32)
    y = centred * inverse * weight + bias
    tl.store(y_ptr + row * num_columns + columns, y.to(y_ptr.dtype.element_ty), mask=inside)


@operator(lambda x, weight, bias, eps: torch.empty_like(x, memory_format=torch.contiguous_format))
def layer_norm(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
    """Normalise the last dimension of x [..., H] to mean 0 and variance 1, scale by weight [H] and shift by bias [H].

    Returns a contiguous tensor of x's shape and dtype. Raises ValueError for shapes that do not match.
    """
    if not use_triton(x, weight, bias):
        return layer_norm_reference(x, weight, bias, eps)
    _check(x, weight)
    _check(x, bias)
    rows = as_rows(x)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if rows.numel():
        config = tuned_row_config(_LAYER_TUNED, rows)
        _layer_norm[(rows.shape[0],)](
            rows, weight.contiguous(), bias.contiguous(), y, rows.shape[1], rows.stride(0), eps,
            **config.blocks, num_warps=config.num_warps,
        )  # fmt: skip
    return y


def layer_norm_cost(num_tokens: int, hidden_size: int, dtype_bytes: int) -> Cost:
    """Read x once, write y once; weight and bias stay in cache."""
    elements = num_tokens * hidden_size
    return Cost(flops=7 * elements, num_bytes=(2 * elements + 2 * hidden_size) * dtype_bytes)


_CONFIGS = tuple(KernelConfig({"BLOCK": 4096}, warps, 1) for warps in (8, 4, 16))
_TUNED, _ADD_TUNED = (Tunable(name, (_rms_norm,), _CONFIGS) for name in ("rms_norm", "add_rms_norm"))
_LAYER_TUNED = Tunable("layer_norm", (_layer_norm,), _CONFIGS)


def _specs() -> tuple[KernelSpec, ...]:
    pointers: dict[str, Any] = dict.fromkeys(("x_ptr", "residual_ptr", "weight_ptr", "y_ptr"), "*bf16")
    sizes = {"num_columns": "i32", "x_stride": "i32", "residual_stride": "i32"}
    aligned = (*pointers, *sizes)
    layer = {"x_ptr": "*bf16", "weight_ptr": "*bf16", "bias_ptr": "*bf16", "y_ptr": "*bf16", "num_columns": "i32"}
    layer["x_stride"] = "i32"
    tokens, hidden = 16_384, 4096

    def work(cost: Cost, num_weights: int = 1) -> Work:  # each program reads the weight again
        return rows_work(f"{tokens:,} × {hidden:,}, bf16", cost, tokens, hidden, again=2 * num_weights * hidden)

    alone, added = (cost(tokens, hidden, 2) for cost in (rms_norm_cost, add_rms_norm_cost))
    arguments = {**pointers, **sizes, "eps": "fp32"}
    return (
        KernelSpec("rms_norm", _rms_norm, arguments, {"ADDS": False}, _CONFIGS, aligned, work=work(alone)),
        KernelSpec("add_rms_norm", _rms_norm, arguments, {"ADDS": True}, _CONFIGS, aligned, work=work(added)),
        KernelSpec(
            "layer_norm", _layer_norm, {**layer, "eps": "fp32"}, {}, _CONFIGS, tuple(layer),
            work=work(layer_norm_cost(tokens, hidden, 2), num_weights=2),
        ),
    )  # fmt: skip


SPECS = _specs()
