"""From a token to the bytes it stands for.

Text is UTF-8, and BPE knows nothing of where its characters end: one token may be half a character. Two spellings of
bytes are in use. Byte-level BPE (GPT-2, 2019) writes each byte as one printable character, "Ġ" for a space; the other,
SentencePiece with byte fallback (Kudo 2018), writes "▁" for a space and "<0xE4>" for a byte without its own token.
"""

import json
import re
from typing import Any

from tokenizers import Tokenizer


def byte_of_character() -> dict[str, int]:
    """Return the alphabet of byte-level BPE, character → byte.

    Printable Latin-1 bytes stand for themselves, the other 68 follow from U+0100 on in order.
    """
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


_BYTE_OF_CHARACTER = byte_of_character()
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def is_byte_level(backend: Tokenizer) -> bool:
    """Say whether decoding is nothing but joining the tokens' bytes, so that it can be done piece by piece."""
    return all(step["type"] == "ByteLevel" for step in _decoder_steps(backend)) and backend.decoder is not None


def has_byte_fallback(backend: Tokenizer) -> bool:
    """Say whether tokens like "<0xE4>" are decoded to bytes."""
    return any(step["type"] == "ByteFallback" for step in _decoder_steps(backend))


def byte_level_bytes(token: str) -> bytes:
    """Return the bytes of a byte-level token; an added token outside the alphabet stands for its own text."""
    try:
        return bytes(_BYTE_OF_CHARACTER[character] for character in token)
    except KeyError:
        return token.encode()


def fallback_byte(token: str) -> int | None:
    """Return the byte that a token like "<0xE4>" stands for, None for other tokens."""
    match = _BYTE_TOKEN.fullmatch(token)
    return int(match[1], 16) if match else None


def sentencepiece_bytes(token: str) -> bytes:
    """Return the bytes of a SentencePiece token, the space before a word included."""
    byte = fallback_byte(token)
    return token.replace("▁", " ").encode() if byte is None else bytes([byte])


def _decoder_steps(backend: Tokenizer) -> list[dict[str, Any]]:
    if backend.decoder is None:
        return []
    decoder = json.loads(backend.decoder.__getstate__())
    steps: list[dict[str, Any]] = decoder["decoders"] if decoder["type"] == "Sequence" else [decoder]
    return steps
