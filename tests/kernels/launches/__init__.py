"""Every launcher once, at any size, on any device, beside its formula in float64.

The same cases run tiny in the interpreter (test_bounds.py), at a model's sizes on a GPU (tests/gpu/test_kernels.py), and
without data or GPU, to see what Triton would compile for one (dry_launch.py).
"""

from tests.kernels.launches import attention, heads, products, rows, sampling
from tests.kernels.launches.launch import LLAMA, ODD, TINY, Build, Launch, Size, Tensors

__all__ = ["BUILDS", "LLAMA", "ODD", "TINY", "Launch", "Size", "Tensors"]

BUILDS: dict[str, Build] = {
    "rms_norm": rows.rms_norm,
    "add_rms_norm": rows.add_rms_norm,
    "layer_norm": rows.layer_norm,
    "softmax": rows.softmax_rows,
    "softmax_long_rows": rows.softmax_long_rows,
    "silu_mul": rows.silu_mul,
    "gelu_mul": rows.gelu_mul,
    "embedding": rows.embedding_rows,
    "apply_rotary": heads.rotary_copy,
    "rotary_": heads.rotary_in_place,
    "kv_store": heads.store,
    "kv_store_int8": heads.store_int8,
    "kv_store_fp8": heads.store_fp8,
    "copy_blocks": heads.copies,
    "quantize_int8": rows.quantize_int8,
    "quantize_int8_long_rows": rows.quantize_int8_long_rows,
    "quantize_fp8": rows.quantize_fp8,
    "top_k": rows.top_k,
    "flash_attention": attention.flash_dense,
    "flash_attention_window": attention.flash_window,
    "paged_flash_attention": attention.flash_paged,
    "paged_decode": attention.decode,
    "paged_decode_int8": attention.decode_int8,
    "paged_decode_fp8": attention.decode_fp8,
    "merge_attention": attention.merge_parts,
    "matmul": products.product,
    "matmul_epilogue": products.product_by_rows,
    "matmul_down": products.product_down,
    "int8_matmul": products.product_int8,
    "fp8_matmul": products.product_fp8,
    "w4a16_matmul": products.product_w4,
    "moe": products.experts,
    "fused_qkv": heads.start_of_a_layer,
    "filter_logits": sampling.filtered,
    "sample": sampling.sampled,
}
