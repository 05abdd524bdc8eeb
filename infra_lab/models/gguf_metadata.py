"""The header of a GGUF file: typed key-values, then a directory of tensors.

    offset 0   "GGUF"  version u32  number of tensors u64  number of key-values u64
               key-values:   key string, type u32, value                     (model sizes, vocabulary, merges, template)
               directory:    name string, number of dimensions u32, dimensions u64 each, type u32, offset u64
               padding to the alignment
               tensor data, each tensor at its offset from here, aligned

A string is its length (u64) and its bytes; an array is its element type (u32), its length (u64) and its elements. All
numbers are little-endian. The gguf library's own reader makes a numpy view of each field of each string, which takes
1.4 s for a vocabulary of 49,152 tokens and its merges; one pass with `struct` takes a few hundredths of that.

Every length comes from the file, so every length is checked against the bytes that are left before it is believed: a
damaged file ends in CorruptModelError, not in a gigabyte of memory or in another tensor's data.
"""

import mmap
from pathlib import Path
from struct import Struct, error, unpack_from
from typing import Any, NoReturn

from infra_lab.errors import CorruptModelError, UnsupportedModelError

_MAGIC = b"GGUF"
_SUPPORTED_VERSIONS = (2, 3)
_U32, _U64 = Struct("<I"), Struct("<Q")
_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""GGUF value type → `struct` code."""
_SCALAR_STRUCTS = {kind: Struct("<" + code) for kind, code in _SCALARS.items()}
_MIN_ENTRY_BYTES = 13
"""The shortest key-value: an empty key, a type and one byte of value."""


class HeaderReader:
    """A cursor over a mapped GGUF header; each method reads one thing and moves on.

    Every method raises CorruptModelError, naming the file, if what it reads runs past the end of the file.
    """

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data, self.path = data, path
        self.size_bytes = len(data)
        self.position = 0

    def fail(self, problem: str) -> NoReturn:
        """Raise CorruptModelError for this file."""
        raise CorruptModelError(f"{self.path}: {problem}; the file is damaged or incomplete, fetch it again")

    def u32(self) -> int:
        """Read an unsigned 32-bit number."""
        return int(self._scalar(_U32))

    def u64(self) -> int:
        """Read an unsigned 64-bit number."""
        return int(self._scalar(_U64))

    def count(self, what: str, min_bytes_each: int) -> int:
        """Read a u64 that counts things of at least `min_bytes_each` bytes; they must fit into the rest of the file."""
        count, rest_bytes = self.u64(), self.size_bytes - self.position
        if count * min_bytes_each > rest_bytes:
            self.fail(f"announces {count} {what} at byte {self.position}, but only {rest_bytes} bytes are left")
        return count

    def string(self) -> str:
        """Read a string; bytes that are not UTF-8 become U+FFFD."""
        return self._strings(1)[0]

    def preamble(self) -> tuple[int, int]:
        """Read magic and version; return the numbers of tensors and of key-values."""
        if self.data[:4] != _MAGIC:
            self.fail(f"starts with {bytes(self.data[:4])!r}, expected {_MAGIC!r}: not a GGUF file")
        self.position = 4
        version = self.u32()
        if version & 0xFFFF == 0:
            self.fail("is a big-endian GGUF file (or its version is damaged); expected little-endian")
        if version not in _SUPPORTED_VERSIONS:
            self.fail(f"is GGUF version {version}; expected one of {_SUPPORTED_VERSIONS}")
        return self.u64(), self.count("key-values", _MIN_ENTRY_BYTES)

    def key_values(self, count: int) -> dict[str, Any]:
        """Read `count` key-values as plain Python: str, int, float, bool, or a list of one of these."""
        metadata: dict[str, Any] = {}
        for _ in range(count):
            key = self.string()
            if key in metadata:
                self.fail(f"has the key {key!r} twice")
            metadata[key] = self._value(key, self.u32())
        return metadata

    def _scalar(self, struct: Struct) -> Any:
        try:
            (value,) = struct.unpack_from(self.data, self.position)
        except error:
            self.fail(f"ends within its header, at byte {self.size_bytes}")
        self.position += struct.size
        return value

    def _value(self, key: str, kind: int) -> Any:
        if kind in _SCALAR_STRUCTS:
            return self._scalar(_SCALAR_STRUCTS[kind])
        if kind == _STRING:
            return self.string()
        if kind != _ARRAY:
            self.fail(f"key {key!r} has value type {kind}, which GGUF does not know")
        return self._array(key, self.u32())

    def _array(self, key: str, kind: int) -> list[Any]:
        if kind == _ARRAY:
            raise UnsupportedModelError(f"{self.path}: key {key!r} is an array of arrays; expected numbers or strings")
        if kind == _STRING:
            return self._strings(self.count(f"strings in {key!r}", _U64.size))
        if kind not in _SCALARS:
            self.fail(f"key {key!r} is an array of value type {kind}, which GGUF does not know")
        item_bytes = _SCALAR_STRUCTS[kind].size
        count = self.count(f"numbers in {key!r}", item_bytes)
        values = unpack_from(f"<{count}{_SCALARS[kind]}", self.data, self.position)
        self.position += count * item_bytes
        return list(values)

    def _strings(self, count: int) -> list[str]:
        # The hot loop of opening a model (tokens and merges, about a hundred thousand turns): locals only, no calls
        # but the two that read.
        data, position, size_bytes = self.data, self.position, self.size_bytes
        read_length = _U64.unpack_from
        strings: list[str] = []
        append = strings.append
        try:
            for _ in range(count):
                start = position + 8
                position = start + read_length(data, position)[0]
                if position > size_bytes:
                    self.fail(f"has a string of {position - start} bytes at byte {start}, past its end at {size_bytes}")
                append(str(data[start:position], "utf-8", "replace"))
        except error:
            self.fail(f"ends within its header, at byte {size_bytes}")
        self.position = position
        return strings
