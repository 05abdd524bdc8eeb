"""GGUF blocks as integers: the gguf library's numbers, from the library's own quantizer and from random bytes."""

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from infra_lab.models.gguf_blocks import INTEGER_TYPES, grouped_from_blocks
from tests.models.test_gguf_dequantize import random_rows, reference

BITS = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}


def finite_rows(type_name: str, rows: int = 40, columns: int = 96) -> np.ndarray:
    """Random codes, with scales and minima of both signs, zeros and subnormals among them."""
    packed = random_rows(type_name, rows, columns)
    size = {"Q4_0": 18, "Q4_1": 20, "Q8_0": 34}[type_name]
    blocks = packed.reshape(rows, -1, size)
    generator = np.random.default_rng(1)
    for start in (0, 2) if type_name == "Q4_1" else (0,):
        scales = generator.normal(size=blocks.shape[:2]).astype(np.float16)
        scales[0, 0], scales[1, 1], scales[2, 2] = 0.0, 6e-8, -0.0
        blocks[..., start : start + 2] = scales[..., None].view(np.uint8)
    return packed


@pytest.mark.parametrize("type_name", INTEGER_TYPES)
def test_the_same_numbers(type_name: str) -> None:
    packed = finite_rows(type_name)
    weight = grouped_from_blocks(torch.from_numpy(packed), type_name)
    expected = reference(packed, type_name).double()
    assert (weight.bits, weight.group_size, weight.q.dtype) == (BITS[type_name], 32, torch.uint8)
    largest = expected.abs().view(40, 3, 32).amax(2, keepdim=True).expand(-1, -1, 32).reshape(40, 96)
    assert ((weight.dequantize(torch.float64) - expected).abs() <= 2.0**-21 * largest).all()
    if type_name != "Q8_0":
        assert (weight.scale > 0).all()


@pytest.mark.parametrize("type_name", INTEGER_TYPES)
def test_what_the_librarys_quantizer_writes(type_name: str) -> None:
    values = np.random.default_rng(0).normal(size=(16, 64)).astype(np.float32)
    values[3, 32:], values[4, :32] = 0.0, 0.7
    packed = gguf.quants.quantize(values, GGMLQuantizationType[type_name])
    weight = grouped_from_blocks(torch.from_numpy(packed), type_name)
    torch.testing.assert_close(weight.dequantize(), reference(packed, type_name), rtol=1e-6, atol=1e-6)


def test_rows_change_places_before_they_are_unpacked() -> None:
    packed = torch.from_numpy(finite_rows("Q4_1", rows=6))
    rows = torch.tensor([4, 0, 5, 1, 2, 3])
    shuffled = grouped_from_blocks(packed, "Q4_1", rows)
    assert torch.equal(shuffled.dequantize(), grouped_from_blocks(packed, "Q4_1").dequantize()[rows])
