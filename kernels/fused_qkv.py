"""The start of an attention layer in one launch, for decoding: RMSNorm, query-key-value product, RoPE and KV store.

    y              = rms_norm(residual, norm_weight, eps)                                [T, H]
    query|key|value = y · weightᵀ (+ bias)                                               [T, (Hq + 2·Hkv) · D]
    query, key     turned by position (see `rotary`);  key, value → kv_cache at their slots;  query is returned

Unfused these are four launches, and y, the product and the turned heads each go to memory and come back:

    residual ─▶[norm]─▶ y ─▶[product]─▶ qkv ─▶[rope]─▶ q, k ─▶[store]─▶ kv_cache           unfused
    residual ─▶[norm · product · rope · store]──────────────▶ query, kv_cache               fused

The norm takes no pass of its own: its factor 1 / rms is one number a row, so the rows are multiplied first, and the sum of
squares falls out of the same loop. That is why float16 is refused: residual · norm_weight, not yet divided, may overflow it.

A program instance makes BLOCK_PLANES planes of one head: elements i and i + D/2, the two that RoPE turns into each other. So it
has both coordinates in registers, and there are enough instances to keep all multiprocessors reading the weight.

        head h of weight [D, H]         ▒ one instance
        i       = 0 … D/2      ──▶  ░░▒▒░░░░
        i + D/2 = D/2 … D      ──▶  ░░▒▒░░░░

It wins with few rows: the weight has to be read anyway, at 1 row of a Llama-3-8B layer the saved bytes are nothing beside it,
but three launches and their idle multiprocessors go. It loses beyond some 64 rows: each instance multiplies narrow tiles and
reads all of the residual again, while a matrix product with large tiles would be bound by arithmetic. Models that
normalise each head of q and k (Qwen3) need a whole head in one instance; they are not for this kernel.
"""

from inspect import signature as signature_of

import torch

from kernels.cost import Cost
from kernels.dispatch import use_triton
from kernels.kv_store import kv_store_cost, kv_store_reference
from kernels.library import operator
from kernels.norms import rms_norm_cost, rms_norm_reference
from kernels.rotary import apply_rotary_cost, apply_rotary_reference
from kernels.spec import KernelConfig, KernelSpec
from kernels.tiles import FLOAT32
from kernels.triton_api import is_interpreting, jit, tl, triton
from kernels.tuned import Tunable, bucket
from kernels.work import Traffic, Work

CONFIGS = tuple(
    KernelConfig({"BLOCK_ROWS": 16, "BLOCK_PLANES": planes, "BLOCK_K": depth}, num_warps, num_stages)
    for planes, depth, num_warps, num_stages in (
        (16, 128, 4, 4), (16, 256, 4, 3), (16, 64, 4, 6), (32, 128, 4, 4), (32, 64, 4, 5), (8, 256, 4, 4),
    )
)  # fmt: skip
FLOAT32_CONFIG = KernelConfig({"BLOCK_ROWS": 16, "BLOCK_PLANES": 16, "BLOCK_K": 64}, num_warps=4, num_stages=3)
MAX_BLOCK_ROWS = 64


def fused_qkv_reference(
    residual: torch.Tensor, norm_weight: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
    cos: torch.Tensor, sin: torch.Tensor, kv_cache: torch.Tensor, slots: torch.Tensor, eps: float,
) -> torch.Tensor:  # fmt: skip
    """Do what `fused_qkv` does, one operation after the other."""
    num_kv_heads, head_dim = kv_cache.shape[3:]
    y = rms_norm_reference(residual, norm_weight, eps)
    heads = torch.nn.functional.linear(y, weight, bias).view(
        len(y), weight.shape[0] // head_dim, head_dim
    )  # [T, Hq + 2·Hkv, D]
    turned = apply_rotary_reference(heads[:, :-num_kv_heads], cos, sin)
    kv_store_reference(kv_cache, turned[:, -num_kv_heads:], heads[:, -num_kv_heads:], slots)
    return turned[:, :-num_kv_heads].contiguous()


