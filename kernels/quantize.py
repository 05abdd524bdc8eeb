"""Activations in 8 bits, with one scale a token, symmetric about zero: int8, or FP8 E4M3 (Micikevicius et al. 2022).

    scale = max |x| / limit                        limit = 127 (int8) or 448 (E4M3), max over the row
    q     = round(x · (limit / max |x|))           so that x ≈ q · scale

    int8    …  -2 -1  0  1  2 …  127               equal steps: the error is up to scale / 2 everywhere
    E4M3    …  a sign, 4 bits of exponent, 3 of mantissa: the step grows with |q|, from 1/512 below 1/32 to 32 above 256

Both round half to even. They multiply by limit / max |x| instead of dividing by the scale: a product is rounded alike on every
machine, so that kernel and reference agree in every bit, and it costs a tenth. The maximum is taken as FLOOR at least: a row
of zeros then has zeros and a scale that is finite and not zero, so that whoever divides by it survives. Values must be finite.

FP8 is converted by the hardware from sm_89 on. Elsewhere (an A100 can at least store it) the bits are put together by integer
arithmetic, which gives the same and costs about twelve instructions an element.

A program instance keeps a row in registers up to 16,384 columns, and reads longer ones twice, the second time from the cache.
It wins where the product after it is faster in 8 bits by more than this pass costs; it loses with few rows, and against a
norm or an activation that quantizes what it still has in its registers.
"""

import torch

from kernels.cost import Cost
from kernels.device import device_limits
from kernels.dispatch import use_triton
from kernels.library import operator
from kernels.rows import as_rows
from kernels.spec import KernelConfig, KernelSpec
from kernels.triton_api import is_interpreting, jit, tl, triton
from kernels.tuned import Tunable, bucket
from kernels.work import chunks_work, rows_work

FLOOR = 2.0**-100
"""limit / FLOOR is still a finite float32."""
INT8_LIMIT, FP8_LIMIT = 127.0, 448.0
MAX_COLUMNS_IN_REGISTERS = 1 << 14
CHUNK = KernelConfig({"BLOCK": 8192}, num_warps=16, num_stages=1)


