"""The tensors of the Open Inference Protocol (KServe V2), as JSON and in its binary extension.

A binary request is a JSON head of `Inference-Header-Content-Length` bytes, and after it the data of the inputs that say
`"binary_data_size": n` in their parameters, in their order. A BYTES element is its length (4 bytes, little-endian) and itself.
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard

from infra_lab.server.api_error import invalid

MAX_RANK = 8
_LENGTH = struct.Struct("<I")


class InferRequest(NamedTuple):
    """A decoded request."""

    id: str | None
    parameters: dict[str, Any]
    inputs: dict[str, list[Any]]
    """By name: the elements, flat; those of a BYTES tensor as text."""
    shapes: dict[str, list[int]]
    output_name: str
    wants_binary: bool


def parse_infer(body: bytes, header_length: str | None, *, known_outputs: Sequence[str]) -> InferRequest:
    """Decode a request. Raises ApiError for one that does not keep to the protocol."""
    head_bytes = len(body) if header_length is None else _head_length(header_length, len(body))
    try:
        head = json.loads(body[:head_bytes])
    except (ValueError, RecursionError) as error:
        raise invalid(f"the request is not JSON: {error}") from error
    tensors = head.get("inputs") if isinstance(head, dict) else None
    if not isinstance(tensors, list) or not all(isinstance(tensor, dict) for tensor in tensors):
        raise invalid('the request has no "inputs"; expected a list of tensors')
    rest, inputs, shapes = body[head_bytes:], dict[str, list[Any]](), dict[str, list[int]]()
    for tensor in tensors:
        name, shape = tensor.get("name"), tensor.get("shape")
        if not isinstance(name, str) or not _is_shape(shape):
            raise invalid(f'an input needs a "name" and a "shape" of at most {MAX_RANK} whole numbers')
        size = _mapping(tensor, "parameters").get("binary_data_size")
        if size is None:
            elements = _flat(tensor.get("data"))
        elif isinstance(size, int) and 0 <= size <= len(rest):
            elements, rest = _unpack(rest[:size], tensor.get("datatype"), name), rest[size:]
        else:
            raise invalid(f"input {name!r}: binary_data_size is {size!r}, and {len(rest)} bytes are left")
        expected = math.prod(shape)
        if len(elements) != expected:
            raise invalid(f"input {name!r} has {len(elements)} elements; its shape {shape} says {expected}")
        inputs[name], shapes[name] = elements, shape
    parameters = _mapping(head, "parameters")
    output, wants_binary = _output(head, known_outputs, bool(parameters.get("binary_data_output")))
    request_id = head.get("id")
    return InferRequest(str(request_id) if request_id else None, parameters, inputs, shapes, output, wants_binary)


def write_infer(
    head: dict[str, Any], name: str, texts: Sequence[str], shape: list[int], *, binary: bool
) -> tuple[bytes, int]:
    """Encode a response with one BYTES output; return the body and the length of its JSON head."""
    output: dict[str, Any] = {"name": name, "datatype": "BYTES", "shape": shape}
    tail = b""
    if binary:
        tail = b"".join(_LENGTH.pack(len(raw)) + raw for raw in (text.encode() for text in texts))
        output["parameters"] = {"binary_data_size": len(tail)}
    else:
        output["data"] = list(texts)
    head_bytes = json.dumps({**head, "outputs": [output]}).encode()
    return head_bytes + tail, len(head_bytes)


def _head_length(header: str, body_length: int) -> int:
    if not header.isascii() or not header.isdigit() or len(header) > 12 or int(header) > body_length:
        raise invalid(f"Inference-Header-Content-Length is {header!r}, and the body has {body_length} bytes")
    return int(header)


def _mapping(owner: Mapping[str, Any], name: str) -> dict[str, Any]:
    value = owner.get(name, {})
    if not isinstance(value, dict):
        raise invalid(f'"{name}" must be an object')
    return value


def _is_shape(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and len(value) <= MAX_RANK and all(_is_size(extent) for extent in value)


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 1 << 20


def _flat(data: Any) -> list[Any]:
    """Elements may come flat or nested as the shape is."""
    if not isinstance(data, list):
        raise invalid('an input needs "data", a list of its elements')
    flat, pending = list[Any](), data[::-1]
    while pending:
        element = pending.pop()
        if isinstance(element, list):
            pending.extend(reversed(element))
        else:
            flat.append(element)
    return flat


def _unpack(raw: bytes, datatype: Any, name: str) -> list[Any]:
    if datatype == "BOOL":
        return [byte != 0 for byte in raw]
    if datatype != "BYTES":
        raise invalid(f"input {name!r} is {datatype!r}; this model takes BYTES and BOOL")
    elements, position = [], 0
    while position < len(raw):
        start = position + _LENGTH.size
        size = _LENGTH.unpack_from(raw, position)[0] if start <= len(raw) else len(raw)
        position = start + size
        if position > len(raw):
            raise invalid(f"input {name!r}: an element ends beyond the tensor's data")
        try:
            elements.append(raw[start:position].decode())
        except UnicodeDecodeError as error:
            raise invalid(f"input {name!r} is not UTF-8 text at its byte {error.start}") from error
    return elements


def _output(head: Mapping[str, Any], known: Sequence[str], binary_default: bool) -> tuple[str, bool]:
    wanted = head.get("outputs")
    if not wanted:
        return known[0], binary_default
    if not isinstance(wanted, list) or len(wanted) != 1 or not isinstance(wanted[0], dict):
        raise invalid(f'"outputs" must name one output, {known[0]!r}')
    if wanted[0].get("name") not in known:
        raise invalid(f"there is no output {wanted[0].get('name')!r}; this model has {known[0]!r}")
    return known[0], bool(_mapping(wanted[0], "parameters").get("binary_data", binary_default))
