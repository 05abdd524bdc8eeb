"""From a configuration to an engine that is ready to step."""

import os
from typing import NamedTuple

import torch

from infra_lab.clock import Clock, WallClock
from infra_lab.engine.config import EngineConfig, ResolvedConfig, resolve_config
from infra_lab.engine.core import EngineCore
from infra_lab.engine.decode_graphs import DecodeGraphs
from infra_lab.engine.speculation.build import build_proposer, open_draft
from infra_lab.engine.torch_executor import TorchExecutor
from infra_lab.errors import ConfigError
from infra_lab.models.calibrate import calibrate
from infra_lab.models.fetch import resolve_model
from infra_lab.models.loading import load_model
from infra_lab.models.quantized_folder import QuantizedFolder
from infra_lab.models.tokenizer import load_tokenizer
from infra_lab.models.transformer import CausalLM
from infra_lab.models.weights import Checkpoint, open_checkpoint
from infra_lab.paged_kv.block_manager import BlockManager
from infra_lab.paged_kv.kv_memory import KVMemory, kv_block_bytes
from infra_lab.scheduler.scheduler import Scheduler

ONEDNN_KERNELS = 64
"""oneDNN generates code for every shape and keeps the latest 1,024 pieces, some 100 KB each. A continuous batch has another
shape at nearly every step: that would be 90 MB for shapes that hardly come again, and 64 are no slower."""


class Engine(NamedTuple):
    """The parts, for those who want to look inside."""

    core: EngineCore
    model: CausalLM
    kv_memory: KVMemory
    resolved: ResolvedConfig


def build_engine(config: EngineConfig, clock: Clock | None = None) -> Engine:
    """Find the model, check the settings, load the weights, allocate the KV memory, connect the parts.

    Raises ModelNotFoundError, UnsupportedModelError, CorruptModelError or ConfigError.
    """
    # Read by oneDNN when it computes for the first time; whoever has set it knows better.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(ONEDNN_KERNELS))
    clock = clock or WallClock()
    path = resolve_model(config.model)
    checkpoint = open_checkpoint(path, load_format=config.load_format)
    resolved = resolve_config(config, checkpoint.config)
    draft = open_draft(resolved.speculation, checkpoint.config, resolved.max_model_len)
    tokenizer = load_tokenizer(path)
    model = load_model(
        checkpoint,
        dtype=resolved.dtype,
        device=resolved.device,
        scheme=resolved.scheme,
        max_model_len=resolved.max_model_len,
    )
    if resolved.scheme.recipe.needs_calibration and not isinstance(checkpoint, QuantizedFolder):
        calibrate(model, tokenizer.encode, resolved.scheme.recipe)
    num_blocks = resolved.num_kv_blocks or _blocks_left_on_gpu(config, checkpoint, draft, resolved)
    kv_memory = KVMemory.of_model(
        checkpoint.config,
        num_blocks=num_blocks,
        block_size=config.block_size,
        dtype=resolved.kv_dtype,
        device=resolved.device,
    )
    blocks = BlockManager(
        num_blocks,
        config.block_size,
        enable_prefix_cache=config.enable_prefix_cache,
        prefix_index=config.prefix_index,
    )
    graphs = None
    if resolved.cuda_graphs:
        graphs = DecodeGraphs(
            model,
            kv_memory,
            max_num_seqs=config.max_num_seqs,
            max_model_len=resolved.max_model_len,
            device=resolved.device,
        )
    proposer = None
    if resolved.speculation is not None:
        proposer = build_proposer(
            resolved.speculation,
            draft,
            model,
            kv_memory,
            num_blocks=num_blocks,
            max_model_len=resolved.max_model_len,
            dtype=resolved.dtype,
            device=resolved.device,
        )
    executor = TorchExecutor(
        model,
        kv_memory,
        dtype=resolved.dtype,
        device=resolved.device,
        num_threads=resolved.num_threads,
        graphs=graphs,
        proposer=proposer,
    )
    core = EngineCore(
        Scheduler(resolved.scheduler, blocks),
        executor,
        tokenizer,
        vocab_size=checkpoint.config.vocab_size,
        clock=clock,
        overlap=config.overlap_scheduling,
    )
    return Engine(core, model, kv_memory, resolved)


def _blocks_left_on_gpu(
    config: EngineConfig, checkpoint: Checkpoint, draft: Checkpoint | None, resolved: ResolvedConfig
) -> int:
    """Blocks that fit into the GPU's share once the weights are loaded, less what a full step's activations take."""
    model = checkpoint.config
    free_bytes, total_bytes = torch.cuda.mem_get_info(resolved.device)
    widest = max(3 * model.intermediate_size, 4 * model.hidden_size, 2 * model.q_size)
    # What a step allocates, and the same again for the largest graph, which keeps memory of its own.
    rows = resolved.scheduler.max_batched_tokens + resolved.scheduler.max_num_seqs
    activations = rows * widest * 4
    logits = resolved.scheduler.max_num_seqs * model.vocab_size * 4 * 6
    budget = free_bytes - int(total_bytes * (1 - config.gpu_memory_fraction)) - activations - logits
    block_bytes = kv_block_bytes(model, resolved.kv_dtype, config.block_size)
    if draft is not None:  # its weights come later, its blocks are as many
        budget -= draft.config.num_parameters * resolved.dtype.itemsize
        block_bytes += kv_block_bytes(draft.config, resolved.dtype, config.block_size)
    num_blocks = budget // block_bytes
    if num_blocks < 1:
        raise ConfigError(
            f"after the weights, {free_bytes:,} of the GPU's {total_bytes:,} bytes are free, and gpu_memory_fraction = "
            f"{config.gpu_memory_fraction} leaves none for the KV cache; raise it, or choose a smaller model"
        )
    return num_blocks
