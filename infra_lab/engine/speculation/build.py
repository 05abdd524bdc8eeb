"""From settings to a proposer that is ready."""

import torch

from infra_lab.engine.speculation.config import Speculation
from infra_lab.engine.speculation.draft_model import DraftModelProposer, first_layers
from infra_lab.engine.speculation.ngram import NGramProposer
from infra_lab.engine.speculation.proposal import Proposer
from infra_lab.errors import ConfigError
from infra_lab.models.config import ModelConfig
from infra_lab.models.fetch import resolve_model
from infra_lab.models.loading import load_model
from infra_lab.models.transformer import CausalLM
from infra_lab.models.weights import Checkpoint, open_checkpoint
from infra_lab.paged_kv.kv_memory import KVMemory
from infra_lab.quantization import parse_scheme


def open_draft(speculation: Speculation | None, target: ModelConfig, max_model_len: int) -> Checkpoint | None:
    """Open the draft model's checkpoint, if there is one; ConfigError unless it shares the model's vocabulary and context."""
    if speculation is None or speculation.draft_model is None:
        return None
    draft = open_checkpoint(resolve_model(speculation.draft_model))
    if draft.config.vocab_size != target.vocab_size:
        raise ConfigError(
            f"draft model {speculation.draft_model!r} has {draft.config.vocab_size} tokens, the model {target.vocab_size}; "
            "a draft must share the model's vocabulary"
        )
    if draft.config.max_position < max_model_len:
        raise ConfigError(
            f"draft model {speculation.draft_model!r} has a context of {draft.config.max_position} tokens, and max_model_len "
            f"is {max_model_len}; lower it, or choose another draft"
        )
    return draft


def build_proposer(
    speculation: Speculation,
    draft: Checkpoint | None,
    model: CausalLM,
    kv_memory: KVMemory,
    *,
    num_blocks: int,
    max_model_len: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Proposer:
    """Connect who proposes to the engine's model and memory. Raises ConfigError for an exit layer that there is not."""
    if draft is not None:
        loaded = load_model(draft, dtype=dtype, device=device, scheme=parse_scheme(None), max_model_len=max_model_len)
        memory = KVMemory.of_model(
            draft.config, num_blocks=num_blocks, block_size=kv_memory.block_size, dtype=dtype, device=device
        )
        return DraftModelProposer(loaded, memory, dtype=dtype, device=device)
    if speculation.method == "early-exit":
        num_layers = len(model.layers)
        exit_layer = max(num_layers // 4, 1) if speculation.exit_layer is None else speculation.exit_layer
        if not 1 <= exit_layer < num_layers:
            raise ConfigError(
                f"exit_layer is {exit_layer}; the model has {num_layers} layers, so 1 to {num_layers - 1}"
            )
        first = first_layers(model, exit_layer)
        return DraftModelProposer(first, kv_memory, dtype=dtype, device=device, shares_cache=True)
    return NGramProposer(max_ngram=speculation.max_ngram, min_ngram=speculation.min_ngram)
