"""The GGUF header: equal to what gguf's own reader finds, and damaged ones are refused with a clear error."""

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from infra_lab.errors import CorruptModelError, ModelNotFoundError, UnsupportedModelError
from infra_lab.models.gguf_file import GGUFFile
from tests.models.gguf_samples import save

STRING, ARRAY, UINT32 = 8, 9, 4


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def header(*entries: bytes, tensors: bytes = b"", num_tensors: int = 0, num_entries: int | None = None) -> bytes:
    """A GGUF file by hand, for what the library's writer refuses to write."""
    count = len(entries) if num_entries is None else num_entries
    return b"GGUF" + struct.pack("<IQQ", 3, num_tensors, count) + b"".join(entries) + tensors


def tensor_info(name: bytes, *dims: int, kind: int = 0, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def in_file(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    return path


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    path = tmp_path / "sample.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for add, value in (
        (writer.add_uint8, 200),
        (writer.add_int8, -100),
        (writer.add_uint16, 60_000),
        (writer.add_int16, -30_000),
        (writer.add_uint32, 4_000_000_000),
        (writer.add_int32, -2_000_000_000),
        (writer.add_uint64, 2**63),
        (writer.add_int64, -(2**62)),
        (writer.add_float32, 0.1),
        (writer.add_float64, 0.1),
        (writer.add_bool, True),
        (writer.add_string, "naïve 🦙 文"),
    ):
        add(f"scalar.{add.__name__}", value)
    writer.add_array("array.int", [1, -2, 3])
    writer.add_array("array.float", [0.5, -1.5])
    writer.add_array("array.bool", [True, False])
    writer.add_array("array.string", ["", "a", "Ġthe", "好"])
    writer.add_tensor("vector", np.arange(5, dtype=np.float32))
    writer.add_tensor("matrix", np.arange(12, dtype=np.float16).reshape(3, 4))
    writer.add_tensor("packed", np.zeros((2, 34), dtype=np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    save(writer)
    return path


def test_equal_to_the_library_reader(sample: Path) -> None:
    file, reader = GGUFFile(sample), gguf.GGUFReader(sample)
    expected = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    assert file.metadata == expected
    assert {type(value) for value in file.metadata.values()} == {int, float, bool, str, list}
    assert len(file.tensors) == len(reader.tensors) == 3
    for ours, theirs in zip(file.tensors, reader.tensors, strict=True):
        assert ours.name == theirs.name
        assert ours.shape == tuple(reversed(theirs.shape.tolist()))
        assert (ours.type, ours.offset, ours.num_bytes) == (theirs.tensor_type, theirs.data_offset, theirs.n_bytes)
        assert file.packed(ours).numpy().tobytes() == theirs.data.tobytes()


def test_released_pages_come_back_from_the_file(sample: Path) -> None:
    file = GGUFFile(sample)
    views = [file.packed(info) for info in file.tensors]
    before = [view.clone() for view in views]
    for info in file.tensors:
        file.release(info)
    assert all(view.equal(copy) for view, copy in zip(views, before, strict=True))


@pytest.mark.parametrize("alignment", [8, 32, 4096])
def test_alignment_is_the_files_own(tmp_path: Path, alignment: int) -> None:
    path = tmp_path / "aligned.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_custom_alignment(alignment)
    writer.add_tensor("a", np.ones(3, dtype=np.float32))
    writer.add_tensor("b", np.full(3, 2.0, dtype=np.float32))
    save(writer)
    file = GGUFFile(path)
    assert [info.offset % alignment for info in file.tensors] == [0, 0]
    assert [file.packed(info).numpy().view(np.float32).tolist() for info in file.tensors] == [[[1.0] * 3], [[2.0] * 3]]


def test_bytes_that_are_not_utf8_do_not_stop_it(tmp_path: Path) -> None:
    broken = text(b"key") + struct.pack("<I", STRING) + text(b"a\xff\xfeb")
    tokens = text(b"tokens") + struct.pack("<IIQ", ARRAY, STRING, 2) + text(b"\xe2\x82") + text(b"ok")
    file = GGUFFile(in_file(tmp_path, header(broken, tokens)))
    assert file.metadata == {"key": "a\ufffd\ufffdb", "tokens": ["\ufffd", "ok"]}


def test_truncated_at_every_length(sample: Path, tmp_path: Path) -> None:
    data = sample.read_bytes()
    end_of_data = max(info.offset + info.num_bytes for info in GGUFFile(sample).tensors)
    for length in range(end_of_data):
        path = in_file(tmp_path, data[:length])
        with pytest.raises(CorruptModelError, match=r"model\.gguf.* fetch it again"):
            GGUFFile(path)
    GGUFFile(in_file(tmp_path, data[:end_of_data]))  # only padding is missing


ONE_KEY = text(b"k") + struct.pack("<II", UINT32, 1)
BAD: dict[str, tuple[bytes, str]] = {
    "another format": (b"PK\x03\x04" + bytes(60), "not a GGUF file"),
    "version 1": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "version 1; expected one of"),
    "version 99": (b"GGUF" + struct.pack("<IQQ", 99, 0, 0), "version 99; expected one of"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian"),
    "more keys than bytes": (header(num_entries=2**62), "announces 4611686018427387904 key-values"),
    "more tensors than bytes": (header(num_tensors=2**62), "announces 4611686018427387904 tensors"),
    "string past the end": (header(struct.pack("<Q", 2**63) + bytes(20)), "past its end"),
    "array past the end": (header(text(b"k") + struct.pack("<IIQ", ARRAY, UINT32, 2**61)), "numbers in 'k'"),
    "strings past the end": (header(text(b"k") + struct.pack("<IIQ", ARRAY, STRING, 2**61)), "strings in 'k'"),
    "key twice": (header(ONE_KEY, ONE_KEY), "key 'k' twice"),
    "unknown value type": (header(text(b"k") + struct.pack("<II", 77, 0)), "value type 77"),
    "unknown element type": (header(text(b"k") + struct.pack("<IIQ", ARRAY, 77, 0)), "value type 77"),
    "no dimensions": (header(tensors=tensor_info(b"t") + bytes(64), num_tensors=1), "0 dimensions"),
    "many dimensions": (header(tensors=tensor_info(b"t", *[1] * 9) + bytes(64), num_tensors=1), "9 dimensions"),
    "empty tensor": (header(tensors=tensor_info(b"t", 4, 0) + bytes(64), num_tensors=1), "shape"),
    "huge tensor": (header(tensors=tensor_info(b"t", 2**60, 2**60) + bytes(64), num_tensors=1), "ends at byte"),
    "half a block": (header(tensors=tensor_info(b"t", 33, kind=8) + bytes(64), num_tensors=1), "rows come in 32s"),
    "tensor past the end": (
        header(tensors=tensor_info(b"t", 4, offset=640) + bytes(64), num_tensors=1),
        "ends at byte",
    ),
    "unaligned tensor": (header(tensors=tensor_info(b"t", 4, offset=3) + bytes(64), num_tensors=1), "multiple of 32"),
    "same tensor twice": (header(tensors=tensor_info(b"t", 1) * 2 + bytes(64), num_tensors=2), "tensor 't' twice"),
    "overlap": (
        header(tensors=tensor_info(b"t", 16) + tensor_info(b"u", 8, offset=32) + bytes(99), num_tensors=2),
        "'t' and 'u' overlap",
    ),
    "odd alignment": (header(text(b"general.alignment") + struct.pack("<II", UINT32, 48)), "power of two"),
    "no alignment": (header(text(b"general.alignment") + struct.pack("<II", UINT32, 0)), "power of two"),
}


@pytest.mark.parametrize("case", BAD)
def test_damage_is_named(tmp_path: Path, case: str) -> None:
    data, message = BAD[case]
    with pytest.raises(CorruptModelError, match=r"fetch it again") as caught:
        GGUFFile(in_file(tmp_path, data))
    assert message in str(caught.value)
    assert "model.gguf" in str(caught.value)


def test_what_the_format_allows_but_nobody_reads(tmp_path: Path) -> None:
    nested = header(text(b"k") + struct.pack("<IIQ", ARRAY, ARRAY, 0))
    with pytest.raises(UnsupportedModelError, match="'k' is an array of arrays"):
        GGUFFile(in_file(tmp_path, nested))
    unknown = header(tensors=tensor_info(b"blk.0.x", 4, kind=250) + bytes(64), num_tensors=1)
    with pytest.raises(UnsupportedModelError, match=r"'blk.0.x' has type 250"):
        GGUFFile(in_file(tmp_path, unknown))


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match=r"nothing.gguf"):
        GGUFFile(tmp_path / "nothing.gguf")
    with pytest.raises(ModelNotFoundError, match="is not a file"):
        GGUFFile(tmp_path)


def test_the_samples_are_as_bad_as_they_say(tmp_path: Path) -> None:
    """The hand-made headers differ from a good one in what they are meant to show, and in nothing else."""
    good: Any = header(ONE_KEY, tensors=tensor_info(b"t", 1) + bytes(96), num_tensors=1)
    assert GGUFFile(in_file(tmp_path, good)).metadata == {"k": 1}
