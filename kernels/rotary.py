"""Rotary position embedding (RoPE; Su et al. 2021), in the half-split layout of Llama, Qwen2 and Qwen3.

Element i of a head and element i + D/2 are the two coordinates of one plane, turned by the angle position · freq[i]:

    y[i]       = x[i] · cos - x[i + D/2] · sin
    y[i + D/2] = x[i + D/2] · cos + x[i] · sin

With `sin` stored as (-sin, +sin) over the two halves, both lines are one: y = x · cos + roll(x, D/2) · sin.

    apply_rotary    returns turned heads, all in one tensor
    rotary_         turns query and key where they are, in one launch

A program instance turns BLOCK_HEADS heads of one token, and reads the token's cos and sin once for all of them; the roll costs
nothing, since both halves of a head are in its registers. In place, each element is read once and written once, and nothing is
allocated. It loses in a decode of few tokens, where the launch is all it costs: there it belongs into the kernel before it.
"""

import torch

from kernels.cost import Cost
from kernels.dispatch import use_triton
from kernels.library import operator
from kernels.spec import KernelConfig, KernelSpec
from kernels.triton_api import jit, tl, triton
from kernels.tuned import Tunable, bucket
from kernels.work import Traffic, Work

CONFIGS = tuple(KernelConfig({"BLOCK_HEADS": heads}, warps, 1) for heads, warps in ((8, 2), (16, 4), (8, 4), (4, 1)))


