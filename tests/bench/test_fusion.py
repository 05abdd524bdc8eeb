"""The fusion suite counts and times one layer; no speed is judged here."""

import pytest
import torch

from infra_lab.bench import fusion
from infra_lab.errors import ModelNotFoundError
from infra_lab.fusion.block import BlockShape
from infra_lab.fusion.compare import compare

SHAPE = BlockShape(1, 1, 15)


def test_without_a_compiler_the_others_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion, "can_compile", lambda: False)
    ways = fusion.ways_of(*fusion.first_layer("tiny", "cpu"), SHAPE)
    assert list(ways) == ["eager", "ONNX Runtime"]
    with torch.no_grad():
        eager, theirs = ways["eager"]()[0], torch.from_numpy(ways["ONNX Runtime"]()[0])
    torch.testing.assert_close(theirs, eager, atol=1e-4, rtol=1e-3)
    (row,) = fusion.time_rows(ways, "decode", SHAPE, repeats=3)
    assert row.name == "decode: ONNX Runtime"
    assert row.value > 0
    assert row.ratio == pytest.approx(row.value / row.peer_value)
    assert "15 cached" in row.note


def test_every_count_stands_beside_eager() -> None:
    config, _, _ = fusion.first_layer("tiny", "cpu")
    traffic = compare(config, SHAPE, dtype=torch.float32, with_onnx=True)
    rows = fusion.count_rows(traffic, "decode")
    assert len(rows) == 2 * (len(traffic) - 1)
    launches = {row.name: row.value for row in rows if row.unit == "launches"}
    assert launches["decode: engine"] == 10
    assert {row.peer for row in rows} == {"eager"}
    assert all(row.ratio < 1 for row in rows if "engine" in row.name)


def test_a_model_that_was_not_fetched_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusion, "cached_model", lambda name: None)
    with pytest.raises(ModelNotFoundError, match="infra-lab fetch smollm2-135m"):
        fusion.first_layer("smollm2-135m", "cpu")
