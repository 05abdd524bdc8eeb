"""A GGUF file, mapped into memory: its metadata, its directory of tensors, and their packed bytes.

Mapped pages count as resident memory from the first touch until they are given back, so a reader that walks the whole
file would hold it beside the weights it makes. `release` gives a tensor's pages back to the page cache.
"""

import mmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from infra_lab.errors import CorruptModelError, MissingExtraError, ModelNotFoundError, UnsupportedModelError
from infra_lab.models.gguf_metadata import HeaderReader

if TYPE_CHECKING:
    from gguf import GGMLQuantizationType

_DEFAULT_ALIGNMENT_BYTES = 32
_FAULT_AROUND_BYTES = 1 << 16
"""Linux maps a touched page's neighbours with it, in windows of this size; a multiple of every page size in use."""
_MAX_DIMS = 4
_MIN_TENSOR_INFO_BYTES = 32
"""The shortest directory entry: an empty name, one dimension, type and offset."""


class GGUFTensorInfo(NamedTuple):
    """Where a tensor lies and how it is packed."""

    name: str
    shape: tuple[int, ...]
    """Slowest dimension first, as torch writes it (the file has it the other way round)."""
    type: "GGMLQuantizationType"
    offset: int
    """Of its first byte from the start of the file."""
    num_bytes: int


class GGUFFile:
    """The header of a GGUF file, parsed and checked, and its data, mapped.

    `metadata` holds plain Python values. After construction every tensor is known to lie within the file, aligned, and
    apart from the others; whether their names and shapes make a model is the checkpoint's business.

    Raises ModelNotFoundError if there is no such file, CorruptModelError for a damaged or truncated one,
    UnsupportedModelError for a tensor type that the gguf library does not know, MissingExtraError without that library.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise ModelNotFoundError(f"{self.path} is not a file; expected a GGUF model")
        if self.path.stat().st_size == 0:  # which cannot be mapped
            raise CorruptModelError(f"{self.path} is empty, expected a GGUF model; fetch it again")
        with self.path.open("rb") as file:
            # A private mapping is "writable", which torch wants of every buffer. Nothing writes to it, so its pages
            # stay the page cache's own.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        reader = HeaderReader(self._map, self.path)
        num_tensors, num_key_values = reader.preamble()
        self.metadata: dict[str, Any] = reader.key_values(num_key_values)
        self.tensors: list[GGUFTensorInfo] = _read_directory(reader, num_tensors, self.metadata)
        self._release(0, reader.position)

    def packed(self, info: GGUFTensorInfo) -> torch.Tensor:
        """Return a view of the tensor's bytes in the file, uint8 [rows, bytes a row]; do not write to it."""
        rows = info.shape[0] if len(info.shape) > 1 else 1
        data = torch.frombuffer(self._map, dtype=torch.uint8, count=info.num_bytes, offset=info.offset)
        return data.view(rows, -1)

    def release(self, info: GGUFTensorInfo) -> None:
        """Let the system take back the tensor's pages; views of it stay valid and are read from the file again."""
        self._release(info.offset, info.offset + info.num_bytes)

    def _release(self, start: int, end: int) -> None:
        if hasattr(mmap, "MADV_DONTNEED"):  # not on Windows
            start -= start % _FAULT_AROUND_BYTES
            end = min(end + -end % _FAULT_AROUND_BYTES, len(self._map))
            self._map.madvise(mmap.MADV_DONTNEED, start, end - start)


def _read_directory(reader: HeaderReader, count: int, metadata: dict[str, Any]) -> list[GGUFTensorInfo]:
    try:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
    except ImportError as error:
        raise MissingExtraError("reading GGUF needs the gguf package: pip install gguf") from error

    if count * _MIN_TENSOR_INFO_BYTES > reader.size_bytes:
        reader.fail(f"announces {count} tensors, more than its {reader.size_bytes} bytes can hold")
    infos: dict[str, GGUFTensorInfo] = {}
    for _ in range(count):
        name = reader.string()
        num_dims = reader.u32()
        if not 1 <= num_dims <= _MAX_DIMS:
            reader.fail(f"tensor {name!r} has {num_dims} dimensions, expected 1 to {_MAX_DIMS}")
        shape = tuple(reversed([reader.u64() for _ in range(num_dims)]))
        type_id, offset = reader.u32(), reader.u64()
        try:
            kind = GGMLQuantizationType(type_id)
        except ValueError as error:
            raise UnsupportedModelError(
                f"{reader.path}: tensor {name!r} has type {type_id}, which the installed gguf library does not know; "
                "fetch the model in another quantization type, or again if it should be known"
            ) from error
        block_elements, block_bytes = GGML_QUANT_SIZES[kind]
        num_elements = 1
        for size in shape:
            num_elements *= size
        if num_elements == 0 or shape[-1] % block_elements:
            reader.fail(f"tensor {name!r} of type {kind.name} has shape {shape}; rows come in {block_elements}s")
        if name in infos:
            reader.fail(f"has the tensor {name!r} twice")
        infos[name] = GGUFTensorInfo(name, shape, kind, offset, num_elements // block_elements * block_bytes)
    return _place(reader, list(infos.values()), metadata.get("general.alignment", _DEFAULT_ALIGNMENT_BYTES))


def _place(reader: HeaderReader, infos: list[GGUFTensorInfo], alignment: Any) -> list[GGUFTensorInfo]:
    """Turn offsets into the data section into offsets into the file, and check that the tensors lie where they can."""
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        reader.fail(f"general.alignment is {alignment!r}, expected a power of two")
    data_start = -(-reader.position // alignment) * alignment
    placed = []
    last_end, last_name = data_start, ""
    for info in sorted(infos, key=lambda info: info.offset):
        start = data_start + info.offset
        end = start + info.num_bytes
        if end > reader.size_bytes:
            reader.fail(f"tensor {info.name!r} ends at byte {end}, but the file has {reader.size_bytes} bytes")
        if info.offset % alignment:
            reader.fail(f"tensor {info.name!r} has offset {info.offset}, not a multiple of {alignment}")
        if start < last_end:
            reader.fail(f"tensors {last_name!r} and {info.name!r} overlap at byte {start}")
        last_end, last_name = end, info.name
        placed.append(info._replace(offset=start))
    return placed
