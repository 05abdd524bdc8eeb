"""The table that sets them side by side."""

import torch

from infra_lab.fusion.compare import as_text, compare
from tests.fusion.layers import PREFILL, SMALL


def test_all_are_in_one_table_and_none_spares_a_weight() -> None:
    rows = compare(SMALL, PREFILL, dtype=torch.float32, with_onnx=True)
    by_name = {row.name: row for row in rows}
    assert list(by_name) == ["eager", "Inductor", "ONNX Runtime", "engine", "engine, fused start", "bound: one kernel"]
    exact = {row.weight_bytes for row in rows if row.name != "ONNX Runtime"}
    assert len(exact) == 1
    assert 0 <= by_name["ONNX Runtime"].weight_bytes - exact.pop() < 1000
    assert by_name["engine, fused start"].launches < by_name["engine"].launches < by_name["Inductor"].launches
    assert by_name["Inductor"].activation_bytes < by_name["eager"].activation_bytes
    lines = as_text(rows).splitlines()
    assert len(lines) == 1 + len(rows)
    assert len({len(line) for line in lines}) == 1
