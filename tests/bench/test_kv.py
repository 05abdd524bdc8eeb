"""The KV bench compares two layouts on the same requests."""

from infra_lab.bench import kv
from infra_lab.simulator.workload import lognormal_shapes


def test_contiguous_holds_a_piece_a_request_and_paged_holds_more() -> None:
    trace = lognormal_shapes(8, median_prompt=60, median_output=12, sigma=0.4, max_total=200, seed=1)
    _, contiguous_use, contiguous_most = kv._serve("tiny", kv.CONTEXT, trace)
    speed, paged_use, paged_most = kv._serve("tiny", kv.BLOCK_SIZE, trace)
    assert contiguous_most == 4  # 4,096 tokens / 1,024
    assert paged_most == 8
    assert contiguous_use < 0.2 < 0.8 < paged_use <= 1.0
    assert speed > 0
