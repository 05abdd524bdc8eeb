"""transformers as a peer: the same weights, its own generate()."""

from pathlib import Path
from typing import Any

import torch
import transformers

from infra_lab.models.config import ModelConfig
from infra_lab.models.weights import open_checkpoint


class TransformersPeer:
    """A Llama in transformers with the weights of a checkpoint, used as its documentation shows."""

    def __init__(self, path: Path, dtype: torch.dtype) -> None:
        checkpoint = open_checkpoint(path)
        transformers.utils.logging.set_verbosity_error()
        with torch.device("meta"):
            self.model: Any = transformers.LlamaForCausalLM(_config(checkpoint.config))
        self.model = self.model.to_empty(device="cpu").to(dtype)
        fresh = transformers.models.llama.modeling_llama.LlamaRotaryEmbedding(self.model.config)
        self.model.model.rotary_emb = fresh  # its buffers are computed, not loaded
        weights = dict(checkpoint.tensors(dtype))
        if checkpoint.config.tie_word_embeddings:
            weights["lm_head.weight"] = weights["model.embed_tokens.weight"]
        self.model.load_state_dict(weights)
        self.model.tie_weights()
        self.model.eval()
        self.dtype = dtype

    @torch.inference_mode()
    def logits(self, token_ids: list[int]) -> torch.Tensor:
        """Logits after every token, [T, V]."""
        logits: torch.Tensor = self.model(torch.tensor([token_ids])).logits[0]
        return logits

    def generate(self, prompts: list[list[int]], max_tokens: int) -> list[list[int]]:
        """Greedy continuations of exactly `max_tokens`, as one batch padded on the left."""
        width = max(map(len, prompts))
        padded = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        out = self.model.generate(
            padded,
            attention_mask=mask,
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        generated: list[list[int]] = out[:, width:].tolist()
        return generated

    @torch.inference_mode()
    def prefill(self, token_ids: list[int]) -> None:
        """One forward pass over a prompt, with logits of the last token and a KV cache, as generate() does."""
        self.model(torch.tensor([token_ids]), use_cache=True, logits_to_keep=1)


def _config(config: ModelConfig) -> Any:
    return transformers.LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position,
        rms_norm_eps=config.rms_norm_eps,
        rope_theta=config.rope_theta,
        tie_word_embeddings=config.tie_word_embeddings,
        attn_implementation="sdpa",
    )