@jit(varies=("num_rows", "slots_ptr"))
def _fused_qkv(
    residual_ptr, norm_weight_ptr, weight_ptr, bias_ptr, cos_ptr, sin_ptr, slots_ptr, query_ptr, cache_ptr,
    num_rows, hidden_size, num_heads, num_kv_heads, residual_stride, weight_stride, eps,
    HEAD_DIM: tl.constexpr, HAS_BIAS: tl.constexpr, IN_FP32: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_ROWS: tl.constexpr, BLOCK_PLANES: tl.constexpr, BLOCK_K: tl.constexpr,
):  # fmt: skip
    HALF: tl.constexpr = HEAD_DIM // 2
    head, rows = tl.program_id(0), tl.program_id(2) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    planes = tl.program_id(1) * BLOCK_PLANES + tl.arange(0, BLOCK_PLANES)
    is_row, is_plane, depth = rows < num_rows, planes < HALF, tl.arange(0, BLOCK_K)
    residual_rows = residual_ptr + rows.to(tl.int64)[:, None] * residual_stride
    low_rows = weight_ptr + (head * HEAD_DIM + planes).to(tl.int64)[None, :] * weight_stride
    high_rows = low_rows + HALF * weight_stride
    low = tl.zeros((BLOCK_ROWS, BLOCK_PLANES), tl.float32)
    high = tl.zeros((BLOCK_ROWS, BLOCK_PLANES), tl.float32)
    squares = tl.zeros((BLOCK_ROWS,), tl.float32)
    for start in range(0, hidden_size, BLOCK_K):
        k = start + depth
        is_k = k < hidden_size
        x = tl.load(residual_rows + k[None, :], mask=is_row[:, None] & is_k[None, :], other=0.0).to(tl.float32)
        norm = tl.load(norm_weight_ptr + k, mask=is_k, other=0.0).to(tl.float32)
        is_weight = is_k[:, None] & is_plane[None, :]
        low_weight = tl.load(low_rows + k[:, None], mask=is_weight, other=0.0)  # [K, planes]
        high_weight = tl.load(high_rows + k[:, None], mask=is_weight, other=0.0)
        squares += tl.sum(x * x, axis=1)
        scaled = (x * norm[None, :]).to(low_weight.dtype)
        if IN_FP32:  # numpy, which interprets, has no bfloat16 to multiply
            scaled, low_weight, high_weight = (
                scaled.to(tl.float32),
                low_weight.to(tl.float32),
                high_weight.to(tl.float32),
            )
        low = tl.dot(scaled, low_weight, low, input_precision=PRECISION)
        high = tl.dot(scaled, high_weight, high, input_precision=PRECISION)
    inverse = tl.rsqrt(squares / hidden_size + eps)[:, None]
    low, high = low * inverse, high * inverse
    if HAS_BIAS:
        bias_ptr += head * HEAD_DIM + planes
        low += tl.load(bias_ptr, mask=is_plane, other=0.0).to(tl.float32)[None, :]
        high += tl.load(bias_ptr + HALF, mask=is_plane, other=0.0).to(tl.float32)[None, :]
    inside = is_row[:, None] & is_plane[None, :]
    is_value = head >= num_heads + num_kv_heads
    if not is_value:
        angles = rows[:, None] * HEAD_DIM + planes[None, :]
        low_cos, low_sin = tl.load(cos_ptr + angles, inside, 0.0), tl.load(sin_ptr + angles, inside, 0.0)
        high_cos, high_sin = (
            tl.load(cos_ptr + angles + HALF, inside, 0.0),
            tl.load(sin_ptr + angles + HALF, inside, 0.0),
        )
        turned = low * low_cos.to(tl.float32) + high * low_sin.to(tl.float32)  # sin is signed by halves
        high = high * high_cos.to(tl.float32) + low * high_sin.to(tl.float32)
        low = turned
    if head < num_heads:
        place = query_ptr + (rows.to(tl.int64)[:, None] * num_heads + head) * HEAD_DIM + planes[None, :]
        tl.store(place, low.to(query_ptr.dtype.element_ty), mask=inside)
        tl.store(place + HALF, high.to(query_ptr.dtype.element_ty), mask=inside)
    else:
        slots = tl.load(slots_ptr + rows, mask=is_row, other=-1)
        part = is_value.to(tl.int32)
        kv_head = head - num_heads - part * num_kv_heads
        place = cache_ptr + ((slots * 2 + part)[:, None] * num_kv_heads + kv_head) * HEAD_DIM + planes[None, :]
        stored = inside & (slots >= 0)[:, None]
        tl.store(place, low.to(cache_ptr.dtype.element_ty), mask=stored)
        tl.store(place + HALF, high.to(cache_ptr.dtype.element_ty), mask=stored)


_TUNED = Tunable("fused_qkv", (_fused_qkv,), CONFIGS)


def _num_heads(weight: torch.Tensor, kv_cache: torch.Tensor) -> int:
    num_kv_heads, head_dim = kv_cache.shape[3:]
    return weight.shape[0] // head_dim - 2 * num_kv_heads


