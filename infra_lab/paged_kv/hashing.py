"""Names for the contents of blocks: a hash chain over tokens.

The keys and values of a token depend on every token before it, so a block is named by its whole prefix, not by its own
tokens alone. Chaining makes that cheap: one block's digest covers the digest before it and its own tokens.

    seed(salt) ──▶ H(seed, tokens 0..15) ──▶ H(digest 0, tokens 16..31) ──▶ H(digest 1, tokens 32..47) ──▶ …

Equal digests therefore mean equal salt and equal tokens from the very first one. A collision would serve one request
the context of another: with 128 bits of BLAKE2b none happens by chance, and provoking one takes about 2^64 hashes.
Python's own `hash` is easily provoked, and differs from process to process; these digests are the same everywhere, so
that a store on another machine can use them as keys.
"""

import struct
from hashlib import blake2b

from infra_lab.paged_kv.sequence import KVSequence

DIGEST_BYTES = 16
TOKEN_BYTES = 4  # token ids as little-endian unsigned 32-bit integers, whatever the machine


def seed_digest(cache_salt: str) -> bytes:
    """Return the digest that a chain starts from: another salt, another chain for the same tokens."""
    # surrogatepass: a salt comes out of somebody's JSON and may hold half a surrogate pair.
    return blake2b(cache_salt.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES).digest()


def extend_block_hashes(seq: KVSequence, block_size: int, num_blocks: int) -> None:
    """Extend `seq.block_hashes` to at least its first `num_blocks` blocks, all of which must be full of tokens."""
    hashes = seq.block_hashes
    num_known = len(hashes)
    if num_known >= num_blocks:
        return
    digest = hashes[-1] if hashes else seed_digest(seq.cache_salt)
    # One conversion for all tokens: per block it would cost as much again as the hashing itself.
    tokens = seq.token_ids[num_known * block_size : num_blocks * block_size]
    data = struct.pack(f"<{len(tokens)}I", *tokens)
    stride = block_size * TOKEN_BYTES
    for offset in range(0, len(data), stride):
        digest = blake2b(digest + data[offset : offset + stride], digest_size=DIGEST_BYTES).digest()
        hashes.append(digest)
