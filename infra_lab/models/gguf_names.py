"""GGUF's names and row order, mapped back to Hugging Face's.

GGUF shortens the names, and for Llama it also shuffles the rows of q and k within each head: Hugging Face rotates row i
with row i + D/2, GGUF's Llama rotates neighbours 2i and 2i + 1 (the order of the original Llama code).
"""

import re

import torch

from infra_lab.models.config import ModelConfig

_TOP_LEVEL = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
_PER_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER = re.compile(r"blk\.(\d+)\.(\w+)\.(weight|bias)", re.ASCII)


def hf_name(gguf_name: str) -> str | None:
    """Return the Hugging Face name of a GGUF tensor, or None if the models we run have no such tensor."""
    if match := _LAYER.fullmatch(gguf_name):
        index, module, kind = match.groups()
        return f"model.layers.{index}.{_PER_LAYER[module]}.{kind}" if module in _PER_LAYER else None
    module, _, kind = gguf_name.partition(".")
    return f"{_TOP_LEVEL[module]}.{kind}" if module in _TOP_LEVEL and kind == "weight" else None


def source_rows(name: str, config: ModelConfig) -> torch.Tensor | None:
    """Return which GGUF row each row of `name`, a Hugging Face tensor, comes from: [rows] int64; None: all in place.

    Hugging Face, D = 6      0  1  2  3  4  5       rotated together: (0, 3) (1, 4) (2, 5)
    is GGUF's row            0  2  4  1  3  5                         (0, 1) (2, 3) (4, 5)
    """
    if config.architecture != "llama":
        return None
    if ".q_proj." in name:
        num_heads = config.num_heads
    elif ".k_proj." in name:
        num_heads = config.num_kv_heads
    else:
        return None
    rows = torch.arange(num_heads * config.head_dim)
    return rows.view(num_heads, config.head_dim // 2, 2).transpose(1, 2).reshape(-1)
