"""Random transformers models, saved as Hugging Face folders: the oracles of the model tests."""

from pathlib import Path
from typing import Any

import torch
import transformers

from infra_lab.engine.step_input import prepare_step
from infra_lab.models.loading import load_model
from infra_lab.models.transformer import CausalLM
from infra_lab.models.weights import open_checkpoint
from infra_lab.paged_kv.kv_memory import KVMemory
from infra_lab.quantization import LinearScheme
from infra_lab.sampling_params import SamplingParams
from infra_lab.scheduler.plan import Chunk, StepPlan
from infra_lab.scheduler.request import Request

CPU = torch.device("cpu")
CLASSES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM),
    "qwen2": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM),
}
SMALL = {
    "vocab_size": 300,
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,
    "eos_token_id": 2,
    "bos_token_id": 1,
}


def random_model(architecture: str, **options: Any) -> Any:
    """A transformers model whose every weight, norms and biases too, is random, so that none can be forgotten."""
    config_class, model_class = CLASSES[architecture]
    torch.manual_seed(0)
    model = model_class(config_class(**{**SMALL, **options})).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn_like(parameter) * (0.3 if "norm" in name else 0.08) + ("norm" in name))
    return model


def load_folder(folder: Path, scheme: LinearScheme | None = None, dtype: torch.dtype = torch.float32) -> CausalLM:
    """The same model through our own loader."""
    checkpoint = open_checkpoint(folder)
    return load_model(
        checkpoint,
        dtype=dtype,
        device=CPU,
        scheme=scheme or LinearScheme(),
        max_model_len=min(checkpoint.config.max_position, 2048),
    )


@torch.inference_mode()
def logits_of(model: CausalLM, token_ids: list[int], chunks: list[int] | None = None) -> torch.Tensor:
    """Logits after every token, [T, V], computed by our model in the given chunk sizes over a paged cache."""
    config, dtype = model.config, model.norm.dtype
    num_blocks = -(-len(token_ids) // 16)
    memory = KVMemory(
        num_layers=config.num_layers,
        num_blocks=num_blocks,
        block_size=16,
        num_kv_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        dtype=dtype,
        device=CPU,
    )
    request = Request(token_ids=token_ids, request_id="r", params=SamplingParams())
    request.block_table.extend(reversed(range(num_blocks)))
    parts, start = [], 0
    for length in chunks or [len(token_ids)]:
        plan = StepPlan(0, chunks=[Chunk(request, start, length)])
        inputs = prepare_step(plan, block_size=16, dtype=dtype, device=CPU).inputs
        inputs.sample_rows = torch.arange(length)
        parts.append(model.forward(inputs, memory.layers))
        start += length
    return torch.cat(parts)
