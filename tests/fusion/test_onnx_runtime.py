"""ONNX Runtime's levels: the same results, fewer nodes, and patterns that depend on their spelling."""

import socket

import pytest
import torch

from infra_lab.errors import MissingExtraError
from infra_lab.fusion.block import BlockShape, NormSpelling
from infra_lab.fusion.onnx_runtime import ONNX_LEVELS, OnnxGraph, OnnxModule
from tests.fusion.layers import DECODE, block_with_data


@pytest.fixture(scope="module")
def graphs() -> dict[tuple[NormSpelling, str], OnnxGraph]:
    """Both spellings at every level, with the network cut off."""
    found: dict[tuple[NormSpelling, str], OnnxGraph] = {}
    with pytest.MonkeyPatch.context() as patch:

        def refuse(*_: object, **__: object) -> None:
            raise AssertionError("somebody wants the network")

        patch.setattr(socket.socket, "connect", refuse)
        patch.setattr(socket, "getaddrinfo", refuse)
        for norm in ("rsqrt", "divide"):
            block, inputs = block_with_data(DECODE, norm=norm)
            module = OnnxModule(block, inputs)
            found |= {(norm, level): module.optimized(level) for level in ONNX_LEVELS}
    return found


def test_every_level_computes_what_torch_computes(graphs: dict[tuple[NormSpelling, str], OnnxGraph]) -> None:
    for (norm, level), graph in graphs.items():
        block, inputs = block_with_data(DECODE, norm=norm)
        with torch.no_grad():
            for got, expected in zip(graph.outputs, block(*inputs), strict=True):
                torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-4, msg=f"{norm}, {level}")


def test_a_level_has_no_more_nodes_than_the_one_before(graphs: dict[tuple[NormSpelling, str], OnnxGraph]) -> None:
    for norm in ("rsqrt", "divide"):
        counts = [graphs[norm, level].num_nodes for level in ("off", "basic", "extended", "all")]
        assert counts == sorted(counts, reverse=True)
        assert counts[0] > counts[1] > counts[2]


def test_a_norm_is_recognised_in_one_spelling_only(graphs: dict[tuple[NormSpelling, str], OnnxGraph]) -> None:
    norm = "SimplifiedLayerNormalization"
    assert graphs["divide", "extended"].operators.get(norm) == 2
    assert norm not in graphs["rsqrt", "extended"].operators
    assert "Reciprocal" in graphs["rsqrt", "extended"].operators


def test_the_tool_for_transformers_fuses_the_add_too(graphs: dict[tuple[NormSpelling, str], OnnxGraph]) -> None:
    for norm in ("rsqrt", "divide"):
        assert graphs[norm, "transformers"].operators.get("SkipSimplifiedLayerNormalization") == 1


def test_the_profile_has_every_weight(graphs: dict[tuple[NormSpelling, str], OnnxGraph]) -> None:
    block, _ = block_with_data(DECODE)
    weights = sum(weight.nbytes for weight in block.parameters())
    read = sum(kernel.weight_bytes for kernel in graphs["rsqrt", "all"].kernels)
    assert weights <= read < weights + 1000  # and some constants, which are parameters to it too


def test_nodes_that_only_rename_are_not_counted_as_started(graphs: dict[tuple[NormSpelling, str], OnnxGraph]) -> None:
    graph = graphs["rsqrt", "all"]
    assert graph.num_nodes - len(graph.kernels) == graph.operators["Reshape"] + graph.operators["Unsqueeze"]


def test_a_session_runs_on_its_own() -> None:
    block, inputs = block_with_data(BlockShape(2, 3, 4))
    with torch.no_grad():
        expected = block(*inputs)
    outputs = OnnxModule(block, inputs).session("all")()
    torch.testing.assert_close(torch.from_numpy(outputs[0]), expected[0], atol=1e-5, rtol=1e-4)


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    block, inputs = block_with_data(DECODE)
    with pytest.raises(MissingExtraError, match=r"infra-lab\[fusion\]"):
        OnnxModule(block, inputs)