def _fake(
    residual: torch.Tensor, norm_weight: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
    cos: torch.Tensor, sin: torch.Tensor, kv_cache: torch.Tensor, slots: torch.Tensor, eps: float,
) -> torch.Tensor:  # fmt: skip
    return residual.new_empty(residual.shape[0], _num_heads(weight, kv_cache), kv_cache.shape[4])


@operator(_fake, mutates=("kv_cache",))
def fused_qkv(
    residual: torch.Tensor, norm_weight: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None,
    cos: torch.Tensor, sin: torch.Tensor, kv_cache: torch.Tensor, slots: torch.Tensor, eps: float,
) -> torch.Tensor:  # fmt: skip
    """Return the turned queries [T, Hq, D] of residual [T, H], and write its keys and values into kv_cache, in place.

    norm_weight [H]; weight [(Hq + 2·Hkv) · D, H], heads of q, k, v behind each other; bias of as many rows, or None; cos and
    sin [T, 1, D], sin signed as in `rotary`; kv_cache [N, B, 2, Hkv, D]; slots [T] int64, block · B + offset, -1 for a row of
    padding, which is not stored. All floats are of one dtype, bfloat16 or float32. Raises ValueError for anything else.
    """
    tensors = [residual, norm_weight, weight, cos, sin, kv_cache] + ([] if bias is None else [bias])
    if not use_triton(*tensors, slots):
        return fused_qkv_reference(residual, norm_weight, weight, bias, cos, sin, kv_cache, slots, eps)
    _check(tensors, slots)
    num_rows, head_dim = residual.shape[0], kv_cache.shape[4]
    num_heads, num_kv_heads = _num_heads(weight, kv_cache), kv_cache.shape[3]
    query = torch.empty((num_rows, num_heads, head_dim), dtype=residual.dtype, device=residual.device)
    if not num_rows:
        return query
    residual, weight = (x if x.stride(1) == 1 else x.contiguous() for x in (residual, weight))
    heads = (num_heads, num_kv_heads, head_dim)
    shape = {"rows": bucket(num_rows), "hidden": residual.shape[1], "heads": heads, "dtype": residual.dtype}
    default = CONFIGS[0] if residual.element_size() == 2 else FLOAT32_CONFIG
    config = _TUNED.config(residual.device, shape, lambda: default)
    block_rows = min(max(triton.next_power_of_2(num_rows), config.blocks["BLOCK_ROWS"]), MAX_BLOCK_ROWS)
    blocks = {**config.blocks, "BLOCK_ROWS": block_rows}
    grid = (
        num_heads + 2 * num_kv_heads,
        triton.cdiv(head_dim // 2, blocks["BLOCK_PLANES"]),
        triton.cdiv(num_rows, block_rows),
    )
    _fused_qkv[grid](
        residual, norm_weight.contiguous(), weight, (weight if bias is None else bias).contiguous(), cos.contiguous(),
        sin.contiguous(), slots.contiguous(), query, kv_cache, num_rows, residual.shape[1], num_heads, num_kv_heads,
        residual.stride(0), weight.stride(0), eps,
        HEAD_DIM=head_dim, HAS_BIAS=bias is not None, IN_FP32=is_interpreting(), PRECISION=FLOAT32, **blocks,
        num_warps=config.num_warps, num_stages=config.num_stages,
    )  # fmt: skip
    return query


def _check(tensors: list[torch.Tensor], slots: torch.Tensor) -> None:
    residual, norm_weight, weight, cos, sin, kv_cache = tensors[:6]
    dtypes = {tensor.dtype for tensor in tensors}
    if len(dtypes) > 1 or not dtypes <= {torch.bfloat16, torch.float32}:
        raise ValueError(f"the tensors are {dtypes}; all must be bfloat16, or all float32 (float16 might overflow)")
    if residual.dim() != 2 or kv_cache.dim() != 5 or kv_cache.shape[2] != 2 or kv_cache.shape[4] % 2:
        raise ValueError(
            f"residual is {list(residual.shape)} and kv_cache {list(kv_cache.shape)}; they must be [T, H] and "
            "[N, B, 2, Hkv, D] with an even D"
        )
    if not kv_cache.is_contiguous():
        raise ValueError(f"kv_cache has strides {kv_cache.stride()}; it must be contiguous, for it is written in place")
    num_rows, hidden_size = residual.shape
    num_kv_heads, head_dim = kv_cache.shape[3:]
    width = weight.shape[0]
    if width % head_dim or width <= 2 * num_kv_heads * head_dim:
        raise ValueError(
            f"weight has {width} rows; they must be (Hq + 2·{num_kv_heads}) · {head_dim}, with Hq at least 1"
        )
    expected = {
        "norm_weight": (norm_weight, (hidden_size,)),
        "weight": (weight, (width, hidden_size)),
        "cos": (cos, (num_rows, 1, head_dim)),
        "sin": (sin, (num_rows, 1, head_dim)),
        "slots": (slots, (num_rows,)),
        "bias": (tensors[6] if len(tensors) > 6 else weight[:, 0], (width,)),
    }
    for name, (tensor, shape) in expected.items():
        if tensor.shape != shape:
            raise ValueError(f"{name} is {list(tensor.shape)}; it must be {list(shape)}")
    if slots.dtype is not torch.int64:
        raise ValueError(f"slots are {slots.dtype}; they must be torch.int64")


def fused_qkv_cost(
    num_tokens: int, hidden_size: int, num_heads: int, num_kv_heads: int, head_dim: int, dtype_bytes: int
) -> Cost:
    """Read residual, weights and angles; write the query heads, and the new keys and values once, in the cache."""
    width = (num_heads + 2 * num_kv_heads) * head_dim
    turned = num_tokens * (num_heads + num_kv_heads) * head_dim
    moved = num_tokens * hidden_size + hidden_size * (1 + width) + num_tokens * (width + 2 * head_dim)
    flops = 4 * num_tokens * hidden_size + 2 * num_tokens * hidden_size * width + 3 * turned
    return Cost(flops, moved * dtype_bytes + 8 * num_tokens)


def unfused_qkv_cost(
    num_tokens: int, hidden_size: int, num_heads: int, num_kv_heads: int, head_dim: int, dtype_bytes: int
) -> Cost:
    """The sum of four launches: y, the product, and the turned keys and values are written and read in between."""
    width = (num_heads + 2 * num_kv_heads) * head_dim
    parts = (
        rms_norm_cost(num_tokens, hidden_size, dtype_bytes),
        Cost(
            2 * num_tokens * hidden_size * width,
            (num_tokens * (hidden_size + width) + hidden_size * width) * dtype_bytes,
        ),
        apply_rotary_cost(num_tokens, num_heads + num_kv_heads, head_dim, dtype_bytes),
        kv_store_cost(num_tokens, num_kv_heads, head_dim, dtype_bytes),
    )
    return Cost(sum(part.flops for part in parts), sum(part.num_bytes for part in parts))


def _specs() -> tuple[KernelSpec, ...]:
    inputs = dict.fromkeys(("residual_ptr", "norm_weight_ptr", "weight_ptr", "bias_ptr", "cos_ptr", "sin_ptr"), "*bf16")
    outputs = {"slots_ptr": "*i64", "query_ptr": "*bf16", "cache_ptr": "*bf16"}
    sizes = {"hidden_size": "i32", "residual_stride": "i32", "weight_stride": "i32"}
    counts = {"num_rows": "i32", "num_heads": "i32", "num_kv_heads": "i32"}
    constants = {"HEAD_DIM": 128, "HAS_BIAS": False, "IN_FP32": False, "PRECISION": FLOAT32}
    signature = {**inputs, **outputs, **sizes, **counts, "eps": "fp32"}
    ordered = {name: signature[name] for name in signature_of(_fused_qkv.fn).parameters if name in signature}
    aligned = (*inputs, *outputs, *sizes)
    rows, hidden, num_heads, num_kv_heads, head_dim = 16, 4096, 32, 8, 128  # Llama-3-8B
    cost = fused_qkv_cost(rows, hidden, num_heads, num_kv_heads, head_dim, 2)

    def traffic(config: KernelConfig) -> Traffic:
        block_rows, planes, depth = (config.blocks[name] for name in ("BLOCK_ROWS", "BLOCK_PLANES", "BLOCK_K"))
        row_blocks, programs_a_head = -(-rows // block_rows), -(-head_dim // 2 // planes)
        programs = (num_heads + 2 * num_kv_heads) * programs_a_head * row_blocks
        flops = cost.flops * row_blocks * block_rows * programs_a_head * planes // (rows * head_dim // 2)
        again = 2 * hidden * (1 + min(rows, block_rows))  # each reads the norm's weight and its rows of the residual
        return Traffic(programs, flops, cost.num_bytes + (programs - 1) * again, -(-hidden // depth))

    work = Work(f"{rows} × {hidden}, {num_heads} + 2 × {num_kv_heads} heads of {head_dim}, bf16", cost, traffic, "bf16")
    return (KernelSpec("fused_qkv", _fused_qkv, ordered, constants, CONFIGS, aligned, True, work=work),)


SPECS = _specs()
