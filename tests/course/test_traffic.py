"""The formulas against what was seen: torch's operations as they are dispatched, a kernel's loads as it runs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import kernels
from infra_lab.course.traffic import CountTraffic, naive_attention_cost, tiled_attention_cost
from kernels.flash_attention import flash_attention, flash_attention_cost, launch_config
from kernels.matmul import launch_matmul
from kernels.matmul_plan import MatmulPlan
from kernels.spec import KernelConfig
from kernels.trace import record
from kernels.work import product_traffic

interpreted = pytest.mark.skipif(torch.cuda.is_available(), reason="loads are seen in Triton's interpreter only")


def test_each_operation_reads_its_inputs_and_writes_its_result() -> None:
    a, b = torch.ones(3, 5), torch.ones(5, 7, dtype=torch.float32)
    with CountTraffic() as traffic:
        (a @ b).t().relu()
    assert traffic.operations == [("mm", 4 * (15 + 35), 4 * 21), ("relu", 4 * 21, 4 * 21)], "the transpose is a view"
    assert traffic.total_bytes == 4 * (15 + 35 + 21 + 21 + 21)


def test_allocations_move_nothing_and_copies_do() -> None:
    with CountTraffic() as traffic:
        torch.empty(100).copy_(torch.empty(100))
    assert traffic.operations == [("copy_", 800, 400)], "torch's schema has the target among the inputs"


@pytest.mark.parametrize(
    ("tokens", "heads", "dim", "dtype"), [(8192, 1, 128, torch.bfloat16), (70, 3, 16, torch.float32)]
)
def test_naive_attention_by_formula_and_by_count(tokens: int, heads: int, dim: int, dtype: torch.dtype) -> None:
    query, key, value = torch.empty(3, heads, tokens, dim, dtype=dtype, device="meta")
    with CountTraffic() as traffic, FlopCounterMode(display=False) as flops:
        (query @ key.transpose(1, 2)).softmax(-1) @ value
    cost = naive_attention_cost(tokens, heads, dim, dtype.itemsize)
    assert (flops.get_total_flops(), traffic.total_bytes) == cost
    assert [moved.name for moved in traffic.operations] == ["bmm", "_softmax", "bmm"]


def seen_bytes(tensors: dict[str, torch.Tensor], run) -> int:
    """All that a kernel loads from these tensors and all that it stores, in float32."""
    with kernels.use("triton"), record(tensors) as accesses:
        run()
    mine = [access for access in accesses if access.tensor or access.kind == "store"]
    return 4 * sum(len(access.offsets) for access in mine)


@interpreted
@pytest.mark.parametrize(("M", "N", "K"), [(64, 64, 32), (70, 50, 40), (20, 100, 16)])
@pytest.mark.parametrize("tile", [(16, 16), (32, 16), (16, 64)])
def test_a_tiled_product_loads_what_the_formula_says(M: int, N: int, K: int, tile: tuple[int, int]) -> None:
    a, b = torch.ones(M, K), torch.ones(K, N)
    config = KernelConfig({"BLOCK_M": tile[0], "BLOCK_N": tile[1], "BLOCK_K": 16, "GROUP": 2})
    seen = seen_bytes({"a": a, "b": b}, lambda: launch_matmul(MatmulPlan("plain", config), a, b))
    assert seen == product_traffic(config, M, N, K, (4, 4, 4)).num_bytes


@interpreted
@pytest.mark.parametrize("tokens", [32, 64, 70])
def test_tiled_attention_loads_what_the_formula_says(tokens: int) -> None:
    query, key, value = torch.randn(3, tokens, 1, 16)
    starts = torch.tensor([0, tokens], dtype=torch.int32)
    seen = seen_bytes(
        {"query": query, "key": key, "value": value},
        lambda: flash_attention(query, key, value, starts, starts, tokens, causal=False),
    )
    assert (
        seen
        == tiled_attention_cost(tokens, 1, 16, 4, block=launch_config(tokens, 4, 0, False).blocks["BLOCK_M"]).num_bytes
    )
    least = flash_attention_cost([tokens], [tokens], 1, 1, 16, 4, causal=False)
    assert tiled_attention_cost(tokens, 1, 16, 4, block=tokens) == least
