"""The operations a transformer is made of, a file a family: formula, typed reference, cost.

Each public function is the one the engine calls. The references here are plain torch and run on any device; a Triton
kernel of the same family takes the place of its reference on CUDA.
"""

from kernels.activations import silu_mul
from kernels.attention import QueryGroup, paged_attention
from kernels.cost import Cost
from kernels.kv_store import copy_blocks, kv_store
from kernels.norms import rms_norm
from kernels.rotary import apply_rotary

__all__ = ["Cost", "QueryGroup", "apply_rotary", "copy_blocks", "kv_store", "paged_attention", "rms_norm", "silu_mul"]
