"""Hashes are names: the same in every process, different for different prefixes."""

import os
import struct
import subprocess
import sys
from hashlib import blake2b

import pytest

from infra_lab.paged_kv.hashing import DIGEST_BYTES, extend_block_hashes
from infra_lab.paged_kv.sequence import KVSequence


def hashes(tokens: list[int], block_size: int, salt: str = "") -> list[bytes]:
    seq = KVSequence(tokens, salt)
    extend_block_hashes(seq, block_size, len(tokens) // block_size)
    return seq.block_hashes


def test_the_chain_is_what_the_docstring_says() -> None:
    tokens = [1, 70_000, 2**32 - 1, 4, 5, 6, 7]  # 7 tokens / 3 = 2 full blocks + 1
    digest, expected = blake2b(b"tenant", digest_size=16).digest(), []
    for block in (tokens[0:3], tokens[3:6]):
        digest = blake2b(digest + b"".join(struct.pack("<I", token) for token in block), digest_size=16).digest()
        expected.append(digest)
    assert hashes(tokens, 3, "tenant") == expected
    assert {len(digest) for digest in expected} == {DIGEST_BYTES}


def test_extending_bit_by_bit_gives_the_same_chain() -> None:
    seq = KVSequence(list(range(16)))
    for num_blocks in (1, 1, 3, 2, 8):
        extend_block_hashes(seq, 2, num_blocks)
    assert seq.block_hashes == hashes(list(range(16)), 2)


def test_a_block_is_named_by_its_whole_prefix() -> None:
    plain, other_head, salted = hashes([1, 2, 3, 4], 2), hashes([9, 2, 3, 4], 2), hashes([1, 2, 3, 4], 2, "a")
    assert len({*plain, *other_head, *salted}) == 6
    assert hashes([1, 2, 3, 4], 4)[0] not in plain


def test_half_a_surrogate_pair_in_a_salt_is_hashed_like_any_other() -> None:
    assert hashes([1], 1, "\ud800") != hashes([1], 1, "\ud801")


@pytest.mark.parametrize("hash_seed", ["0", "12345"])
def test_equal_in_every_process(hash_seed: str) -> None:
    code = (
        "from infra_lab.paged_kv.hashing import extend_block_hashes as extend\n"
        "from infra_lab.paged_kv.sequence import KVSequence\n"
        "seq = KVSequence(list(range(8)), 'tenant'); extend(seq, 4, 2); print(seq.block_hashes[-1].hex())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == hashes(list(range(8)), 4, "tenant")[-1].hex()
    assert result.stdout.strip() == "8b28e6eaa91f7fa118a17b5afd12d6dc"
