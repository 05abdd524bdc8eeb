"""Packed bits: round trips of any shape, against a bit string built character by character."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from infra_lab.quantization import packing
from infra_lab.quantization.packing import pack_bits, packed_bytes, unpack_bits


@settings(max_examples=150, deadline=None)
@given(data=st.data(), bits=st.integers(1, 8))
def test_a_stream_lowest_bit_first(data: st.DataObject, bits: int) -> None:
    values = data.draw(st.lists(st.integers(0, 2**bits - 1), max_size=70))
    packed = pack_bits(torch.tensor(values, dtype=torch.uint8), bits)
    stream = "".join(f"{value:0{bits}b}"[::-1] for value in values)
    stream += "0" * (-len(stream) % 8)
    assert packed.tolist() == [int(stream[i : i + 8][::-1], 2) for i in range(0, len(stream), 8)]
    assert unpack_bits(packed, bits, (len(values),)).tolist() == values


@settings(max_examples=60, deadline=None)
@given(shape=st.lists(st.integers(0, 9), max_size=4), bits=st.sampled_from([2, 3, 4]), seed=st.integers(0, 99))
def test_any_shape_comes_back(shape: list[int], bits: int, seed: int) -> None:
    values = torch.randint(0, 2**bits, shape, generator=torch.Generator().manual_seed(seed))
    packed = pack_bits(values, bits)
    assert packed.nbytes == packed_bytes(values.numel(), bits)
    assert torch.equal(unpack_bits(packed, bits, tuple(shape)), values.to(torch.uint8))


@pytest.mark.parametrize("bits", [2, 3, 4, 7])
def test_pieces_meet_without_a_gap(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    values = torch.randint(0, 2**bits, (5, 13))
    whole = pack_bits(values, bits)
    monkeypatch.setattr(packing, "_CHUNK_VALUES", 16)
    assert torch.equal(pack_bits(values, bits), whole)
    assert torch.equal(unpack_bits(whole, bits, (5, 13)), values.to(torch.uint8))


def test_a_non_contiguous_matrix_is_packed_in_its_own_order() -> None:
    values = torch.arange(12).view(3, 4).t()
    assert unpack_bits(pack_bits(values, 4), 4, (12,)).tolist() == values.reshape(-1).tolist()


def test_refusals() -> None:
    with pytest.raises(ValueError, match="values run from 0 to 8; 3 bits hold 0 to 7"):
        pack_bits(torch.tensor([0, 8]), 3)
    with pytest.raises(ValueError, match="values run from -1"):
        pack_bits(torch.tensor([-1]), 3)
    with pytest.raises(ValueError, match="9 bits"):
        pack_bits(torch.tensor([0]), 9)
    with pytest.raises(ValueError, match=r"packed is \[2\]; 3 values of 3 bits are \[2\]|are \[3\]"):
        unpack_bits(torch.zeros(2, dtype=torch.uint8), 3, (7,))
