"""Dequantization equals gguf.quants bit for bit, however the rows are cut and shuffled."""

import warnings

import gguf
import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from infra_lab.models import gguf_dequantize
from infra_lab.models.gguf_dequantize import SUPPORTED_TYPES, dequantize_into


def random_rows(type_name: str, rows: int, columns: int) -> np.ndarray:
    """Any bytes are valid codes and scales, infinite and not-a-number scales included."""
    block_elements, block_bytes = GGML_QUANT_SIZES[GGMLQuantizationType[type_name]]
    shape = (rows, columns // block_elements * block_bytes)
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def reference(packed: np.ndarray, type_name: str) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # infinity minus infinity
        return torch.from_numpy(gguf.quants.dequantize(packed, GGMLQuantizationType[type_name]).copy())


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal bit for bit, signs of zeros too, except that any NaN is as good as another."""
    bits = torch.int32 if a.dtype == torch.float32 else torch.int16
    return bool(((a.view(bits) == b.view(bits)) | (a.isnan() & b.isnan())).all())


@pytest.mark.parametrize("type_name", SUPPORTED_TYPES)
@pytest.mark.parametrize(("rows", "columns"), [(1, 256), (7, 512), (300, 768)])
def test_equal_to_the_library(type_name: str, rows: int, columns: int) -> None:
    packed = random_rows(type_name, rows, columns)
    expected = reference(packed, type_name)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        out = torch.empty(rows, columns, dtype=dtype)
        dequantize_into(out, torch.from_numpy(packed), type_name)
        assert same_bits(out, expected.to(dtype))


@pytest.mark.parametrize("chunk_elements", [1, 512, 1000, 512 * 6, 512 * 7, 1 << 20])
@pytest.mark.parametrize("shuffled", [False, True])
def test_pieces_of_any_size(monkeypatch: pytest.MonkeyPatch, chunk_elements: int, shuffled: bool) -> None:
    monkeypatch.setattr(gguf_dequantize, "_CHUNK_ELEMENTS", chunk_elements)
    packed = random_rows("Q4_1", 7, 512)
    rows = torch.randperm(7, generator=torch.Generator().manual_seed(0)) if shuffled else None
    out = torch.empty(7, 512)
    dequantize_into(out, torch.from_numpy(packed), "Q4_1", rows)
    expected = reference(packed, "Q4_1")
    assert same_bits(out, expected if rows is None else expected[rows])


def test_leaves_torchs_threads_as_they_were() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        dequantize_into(torch.empty(1, 256), torch.from_numpy(random_rows("Q8_0", 1, 256)), "Q8_0")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_the_table_has_the_types_that_the_project_promises() -> None:
    assert set(SUPPORTED_TYPES) == {"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q4_K", "Q6_K"}
