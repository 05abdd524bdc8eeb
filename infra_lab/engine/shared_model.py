"""Several engines on one model that is loaded: what a comparison of settings needs."""

from infra_lab.clock import Clock
from infra_lab.engine.core import EngineCore
from infra_lab.engine.llm import LLM
from infra_lab.engine.torch_executor import TorchExecutor
from infra_lab.paged_kv.block_manager import BlockManager
from infra_lab.paged_kv.kv_memory import KVMemory
from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.scheduler.scheduler import Scheduler


def core_with(llm: LLM, config: SchedulerConfig, clock: Clock | None = None, *, own_memory: bool = False) -> EngineCore:
    """Return an engine on a model that is loaded, with a scheduler of its own and no prefix cache.

    clock: that of the model's own engine, unless given.

    own_memory: compute in KV memory of its own, as large as the model's. Else all compute in that of the model's engine, so
    that no two may have requests at once.
    """
    blocks = llm.core.scheduler.blocks
    return EngineCore(
        Scheduler(config, BlockManager(blocks.num_blocks, blocks.block_size, enable_prefix_cache=False)),
        _with_own_memory(llm) if own_memory else llm.core.executor,
        llm.tokenizer,
        vocab_size=llm.model.config.vocab_size,
        clock=clock or llm.core.clock,
    )


def _with_own_memory(llm: LLM) -> TorchExecutor:
    blocks, resolved = llm.core.scheduler.blocks, llm.resolved
    memory = KVMemory.of_model(
        llm.model.config,
        num_blocks=blocks.num_blocks,
        block_size=blocks.block_size,
        dtype=resolved.kv_dtype,
        device=resolved.device,
    )
    return TorchExecutor(
        llm.model, memory, dtype=resolved.dtype, device=resolved.device, num_threads=resolved.num_threads
    )
