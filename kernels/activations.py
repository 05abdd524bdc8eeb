"""The gates of SwiGLU and GEGLU (Shazeer 2020): an activation of one half of a projection times the other half.

    y = act(gate) · up

    silu_mul              silu(a) = a / (1 + exp(-a))
    gelu_mul, "none"      gelu(a) = a / 2 · (1 + erf(a / √2))                     (Hendrycks and Gimpel 2016)
    gelu_mul, "tanh"      gelu(a) ≈ a / 2 · (1 + tanh(√(2/π) · (a + 0.044715 a³)))

Since (1 + tanh(z)) / 2 = 1 / (1 + exp(-2z)), the tanh form is a SiLU with a bent argument: one exponential, like the other.

A program instance computes BLOCK elements of a row. It wins over two operations of torch, which write act(gate) and read it
again: 3 elements move instead of 5. It loses to fusing it into the product that makes gate_up, which would move 1.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F

from kernels.cost import Cost
from kernels.dispatch import use_triton
from kernels.library import operator
from kernels.rows import as_rows
from kernels.spec import KernelConfig, KernelSpec
from kernels.triton_api import jit, tl, triton
from kernels.tuned import Tunable, bucket
from kernels.work import programs_work

CONFIGS = tuple(
    KernelConfig({"BLOCK": block}, warps, 1) for block, warps in ((1024, 4), (2048, 4), (2048, 8), (512, 2))
)


def silu_mul_reference(gate_up: torch.Tensor) -> torch.Tensor:
    """SwiGLU's gate of gate_up [..., 2·I], by torch."""
    gate, up = gate_up.chunk(2, dim=-1)  # each [..., I]
    return F.silu(gate).mul_(up)


def gelu_mul_reference(gate_up: torch.Tensor, approximate: str = "tanh") -> torch.Tensor:
    """GEGLU's gate of gate_up [..., 2·I], by torch."""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.gelu(gate, approximate=approximate).mul_(up)


@jit
def _act_mul(gate_up_ptr, y_ptr, num_columns, gate_up_stride, ACT: tl.constexpr, BLOCK: tl.constexpr):
    blocks_per_row = tl.cdiv(num_columns, BLOCK)
    row = (tl.program_id(0) // blocks_per_row).to(tl.int64)
    columns = tl.program_id(0) % blocks_per_row * BLOCK + tl.arange(0, BLOCK)
    inside = columns < num_columns
    place = gate_up_ptr + row * gate_up_stride + columns
    gate = tl.load(place, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(place + num_columns, mask=inside, other=0.0).to(tl.float32)
    if ACT == "silu":
        share = tl.sigmoid(gate)
    elif ACT == "tanh":
        share = tl.sigmoid(1.5957691216057308 * (gate + 0.044715 * gate * gate * gate))  # 2 · √(2/π)
    else:
        share = 0.5 * (1.0 + tl.erf(gate * 0.7071067811865476))
    tl.store(y_ptr + row * num_columns + columns, (gate * share * up).to(y_ptr.dtype.element_ty), mask=inside)


_TUNED = Tunable("act_mul", (_act_mul,), CONFIGS)


def _fake(gate_up: torch.Tensor) -> torch.Tensor:
    return gate_up.new_empty([*gate_up.shape[:-1], gate_up.shape[-1] // 2])


def _launch(gate_up: torch.Tensor, act: str) -> torch.Tensor:
    if gate_up.dim() == 0 or gate_up.shape[-1] % 2:
        raise ValueError(f"gate_up is {list(gate_up.shape)}; its last dimension must be two halves, gate and up")
    num_columns = gate_up.shape[-1] // 2
    y = torch.empty([*gate_up.shape[:-1], num_columns], dtype=gate_up.dtype, device=gate_up.device)
    if y.numel():
        rows = as_rows(gate_up)
        shape = {"rows": bucket(rows.shape[0]), "columns": num_columns, "act": act, "dtype": gate_up.dtype}
        config = _TUNED.config(rows.device, shape, lambda: CONFIGS[0])
        grid = (rows.shape[0] * triton.cdiv(num_columns, config.blocks["BLOCK"]),)
        _act_mul[grid](rows, y, num_columns, rows.stride(0), ACT=act, **config.blocks, num_warps=config.num_warps)
    return y


@operator(_fake)
def silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    """Halve gate_up [..., 2·I] into gate and up, and return silu(gate) · up [..., I], contiguous, in the same dtype.

    Raises ValueError if the last dimension is odd.
    """
    return _launch(gate_up, "silu") if use_triton(gate_up) else silu_mul_reference(gate_up)


@operator(lambda gate_up, approximate="tanh": _fake(gate_up))
def gelu_mul(gate_up: torch.Tensor, approximate: str = "tanh") -> torch.Tensor:
    """Halve gate_up [..., 2·I] into gate and up, and return gelu(gate) · up [..., I], contiguous, in the same dtype.

    approximate: "tanh", or "none" for the exact form with erf, as in torch. Raises ValueError for another, and if the last
    dimension is odd.
    """
    if approximate not in ("tanh", "none"):
        raise ValueError(f"approximate is {approximate!r}; it must be 'tanh' or 'none'")
    return _launch(gate_up, approximate) if use_triton(gate_up) else gelu_mul_reference(gate_up, approximate)


def silu_mul_cost(num_tokens: int, intermediate_size: int, dtype_bytes: int) -> Cost:
    """Two inputs, one output; about five operations an element, the exponential counted as one."""
    elements = num_tokens * intermediate_size
    return Cost(flops=5 * elements, num_bytes=3 * elements * dtype_bytes)


def gelu_mul_cost(num_tokens: int, intermediate_size: int, dtype_bytes: int) -> Cost:
    """Two inputs, one output; about ten operations an element, the exponential counted as one."""
    elements = num_tokens * intermediate_size
    return Cost(flops=10 * elements, num_bytes=3 * elements * dtype_bytes)


def _specs() -> tuple[KernelSpec, ...]:
    arguments = {"gate_up_ptr": "*bf16", "y_ptr": "*bf16", "num_columns": "i32", "gate_up_stride": "i32"}
    tokens, columns = 8192, 14_336  # the MLP of Llama-3-8B

    def spec(name: str, act: str, cost: Callable[[int, int, int], Cost]) -> KernelSpec:
        shape = f"{tokens:,} × {columns:,}, bf16"
        work = programs_work(shape, cost(tokens, columns, 2), lambda c: tokens * -(-columns // c.blocks["BLOCK"]))
        return KernelSpec(name, _act_mul, arguments, {"ACT": act}, CONFIGS, tuple(arguments), work=work)

    return (
        spec("silu_mul", "silu", silu_mul_cost),
        spec("gelu_mul_tanh", "tanh", gelu_mul_cost),
        spec("gelu_mul_erf", "none", gelu_mul_cost),
    )


SPECS = _specs()
