"""The operations a transformer is made of, a file a family: formula, typed reference, Triton kernel, launcher, cost.

Each public function is the one that the engine calls. On a GPU it launches the kernel, elsewhere the reference serves, which
is plain torch and runs on any device (see `dispatch`).
"""

from kernels.activations import silu_mul
from kernels.attention import QueryGroup, paged_attention
from kernels.cost import Cost
from kernels.dispatch import mode, use
from kernels.kv_store import copy_blocks, kv_store
from kernels.norms import add_rms_norm, layer_norm, rms_norm
from kernels.rotary import apply_rotary

__all__ = [
    "Cost",
    "QueryGroup",
    "add_rms_norm",
    "apply_rotary",
    "copy_blocks",
    "kv_store",
    "layer_norm",
    "mode",
    "paged_attention",
    "rms_norm",
    "silu_mul",
    "use",
]