def _scaled(x: torch.Tensor, limit: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Return x [..., H] stretched to ±limit, row by row, and the scales [..., 1], both float32."""
    wide = x.float()
    largest = wide.abs().amax(dim=-1, keepdim=True).clamp_min(FLOOR)
    limits = torch.full_like(
        largest, limit
    )  # a tensor: by a number torch multiplies with its reciprocal, rounded twice
    return (wide * (limits / largest)).clamp(-limit, limit), largest / limits


def quantize_int8_reference(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and scales of x [..., H], by torch."""
    stretched, scales = _scaled(x, INT8_LIMIT)
    return stretched.round().to(torch.int8), scales


def quantize_fp8_reference(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Values and scales of x [..., H], by torch."""
    stretched, scales = _scaled(x, FP8_LIMIT)
    return stretched.to(torch.float8_e4m3fn), scales


@jit
def _round_to_fp8_bits(x):
    """Return the E4M3 bits of x, |x| <= 448, as int32: what the hardware's conversion gives, by integer arithmetic."""
    bits = x.to(tl.int32, bitcast=True)
    magnitude = bits & 0x7FFFFFFF
    # Normal numbers: keep 3 of 23 bits of mantissa, half to even; a carry runs on into the exponent, as it should.
    normal = ((magnitude + 0x7FFFF + ((magnitude >> 20) & 1)) >> 20) - ((127 - 7) << 3)
    # Below 2^-6 the steps are 2^-9: adding 2^14, whose last bit is worth that much, makes the machine's own adder round.
    subnormal = (magnitude.to(tl.float32, bitcast=True) + 16384.0).to(tl.int32, bitcast=True) & 0xFF
    return tl.where(magnitude < 0x3C800000, subnormal, normal) | ((bits >> 24) & 0x80)


@jit
def store_quantized(x, inverse, place, inside, LIMIT: tl.constexpr, KIND: tl.constexpr):
    """Store x · inverse, rounded and clipped to ±LIMIT, as KIND says: int8, fp8, or fp8_bits where nothing converts to FP8."""
    stretched = tl.minimum(tl.maximum(x * inverse, -LIMIT), LIMIT)
    if KIND == "int8":
        # Adding 1.5 · 2^23 leaves no bits for a fraction: the adder rounds half to even.
        tl.store(place, ((stretched + 12582912.0) - 12582912.0).to(tl.int8), mask=inside)
    elif KIND == "fp8":
        tl.store(place, stretched.to(tl.float8e4nv), mask=inside)
    else:
        tl.store(place, _round_to_fp8_bits(stretched).to(tl.uint8), mask=inside)


@jit
def _quantize(
    x_ptr, values_ptr, scales_ptr, num_columns, x_stride,
    LIMIT: tl.constexpr, KIND: tl.constexpr, FLOOR: tl.constexpr, FITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_stride
    values_ptr += row * num_columns
    columns = tl.arange(0, BLOCK)
    if FITS:
        inside = columns < num_columns
        x = tl.load(x_ptr + columns, mask=inside, other=0.0).to(tl.float32)
        largest = tl.maximum(tl.max(tl.abs(x), axis=0), FLOOR)
        store_quantized(x, tl.div_rn(LIMIT, largest), values_ptr + columns, inside, LIMIT, KIND)
    else:
        largest_by_lane = tl.full([BLOCK], FLOOR, tl.float32)
        for start in range(0, num_columns, BLOCK):
            x = tl.load(x_ptr + start + columns, mask=start + columns < num_columns, other=0.0).to(tl.float32)
            largest_by_lane = tl.maximum(largest_by_lane, tl.abs(x))
        largest = tl.max(largest_by_lane, axis=0)
        inverse = tl.div_rn(LIMIT, largest)
        for start in range(0, num_columns, BLOCK):
            inside = start + columns < num_columns
            x = tl.load(x_ptr + start + columns, mask=inside, other=0.0).to(tl.float32)
            store_quantized(x, inverse, values_ptr + start + columns, inside, LIMIT, KIND)
    tl.store(scales_ptr + row, tl.div_rn(largest, LIMIT))


def _fake(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return x.new_empty(x.shape, dtype=dtype), x.new_empty([*x.shape[:-1], 1], dtype=torch.float32)


@operator(lambda x: _fake(x, torch.int8))
def quantize_int8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize x [..., H], of a floating-point dtype, row by row: int8 values [..., H] and float32 scales [..., 1].

    Values are in [-127, 127]. Raises ValueError for a scalar, for rows without elements and for integers.
    """
    _check(x)
    return _launch(x, torch.int8) if use_triton(x) else quantize_int8_reference(x)


@operator(lambda x: _fake(x, torch.float8_e4m3fn))
def quantize_fp8(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize x [..., H], of a floating-point dtype, row by row: float8_e4m3fn values [..., H], float32 scales [..., 1].

    Values are in [-448, 448]: the largest of a row becomes ±448, nothing becomes NaN. Raises ValueError for a scalar, for rows
    without elements and for integers.
    """
    _check(x)
    return _launch(x, torch.float8_e4m3fn) if use_triton(x) else quantize_fp8_reference(x)


def storing(values: torch.Tensor) -> tuple[torch.Tensor, float, str]:
    """Return how `store_quantized` writes to int8 or float8_e4m3fn values: the tensor to point to, LIMIT and KIND.

    Where nothing converts to FP8 (below capability 8.9, and in the interpreter), the kernel makes the bits by itself.
    """
    if values.dtype == torch.int8:
        return values, INT8_LIMIT, "int8"
    if not is_interpreting() and device_limits(values.device).capability >= 89:
        return values, FP8_LIMIT, "fp8"
    return values.view(torch.uint8), FP8_LIMIT, "fp8_bits"


def _check(x: torch.Tensor) -> None:
    if x.dim() == 0 or not x.shape[-1] or not x.is_floating_point():
        raise ValueError(
            f"x is {list(x.shape)} of {x.dtype}; it must be [..., H] of a floating-point dtype, H at least 1"
        )


def _launch(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    rows = as_rows(x)
    num_rows, num_columns = rows.shape
    values = torch.empty(x.shape, dtype=dtype, device=x.device)
    scales = torch.empty([*x.shape[:-1], 1], dtype=torch.float32, device=x.device)
    if num_rows:
        target, limit, kind = storing(values)
        fits = num_columns <= MAX_COLUMNS_IN_REGISTERS
        shape = {"rows": bucket(num_rows), "columns": num_columns, "kind": kind, "dtype": x.dtype}
        config = CHUNK
        if fits:
            fixed = {"BLOCK": max(triton.next_power_of_2(num_columns), 512)}
            config = _TUNED.config(x.device, shape, lambda: quantize_config(num_columns), fixed)
        _quantize[(num_rows,)](
            rows, target, scales, num_columns, rows.stride(0),
            LIMIT=limit, KIND=kind, FLOOR=FLOOR, FITS=fits, **config.blocks, num_warps=config.num_warps,
        )  # fmt: skip
    return values, scales


def quantize_config(num_columns: int) -> KernelConfig:
    """Return the launch for rows that fit into registers: 16 columns a thread, so that it stores 16 bytes at once."""
    block = max(triton.next_power_of_2(num_columns), 512)
    return KernelConfig({"BLOCK": block}, num_warps=min(block // 512, 16), num_stages=1)


def quantize_cost(num_tokens: int, hidden_size: int, dtype_bytes: int) -> Cost:
    """Read x, write one byte for each element and a scale for each row; magnitude, maximum, product, two bounds, rounding."""
    elements = num_tokens * hidden_size
    return Cost(flops=6 * elements, num_bytes=elements * (dtype_bytes + 1) + 4 * num_tokens)


_CONFIGS = tuple(KernelConfig({"BLOCK": 4096}, warps, 1) for warps in (8, 4, 16))
_TUNED = Tunable("quantize", (_quantize,), _CONFIGS)


def _specs() -> tuple[KernelSpec, ...]:
    def spec(name: str, values: str, kind: str, *, fits: bool = True, min_capability: int = 80) -> KernelSpec:
        arguments = {
            "x_ptr": "*bf16",
            "values_ptr": values,
            "scales_ptr": "*fp32",
            "num_columns": "i32",
            "x_stride": "i32",
        }
        constants = {"LIMIT": INT8_LIMIT if kind == "int8" else FP8_LIMIT, "KIND": kind, "FLOOR": FLOOR, "FITS": fits}
        configs = _CONFIGS if fits else (CHUNK,)
        tokens, hidden = (16_384, 4096) if fits else (256, 151_936)
        shape, cost = f"{tokens:,} × {hidden:,}, bf16", quantize_cost(tokens, hidden, 2)
        held, twice = (
            rows_work(shape, cost, tokens, hidden),
            chunks_work(shape, cost, tokens, hidden, 2 * hidden, passes=2),
        )
        return KernelSpec(
            name, _quantize, arguments, constants, configs, tuple(arguments), min_capability=min_capability,
            work=held if fits else twice,
        )  # fmt: skip

    return (
        spec("quantize_int8", "*i8", "int8"),
        spec("quantize_int8_long_rows", "*i8", "int8", fits=False),
        spec("quantize_fp8", "*fp8e4nv", "fp8", min_capability=89),
        spec("quantize_fp8_by_bits", "*u8", "fp8_bits"),
    )


SPECS = _specs()
