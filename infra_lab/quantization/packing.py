"""Values of a few bits, packed without gaps: eight values of b bits are b bytes.

    3 bits, values v0 … v7      byte 0           byte 1           byte 2
                                v2 v2 v1 v1 v1 v0 v0 v0 │ v5 v4 v4 v4 v3 v3 v3 v2 │ v7 v7 v7 v6 v6 v6 v5 v5
                                bit 7 … bit 0

A stream, lowest bit first: value i starts at bit i · b. With 4 bits that is two values a byte, the first in the low half.
"""

from math import gcd, prod

import torch
import torch.nn.functional as F

_CHUNK_VALUES = 1 << 20


def packed_bytes(num_values: int, bits: int) -> int:
    """Return how many bytes so many values take."""
    return -(-num_values * bits // 8)


def pack_bits(values: torch.Tensor, bits: int) -> torch.Tensor:
    """Pack values (integers of any shape, 0 … 2^bits - 1, bits 1 … 8) into uint8 [packed_bytes]; the last bits are zeros.

    Raises ValueError for values that do not fit.
    """
    _check_bits(bits)
    flat = values.reshape(-1)
    if flat.numel() and (int(flat.min()) < 0 or int(flat.max()) >= 1 << bits):
        raise ValueError(f"values run from {int(flat.min())} to {int(flat.max())}; {bits} bits hold 0 to {2**bits - 1}")
    num_values, num_bytes, dtype = _unit(bits)
    value_shifts = bits * torch.arange(num_values, dtype=dtype, device=flat.device)
    byte_shifts = 8 * torch.arange(num_bytes, dtype=dtype, device=flat.device)
    packed = torch.empty(packed_bytes(flat.numel(), bits), dtype=torch.uint8, device=flat.device)
    for start in range(0, flat.numel(), _CHUNK_VALUES):
        piece = flat[start : start + _CHUNK_VALUES].to(dtype)
        units = F.pad(piece, (0, -piece.numel() % num_values)).view(-1, num_values)
        words = (units << value_shifts).sum(dim=1, keepdim=True, dtype=dtype)  # the parts have no bits in common
        data = ((words >> byte_shifts) & 255).to(torch.uint8).view(-1)
        size = packed_bytes(piece.numel(), bits)
        packed[start * bits // 8 :][:size] = data[:size]
    return packed


def unpack_bits(packed: torch.Tensor, bits: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Undo `pack_bits`: uint8 [packed_bytes] → uint8 of `shape`. Raises ValueError if the number of bytes is another."""
    _check_bits(bits)
    num_values = prod(shape)
    if packed.shape != (packed_bytes(num_values, bits),):
        raise ValueError(
            f"packed is {list(packed.shape)}; {num_values} values of {bits} bits are [{packed_bytes(num_values, bits)}]"
        )
    unit_values, unit_bytes, dtype = _unit(bits)
    value_shifts = bits * torch.arange(unit_values, dtype=dtype, device=packed.device)
    byte_shifts = 8 * torch.arange(unit_bytes, dtype=dtype, device=packed.device)
    flat = torch.empty(num_values, dtype=torch.uint8, device=packed.device)
    for start in range(0, num_values, _CHUNK_VALUES):
        count = min(_CHUNK_VALUES, num_values - start)
        data = packed[start * bits // 8 :][: packed_bytes(count, bits)].to(dtype)
        units = F.pad(data, (0, -data.numel() % unit_bytes)).view(-1, unit_bytes)
        words = (units << byte_shifts).sum(dim=1, keepdim=True, dtype=dtype)
        values = ((words >> value_shifts) & ((1 << bits) - 1)).to(torch.uint8).view(-1)
        flat[start : start + count] = values[:count]
    return flat.view(shape)


def _unit(bits: int) -> tuple[int, int, torch.dtype]:
    """The shortest run of whole bytes: (values, bytes, a dtype that holds it)."""
    common = gcd(bits, 8)
    return 8 // common, bits // common, torch.uint8 if bits == common else torch.int64


def _check_bits(bits: int) -> None:
    if not 1 <= bits <= 8:
        raise ValueError(f"{bits} bits; values of 1 to 8 bits can be packed")
