"""Launches, bytes and operations against counts made by hand, against the export, and against the kernels' own costs."""

from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import kernels
from infra_lab.fusion.block import BlockShape, DecoderBlock, block_inputs
from infra_lab.fusion.compare import record_block
from infra_lab.fusion.engine_layer import _costs, engine_state, meta_layer, record_turn
from infra_lab.fusion.graph import graph_nodes
from infra_lab.fusion.launches import Recording, Role, record
from infra_lab.fusion.passes import fuse
from infra_lab.models.config import ModelConfig
from infra_lab.models.rope import RotaryTable
from infra_lab.models.transformer import CausalLM, DecoderLayer
from infra_lab.quantization import DenseLinear
from kernels.activations import silu_mul_cost
from kernels.kv_store import kv_store_cost
from kernels.norms import add_rms_norm_cost, rms_norm_cost
from kernels.paged_decode import paged_decode_cost
from kernels.rotary import apply_rotary_cost
from tests.fusion.layers import DECODE, PREFILL, SMALL, block_with_data


def meta(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(*size, dtype=dtype, device="meta")


def plain(function: Any, *inputs: torch.Tensor, weights: tuple[torch.Tensor, ...] = ()) -> Recording:
    return record(function, inputs, weights=weights, cache=())


def moved(recording: Recording, role: Role) -> list[int]:
    return [kernel.bytes_of(role) for kernel in fuse(recording, "nothing")]


def test_an_operation_reads_its_inputs_and_writes_its_output() -> None:
    recording = plain(lambda x, y: x * y + 1, meta(10, 4), meta(10, 4))
    assert [launch.name for launch in recording.launches] == ["mul_0", "add_0"]
    assert moved(recording, "activation") == [3 * 160, 2 * 160]
    assert [launch.flops for launch in recording.launches] == [40, 40]


def test_views_are_free_and_what_they_leave_out_is_not_read() -> None:
    recording = plain(lambda x: x.view(4, 10).transpose(0, 1)[:3].neg(), meta(40))
    assert recording.num_operations == 4
    assert moved(recording, "activation") == [2 * 3 * 4 * 4]


def test_a_copy_for_a_layout_is_a_launch() -> None:
    assert len(plain(lambda x: x.transpose(0, 1).reshape(-1), meta(4, 10)).launches) == 1
    assert len(plain(lambda x: x.reshape(-1), meta(4, 10)).launches) == 0


def test_an_expanded_dimension_is_read_once() -> None:
    assert moved(plain(lambda x: x.expand(100, 8) + 1, meta(1, 8)), "activation") == [8 * 4 + 800 * 4]


def test_working_in_place_reads_and_writes_what_it_changes() -> None:
    recording = plain(lambda x, y: x.add_(y), meta(8), meta(8))
    assert [launch.name for launch in recording.launches] == ["add__0"]
    assert moved(recording, "activation") == [3 * 32]
    assert moved(plain(lambda x, y: x.copy_(y), meta(8), meta(8)), "activation") == [2 * 32]


def test_a_product_counts_its_weight_apart() -> None:
    weight = meta(5, 3, dtype=torch.bfloat16)
    recording = plain(lambda x: F.linear(x, weight), meta(2, 7, 3, dtype=torch.bfloat16), weights=(weight,))
    assert [launch.kind for launch in recording.launches] == ["product"]
    assert recording.launches[0].flops == 2 * 14 * 3 * 5
    assert moved(recording, "weight") == [5 * 3 * 2]
    assert moved(recording, "activation") == [14 * 3 * 2 + 14 * 5 * 2]


@pytest.mark.parametrize("shape", [DECODE, PREFILL, BlockShape(1, 4, 9)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_exported_graph_has_the_same_launches(shape: BlockShape, dtype: torch.dtype) -> None:
    inputs = block_inputs(SMALL, shape, dtype=dtype)
    nodes = graph_nodes(DecoderBlock(SMALL, dtype=dtype), inputs)
    starting = [node for node in nodes if not node.is_view]
    recording = record_block(SMALL, shape, dtype=dtype)
    assert len(starting) == len(recording.launches)
    made = [shape_ for shape_ in (node.shape for node in starting) if len(shape_) == 4 and shape_[-1] != SMALL.head_dim]
    assert made  # scores, RoPE's halves


def test_meta_tensors_and_real_ones_launch_the_same() -> None:
    block, inputs = block_with_data(BlockShape(2, 3, 5))
    real = record(block, inputs, weights=list(block.parameters()), cache=inputs[4:])
    assert [launch.name for launch in real.launches] == [
        launch.name for launch in record_block(SMALL, BlockShape(2, 3, 5), dtype=torch.float32).launches
    ]


def test_every_weight_is_read_once() -> None:
    for recording in (
        record_block(SMALL, DECODE),
        record_turn(SMALL, DECODE),
        record_turn(SMALL, DECODE, fused_start=True),
    ):
        block = DecoderBlock(SMALL)
        assert sum(moved(recording, "weight")) == sum(weight.nbytes for weight in block.parameters())


def test_the_engines_kernels_cost_what_they_say() -> None:
    rows, hidden, inner, heads, kv_heads, head_dim = 2, 64, 96, 4, 2, 16
    recording = record_turn(SMALL, BlockShape(2, 1, 23))
    by_name = {
        launch.name: kernel for launch, kernel in zip(recording.launches, fuse(recording, "nothing"), strict=True)
    }
    expected = {
        "add_rms_norm_0": add_rms_norm_cost(rows, hidden, 2),
        "silu_mul_0": silu_mul_cost(rows, inner, 2),
        "apply_rotary_0": apply_rotary_cost(rows, heads + kv_heads, head_dim, 2),
        "kv_store_0": kv_store_cost(rows, kv_heads, head_dim, 2),
        "paged_decode_0": paged_decode_cost([24, 24], heads, kv_heads, head_dim, 2),
    }
    assert {name: (by_name[name].flops, by_name[name].num_bytes) for name in expected} == expected
    assert by_name["paged_decode_0"].bytes_of("cache") == 2 * 24 * 2 * kv_heads * head_dim * 2
    assert by_name["add_rms_norm_0"].bytes_of("weight") == hidden * 2


def test_a_turn_is_what_the_model_runs_between_two_layers() -> None:
    """Two layers of the model itself, less one: what a layer adds to a step, launch by launch."""
    for tokens, fused_start in ((1, True), (80, False)):
        shape = BlockShape(1, tokens, 0)
        one, two = (model_launches(SMALL, shape, num_layers) for num_layers in (1, 2))
        turn = [
            launch.name.rpartition("_")[0] for launch in record_turn(SMALL, shape, fused_start=fused_start).launches
        ]
        assert sorted((Counter(two) - Counter(one)).elements()) == sorted(turn)


def model_launches(config: ModelConfig, shape: BlockShape, num_layers: int) -> list[str]:
    """Operations of a whole model with so many layers, on the meta device."""
    dtype, rows = torch.bfloat16, shape.batch * shape.tokens
    state = engine_state(config, shape, meta(rows, config.hidden_size, dtype=dtype), meta(1), "meta")
    rotary = RotaryTable(config, 128, dtype, torch.device("meta"))
    embedding = DenseLinear(meta(config.vocab_size, config.hidden_size, dtype=dtype))
    layers = [meta_layer(config, dtype) for _ in range(num_layers)]
    model = CausalLM(config, embedding, layers, meta(config.hidden_size, dtype=dtype), embedding, rotary)
    costs = {**_costs(config, shape, 2), "rms_norm": lambda *_, **__: rms_norm_cost(rows, config.hidden_size, 2)}
    caches = [state.kv_cache.clone() for _ in range(num_layers)]
    recording = record(lambda: model.forward(state.step, caches), (), weights=(), cache=caches, costs=costs)
    return [launch.name.rpartition("_")[0] for launch in recording.launches]


@pytest.mark.parametrize("shape", [BlockShape(2, 1, 20), BlockShape(2, 5, 0)], ids=str)
@pytest.mark.parametrize("fused_start", [False, True])
def test_the_engines_count_is_what_the_interpreter_launches(
    shape: BlockShape, fused_start: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real Triton launches in the interpreter, and torch's own products and adds beside them."""
    from torch.utils._python_dispatch import TorchDispatchMode
    from triton.runtime.interpreter import GridExecutor

    launched: list[str] = []
    original = GridExecutor.__call__

    def count(self: Any, *args: Any, **kwargs: Any) -> Any:
        launched.append(self.fn.__name__)
        return original(self, *args, **kwargs)

    class Torch(TorchDispatchMode):
        def __torch_dispatch__(self, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if op.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.addmm, torch.ops.aten.add_):
                launched.append(str(op))
            return op(*args, **(kwargs or {}))

    if kernels.launches_on(torch.device("cpu")) or torch.cuda.is_available():
        pytest.skip("counts launches of the interpreter")
    block, inputs = block_with_data(shape)
    layer = DecoderLayer(
        block.input_norm.data, DenseLinear(torch.cat([block.q, block.k, block.v])), DenseLinear(block.o.data),
        block.post_attention_norm.data, DenseLinear(torch.cat([block.gate, block.up])), DenseLinear(block.down.data),
    )  # fmt: skip
    residual = inputs.x.reshape(-1, SMALL.hidden_size)
    state = engine_state(SMALL, shape, residual.clone(), residual, "cpu")
    expected = len(record_turn(SMALL, shape, dtype=torch.float32, fused_start=fused_start).launches)
    with torch.no_grad(), kernels.use("triton"):
        monkeypatch.setattr(GridExecutor, "__call__", count)
        with Torch():
            layer.turn(*state, fuses=fused_start)
    assert len(launched) == expected, launched
