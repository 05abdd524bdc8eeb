"""Several engines on one model that is loaded: what a comparison of settings needs."""

from infra_lab.clock import Clock
from infra_lab.engine.core import EngineCore
from infra_lab.engine.llm import LLM
from infra_lab.paged_kv.block_manager import BlockManager
from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.scheduler.scheduler import Scheduler


def core_with(llm: LLM, config: SchedulerConfig, clock: Clock | None = None) -> EngineCore:
    """Return an engine on a model that is loaded, with a scheduler of its own and no prefix cache.

    clock: that of the model's own engine, unless given. All compute in the same KV memory, so no two may have requests at once.
    """
    memory = llm.core.scheduler.blocks
    return EngineCore(
        Scheduler(config, BlockManager(memory.num_blocks, memory.block_size, enable_prefix_cache=False)),
        llm.core.executor,
        llm.tokenizer,
        vocab_size=llm.model.config.vocab_size,
        clock=clock or llm.core.clock,
    )
