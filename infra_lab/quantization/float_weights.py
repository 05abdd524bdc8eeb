"""Weights in small floats: FP8 with a scale a row, and four-bit codes of a table with a scale a block (NF4, MXFP4, NVFP4)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch

from infra_lab.errors import ConfigError
from infra_lab.quantization.formats.block_fp4 import MX_BLOCK, NV_BLOCK, e8m0_values, quantize_mxfp4, quantize_nvfp4
from infra_lab.quantization.formats.nf4 import BLOCK_SIZE as NF4_BLOCK
from infra_lab.quantization.formats.nf4 import nf4_levels, quantize_nf4
from infra_lab.quantization.formats.small_floats import E2M1, E4M3
from infra_lab.quantization.grouped import check_group_size, check_weight, effective_group_size
from infra_lab.quantization.packing import pack_bits, unpack_bits


@dataclass(frozen=True, slots=True)
class Float8Weight:
    """W[o, i] = scale[o] · q[o, i], q in FP8 E4M3."""

    q: torch.Tensor
    """[out, in] float8_e4m3fn."""
    scale: torch.Tensor
    """[out] float32."""

    @property
    def shape(self) -> torch.Size:
        """[out, in]."""
        return self.q.shape

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.q.nbytes + self.scale.nbytes

    def dequantize(self, dtype: torch.dtype = torch.float32, rows: slice = slice(None)) -> torch.Tensor:
        """Return rows of the weight, [rows, in]."""
        return (e4m3_values(self.q[rows]) * self.scale[rows].unsqueeze(1)).to(dtype)


def quantize_fp8_weight(w: torch.Tensor, name: str = "the weight") -> Float8Weight:
    """Bring each row's largest magnitude to 448 and round; raises ConfigError, naming the matrix, for NaN and infinities."""
    check_weight(w, 8, w.shape[1], name)
    largest = w.abs().amax(dim=1).float()
    scale = torch.where(largest > 0, largest / E4M3.largest, 1.0)
    return Float8Weight(
        (w.float() / scale.unsqueeze(1)).clamp_(-E4M3.largest, E4M3.largest).to(torch.float8_e4m3fn), scale
    )


def e4m3_values(q: torch.Tensor) -> torch.Tensor:
    """Widen FP8 to float32: on a CPU by a table of 256, which is four times as fast as torch's conversion."""
    if q.is_cuda:
        return q.float()
    codes = q.view(torch.uint8).reshape(-1).to(torch.int32)
    return torch.index_select(_e4m3_table(), 0, codes).view(q.shape)


@cache
def _e4m3_table() -> torch.Tensor:
    return E4M3.decode(torch.arange(256))


@dataclass(frozen=True, slots=True)
class TableWeight:
    """Four-bit codes of one of sixteen values, times a block's scale, times the tensor's: see `formats`."""

    format: str
    """"nf4", "mxfp4" or "nvfp4"."""
    packed: torch.Tensor
    """[out, in / 2] uint8, an even input's code in the low half."""
    scale: torch.Tensor
    """[out, blocks]: float32 (nf4), uint8 E8M0 (mxfp4), uint8 E4M3 (nvfp4)."""
    tensor_scale: torch.Tensor
    """[] float32; 1 but for nvfp4."""

    @property
    def shape(self) -> torch.Size:
        """[out, in]."""
        return torch.Size((self.packed.shape[0], 2 * self.packed.shape[1]))

    @property
    def nbytes(self) -> int:
        """Bytes of codes and scales."""
        return self.packed.nbytes + self.scale.nbytes + self.tensor_scale.nbytes

    def dequantize(self, dtype: torch.dtype = torch.float32, rows: slice = slice(None)) -> torch.Tensor:
        """Return rows of the weight, [rows, in]."""
        packed, scale = self.packed[rows], _SCALES[self.format](self.scale[rows])
        pairs = _pairs(self.format, packed.device)  # a byte at a time: two values a look-up
        values = torch.nn.functional.embedding(packed.to(torch.int32), pairs).view(*scale.shape, -1)
        return values.mul_((scale * self.tensor_scale).unsqueeze(2)).view(packed.shape[0], -1).to(dtype)


_BLOCKS = {"nf4": NF4_BLOCK, "mxfp4": MX_BLOCK, "nvfp4": NV_BLOCK}
_SCALES: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "nf4": lambda scale: scale,
    "mxfp4": e8m0_values,
    "nvfp4": E4M3.decode,
}
TABLE_FORMATS = tuple(_BLOCKS)


def quantize_to_table(w: torch.Tensor, format: str, name: str = "the weight") -> TableWeight:
    """Quantize w [out, in] to one of TABLE_FORMATS.

    Raises ConfigError, naming the matrix, for NaN and infinities and where the blocks do not divide the inputs.
    """
    if format not in _BLOCKS:
        raise ConfigError(f"unknown format {format!r}; known: {', '.join(TABLE_FORMATS)}")
    block_size = effective_group_size(w.shape[1], NF4_BLOCK) if format == "nf4" else _BLOCKS[format]
    check_group_size(w.shape[1], block_size, name)
    check_weight(w, 4, w.shape[1], name)
    tensor_scale = torch.ones((), device=w.device)
    if format == "nf4":
        codes, scale = quantize_nf4(w, block_size)
    elif format == "mxfp4":
        codes, scale = quantize_mxfp4(w)
    else:
        codes, scale, tensor_scale = quantize_nvfp4(w)
    return TableWeight(format, pack_bits(codes, 4).view(w.shape[0], -1), scale, tensor_scale)


@cache
def _pairs(format: str, device: torch.device) -> torch.Tensor:
    """The two values of every byte, float32 [256, 2]; copied to a device once, which a captured graph could not do."""
    values = nf4_levels() if format == "nf4" else E2M1.decode(torch.arange(16))
    codes = unpack_bits(torch.arange(256).to(torch.uint8), 4, (256, 2))
    return values[codes.long()].to(device)