def apply_rotary_reference(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turned copy of heads [T, H, D] by cos and sin [T, 1, D], by torch."""
    return torch.addcmul(heads * cos, heads.roll(heads.shape[-1] // 2, dims=-1), sin)


@jit
def _turn(
    x_ptr, y_ptr, cos_ptr, sin_ptr, first_head, num_heads, x_stride, y_stride,
    HALF: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    """Turn up to BLOCK_HEADS heads of the token that x_ptr and y_ptr point at; strides are those of heads."""
    heads = tl.arange(0, BLOCK_HEADS)[:, None]
    x_ptr += first_head.to(tl.int64) * x_stride
    y_ptr += first_head.to(tl.int64) * y_stride
    planes = tl.arange(0, BLOCK_HALF)[None, :]
    known = planes < HALF
    inside = (first_head + heads < num_heads) & known
    x, y = x_ptr + heads * x_stride + planes, y_ptr + heads * y_stride + planes
    low = tl.load(x, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(x + HALF, mask=inside, other=0.0).to(tl.float32)
    low_cos = tl.load(cos_ptr + planes, mask=known, other=0.0).to(tl.float32)
    high_cos = tl.load(cos_ptr + HALF + planes, mask=known, other=0.0).to(tl.float32)
    low_sin = tl.load(sin_ptr + planes, mask=known, other=0.0).to(tl.float32)
    high_sin = tl.load(sin_ptr + HALF + planes, mask=known, other=0.0).to(tl.float32)
    tl.store(y, (low * low_cos + high * low_sin).to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(y + HALF, (high * high_cos + low * high_sin).to(y_ptr.dtype.element_ty), mask=inside)


@jit
def _rotary(
    query_ptr, key_ptr, turned_query_ptr, turned_key_ptr, cos_ptr, sin_ptr, num_query_heads, num_key_heads,
    query_token_stride, query_head_stride, key_token_stride, key_head_stride,
    turned_query_token_stride, turned_query_head_stride, turned_key_token_stride, turned_key_head_stride,
    cos_stride, sin_stride,
    HALF: tl.constexpr, BLOCK_HEADS: tl.constexpr, BLOCK_HALF: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    first_head = tl.program_id(1) * BLOCK_HEADS
    cos_ptr += token * cos_stride
    sin_ptr += token * sin_stride
    query_blocks = tl.cdiv(num_query_heads, BLOCK_HEADS)
    if tl.program_id(1) < query_blocks:
        _turn(
            query_ptr + token * query_token_stride, turned_query_ptr + token * turned_query_token_stride,
            cos_ptr, sin_ptr, first_head, num_query_heads, query_head_stride, turned_query_head_stride,
            HALF, BLOCK_HEADS, BLOCK_HALF,
        )  # fmt: skip
    else:
        _turn(
            key_ptr + token * key_token_stride, turned_key_ptr + token * turned_key_token_stride,
            cos_ptr, sin_ptr, first_head - query_blocks * BLOCK_HEADS, num_key_heads, key_head_stride,
            turned_key_head_stride, HALF, BLOCK_HEADS, BLOCK_HALF,
        )  # fmt: skip


_TUNED = Tunable("rotary", (_rotary,), CONFIGS)


@operator(lambda heads, cos, sin: torch.empty_like(heads, memory_format=torch.contiguous_format))
def apply_rotary(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn every head by its token's position.

    heads: [T, H, D], query and key heads side by side. cos, sin: [T, 1, D], sin already signed (see above).
    Returns a new contiguous tensor [T, H, D] of the same dtype. Raises ValueError for shapes that do not match.
    """
    if not use_triton(heads, cos, sin):
        return apply_rotary_reference(heads, cos, sin)
    _check(heads, cos, sin)
    heads = heads if heads.stride(-1) == 1 else heads.contiguous()
    turned = torch.empty(heads.shape, dtype=heads.dtype, device=heads.device)
    _launch(heads, heads[:, :0], turned, turned[:, :0], cos, sin)
    return turned


@operator(lambda query, key, cos, sin: None, mutates=("query", "key"))
def rotary_(query: torch.Tensor, key: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Turn query [T, Hq, D] and key [T, Hkv, D] in place, each head by its token's position.

    Both may be views with any strides of tokens and heads, as the parts of one projection are; they must not overlap. cos, sin:
    [T, 1, D], sin already signed (see above). Raises ValueError for shapes that do not match, and where the elements of a head
    are not next to each other.
    """
    if not use_triton(query, key, cos, sin):
        query.copy_(apply_rotary_reference(query, cos, sin))
        key.copy_(apply_rotary_reference(key, cos, sin))
        return
    _check(query, cos, sin)
    _check(key, cos, sin)
    if query.stride(-1) != 1 or key.stride(-1) != 1:
        raise ValueError(f"query has strides {query.stride()}, key {key.stride()}; the last of each must be 1")
    _launch(query, key, query, key, cos, sin)


def _check(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    if heads.dim() != 3 or heads.shape[2] % 2:
        raise ValueError(f"heads are {list(heads.shape)}; they must be [T, H, D] with an even D")
    table = (heads.shape[0], 1, heads.shape[2])
    if cos.shape != table or sin.shape != table:
        raise ValueError(f"cos is {list(cos.shape)} and sin {list(sin.shape)}; both must be {list(table)}")


def _launch(
    query: torch.Tensor,
    key: torch.Tensor,
    turned_query: torch.Tensor,
    turned_key: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
) -> None:
    num_tokens, num_query_heads, head_dim = query.shape
    num_key_heads = key.shape[1]
    shape = {"tokens": bucket(num_tokens), "heads": (num_query_heads, num_key_heads, head_dim), "dtype": query.dtype}
    config = _TUNED.config(query.device, shape, lambda: CONFIGS[0])
    num_blocks = sum(triton.cdiv(heads, config.blocks["BLOCK_HEADS"]) for heads in (num_query_heads, num_key_heads))
    if not (num_tokens and num_blocks and head_dim):
        return
    cos, sin = (table if table.stride(-1) == 1 else table.contiguous() for table in (cos, sin))
    strides = [stride for tensor in (query, key, turned_query, turned_key) for stride in tensor.stride()[:2]]
    _rotary[(num_tokens, num_blocks)](
        query, key, turned_query, turned_key, cos, sin, num_query_heads, num_key_heads, *strides,
        cos.stride(0), sin.stride(0), HALF=head_dim // 2, BLOCK_HALF=triton.next_power_of_2(head_dim // 2),
        **config.blocks, num_warps=config.num_warps,
    )  # fmt: skip


def apply_rotary_cost(num_tokens: int, num_heads: int, head_dim: int, dtype_bytes: int) -> Cost:
    """Read and write each head once; cos and sin are shared by a token's heads. The same for `rotary_`."""
    elements = num_tokens * num_heads * head_dim
    return Cost(flops=3 * elements, num_bytes=(2 * elements + 2 * num_tokens * head_dim) * dtype_bytes)


def _specs() -> tuple[KernelSpec, ...]:
    pointers = ("query_ptr", "key_ptr", "turned_query_ptr", "turned_key_ptr", "cos_ptr", "sin_ptr")
    places = [
        f"{tensor}_{unit}_stride"
        for tensor in ("query", "key", "turned_query", "turned_key")
        for unit in ("token", "head")
    ]
    counts = ("num_query_heads", "num_key_heads", *places, "cos_stride", "sin_stride")
    arguments = {**dict.fromkeys(pointers, "*bf16"), **dict.fromkeys(counts, "i32")}
    aligned = (*pointers, *counts[2:])
    tokens, num_heads, num_kv_heads, head_dim = 16_384, 32, 8, 128
    cost = apply_rotary_cost(tokens, num_heads + num_kv_heads, head_dim, 2)

    def traffic(config: KernelConfig) -> Traffic:
        programs = sum(-(-heads // config.blocks["BLOCK_HEADS"]) for heads in (num_heads, num_kv_heads))  # a token
        again = 2 * head_dim * 2 * (programs - 1)  # each reads the token's cos and sin
        flops = cost.flops * programs * config.blocks["BLOCK_HEADS"] // (num_heads + num_kv_heads)
        return Traffic(tokens * programs, flops, cost.num_bytes + tokens * again)

    work = Work(f"{tokens:,} tokens, {num_heads} + {num_kv_heads} heads of {head_dim}, bf16", cost, traffic)
    return (KernelSpec("rotary", _rotary, arguments, {"HALF": 64, "BLOCK_HALF": 64}, CONFIGS, aligned, work=work),)


SPECS = _specs()
