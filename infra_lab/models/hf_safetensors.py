"""One safetensors file, read tensor by tensor.

    8 bytes   length of the header, little-endian
    header    JSON: {"name": {"dtype": "BF16", "shape": [576, 192], "data_offsets": [start, end]}, ...}
    data      the tensors, without holes

The safetensors library checks the header. It would also map the file and hand out views of it, but mapped pages stay
resident for as long as any view lives, and who converts or quantizes needs them once. So the bytes are read instead:
straight into the new tensor where the dtype is kept, through a small buffer where it is not.
"""

import json
from collections.abc import Iterator
from io import FileIO
from math import prod
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError, safe_open

from infra_lab.errors import CorruptModelError, UnsupportedModelError

_DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_CHUNK_ELEMENTS = 1 << 20


class TensorEntry(NamedTuple):
    """Where a tensor lies in its file."""

    dtype: str
    shape: tuple[int, ...]
    offset: int
    """Of its first byte from the start of the file."""


class SafetensorsFile:
    """The checked header of a safetensors file, in file order.

    Raises CorruptModelError for a missing, damaged or truncated file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with safe_open(path, framework="numpy"):  # checks lengths, offsets, shapes and dtypes against each other
                pass
            with path.open("rb") as file:
                header_bytes = int.from_bytes(file.read(8), "little")
                header = json.loads(file.read(header_bytes))
        except (SafetensorError, OSError, ValueError) as error:
            raise CorruptModelError(
                f"{path} is not a whole safetensors file ({error}); fetch the model again"
            ) from error
        header.pop("__metadata__", None)
        entries = {
            name: TensorEntry(entry["dtype"], tuple(entry["shape"]), 8 + header_bytes + entry["data_offsets"][0])
            for name, entry in header.items()
        }
        self.entries = dict(sorted(entries.items(), key=lambda item: item[1].offset))
        self.num_bytes = path.stat().st_size - 8 - header_bytes

    def tensors(self, names: list[str], dtype: torch.dtype) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield (name, new CPU tensor of `dtype`) in the order of `names`.

        Raises CorruptModelError if the file has become shorter since it was opened.
        """
        with self.path.open("rb", buffering=0) as file:
            for name in names:
                yield name, self._read(file, name, dtype)

    def check_dtype(self, name: str) -> None:
        """Raise UnsupportedModelError unless the tensor is of a floating dtype that we read."""
        if self.entries[name].dtype not in _DTYPES:
            raise UnsupportedModelError(
                f"{self.path}: tensor {name!r} has dtype {self.entries[name].dtype}; "
                f"the engine reads {', '.join(_DTYPES)}"
            )

    def _read(self, file: FileIO, name: str, dtype: torch.dtype) -> torch.Tensor:
        entry = self.entries[name]
        source = _DTYPES[entry.dtype]
        file.seek(entry.offset)
        tensor = torch.empty(entry.shape, dtype=dtype)
        if source == dtype:
            self._fill(file, tensor, name)
            return tensor
        flat = tensor.view(-1)
        buffer = torch.empty(min(_CHUNK_ELEMENTS, prod(entry.shape)), dtype=source)
        for start in range(0, flat.numel(), _CHUNK_ELEMENTS):
            piece = buffer[: min(_CHUNK_ELEMENTS, flat.numel() - start)]
            self._fill(file, piece, name)
            flat[start : start + piece.numel()] = piece
        return tensor

    def _fill(self, file: FileIO, tensor: torch.Tensor, name: str) -> None:
        view = memoryview(tensor.view(-1).view(torch.uint8).numpy().data)
        while view:  # one read returns at most 2 GiB
            num_read = file.readinto(view)
            if not num_read:
                raise CorruptModelError(f"{self.path} ends within tensor {name!r}; fetch the model again")
            view = view[num_read:]
