"""The operations a transformer is made of, a file a family: formula, typed reference, Triton kernel, launcher, cost.

On a GPU a function launches its kernel, elsewhere the reference serves, which is plain torch and runs on any device (see
`dispatch`). Here stands what the engine calls; all else is imported from its family: `from kernels.softmax import softmax`.
"""

from kernels.activations import silu_mul
from kernels.attention import PagedBatch, QueryGroup, paged_attention, paged_batch_attention
from kernels.cost import Cost
from kernels.dispatch import launches_on, mode, use
from kernels.fused_qkv import fused_qkv
from kernels.kv_store import KVCache, QuantizedKV, cache_parts, copy_blocks, kv_store
from kernels.norms import add_rms_norm, layer_norm, rms_norm
from kernels.rotary import apply_rotary

__all__ = [
    "Cost",
    "KVCache",
    "PagedBatch",
    "QuantizedKV",
    "QueryGroup",
    "add_rms_norm",
    "apply_rotary",
    "cache_parts",
    "copy_blocks",
    "fused_qkv",
    "kv_store",
    "launches_on",
    "layer_norm",
    "mode",
    "paged_attention",
    "paged_batch_attention",
    "rms_norm",
    "silu_mul",
    "use",
]
