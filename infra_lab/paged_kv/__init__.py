"""Paged KV cache: fixed blocks, block tables, sharing, prefix reuse."""
