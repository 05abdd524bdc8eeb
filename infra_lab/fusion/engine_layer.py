"""The same layer as the engine runs it: by the kernels of this project, over a paged cache.

                   add_rms_norm ─▶ qkv ─▶ rotary ─▶ kv_store ─▶ attention ─▶ o ─▶ add_rms_norm ─▶ gate_up ─▶ silu_mul ─▶ down
    many rows           1           1       1          1            1        1        1             1          1         1
    few rows       add, └──────────── fused_qkv ───────────┘        1        1        1             1          1         1

The add that closes a layer is the first half of the norm that opens the next one, so a turn of the engine's loop begins with
it, and ends with what is still to be added. Few rows are those for which `DecoderLayer.can_fuse` holds.
"""

from typing import NamedTuple

import torch

import kernels
from infra_lab.fusion.block import BlockShape
from infra_lab.fusion.launches import Costs, Recording, record
from infra_lab.models.config import ModelConfig
from infra_lab.models.rope import RotaryTable
from infra_lab.models.transformer import DecoderLayer, StepInput
from infra_lab.quantization import DenseLinear
from kernels.activations import silu_mul_cost
from kernels.cost import Cost
from kernels.flash_attention import flash_attention_cost
from kernels.fused_qkv import fused_qkv_cost
from kernels.kv_store import kv_store_cost
from kernels.norms import add_rms_norm_cost
from kernels.paged_decode import paged_decode_cost
from kernels.rotary import apply_rotary_cost

BLOCK_SIZE = 16
"""Tokens a block of the cache."""


class EngineState(NamedTuple):
    """What a layer finds when its turn comes: the arguments of `DecoderLayer.turn`."""

    x: torch.Tensor
    """[R, H], R = batch · tokens: what the layer before leaves to be added."""
    residual: torch.Tensor
    """[R, H]: written in place."""
    config: ModelConfig
    rotary: tuple[torch.Tensor, torch.Tensor]
    """cos and sin, [R, 1, D], sin signed as `kernels.apply_rotary` wants it."""
    kv_cache: torch.Tensor
    """[N, BLOCK_SIZE, 2, Hkv, D]: written in place."""
    step: StepInput


def engine_state(
    config: ModelConfig, shape: BlockShape, x: torch.Tensor, residual: torch.Tensor, device: str | torch.device
) -> EngineState:
    """Lay out equal sequences as a step of the engine does, with an empty cache. x, residual: [R, H]."""
    batch, tokens, past = shape
    width = -(-(past + tokens) // BLOCK_SIZE)  # blocks a sequence
    positions = torch.arange(past, past + tokens).repeat(batch)
    starts = torch.arange(batch).repeat_interleave(tokens) * width * BLOCK_SIZE
    is_decode = tokens == 1
    paged = kernels.PagedBatch(
        num_decodes=batch if is_decode else 0,
        key_lens=torch.full((batch,), past + tokens, dtype=torch.int32, device=device),
        block_tables=torch.arange(batch * width, dtype=torch.int32).view(batch, width).to(device),
        query_starts=(torch.arange(batch + 1, dtype=torch.int32) * tokens).to(device),
        max_key_len=past + tokens if is_decode else 0,
        max_query_len=0 if is_decode else tokens,
    )
    numbers = torch.zeros(batch * tokens, dtype=torch.int64, device=device)
    step = StepInput(numbers, positions.to(device), (starts + positions).to(device), [], numbers, paged)
    cos, sin = RotaryTable(config, past + tokens, x.dtype, torch.device("cpu")).at(positions)
    cache = (batch * width, BLOCK_SIZE, 2, config.num_kv_heads, config.head_dim)
    kv_cache = torch.zeros(cache, dtype=x.dtype, device=device)
    return EngineState(x, residual, config, (cos.to(device), sin.to(device)), kv_cache, step)


def meta_layer(config: ModelConfig, dtype: torch.dtype) -> DecoderLayer:
    """Return a layer of the model's sizes without data."""

    def weight(*size: int) -> torch.Tensor:
        return torch.empty(*size, dtype=dtype, device="meta")

    hidden, inner = config.hidden_size, config.intermediate_size
    return DecoderLayer(
        input_norm=weight(hidden),
        qkv=DenseLinear(weight(config.q_size + 2 * config.kv_size, hidden)),
        o=DenseLinear(weight(hidden, config.q_size)),
        post_attention_norm=weight(hidden),
        gate_up=DenseLinear(weight(2 * inner, hidden)),
        down=DenseLinear(weight(hidden, inner)),
    )


def record_turn(
    config: ModelConfig, shape: BlockShape, *, dtype: torch.dtype = torch.bfloat16, fused_start: bool = False
) -> Recording:
    """Record what one layer launches in the engine. Attention of a long decode that is split over the GPU counts as one."""
    layer, hidden = meta_layer(config, dtype), (shape.batch * shape.tokens, config.hidden_size)
    x, residual = (torch.empty(hidden, dtype=dtype, device="meta") for _ in range(2))
    state = engine_state(config, shape, x, residual, "meta")
    linears = (layer.qkv, layer.o, layer.gate_up, layer.down)
    weights = [linear.weight for linear in linears if isinstance(linear, DenseLinear)]
    return record(
        lambda: layer.turn(*state, fuses=fused_start),
        (),
        weights=[*weights, layer.input_norm, layer.post_attention_norm],
        cache=[state.kv_cache],
        costs=_costs(config, shape, dtype.itemsize),
    )


def _costs(config: ModelConfig, shape: BlockShape, item: int) -> Costs:
    """What the kernels say of themselves, at this shape."""
    rows, hidden, inner = shape.batch * shape.tokens, config.hidden_size, config.intermediate_size
    heads, kv_heads, head_dim = config.num_heads, config.num_kv_heads, config.head_dim
    new, seen = [shape.tokens] * shape.batch, [shape.past + shape.tokens] * shape.batch
    known: dict[str, Cost] = {
        "add_rms_norm": add_rms_norm_cost(rows, hidden, item),
        "apply_rotary": apply_rotary_cost(rows, heads + kv_heads, head_dim, item),
        "kv_store": kv_store_cost(rows, kv_heads, head_dim, item),
        "paged_decode": paged_decode_cost(seen, heads, kv_heads, head_dim, item),
        "paged_flash_attention": flash_attention_cost(new, seen, heads, kv_heads, head_dim, item),
        "silu_mul": silu_mul_cost(rows, inner, item),
        "fused_qkv": fused_qkv_cost(rows, hidden, heads, kv_heads, head_dim, item),
    }
    return {name: lambda *_, cost=cost, **__: cost for name, cost in known.items()}
