"""Several engines on one model that is loaded: what a comparison of settings needs."""

from dataclasses import replace
from typing import Any

from infra_lab.clock import Clock
from infra_lab.engine.core import EngineCore
from infra_lab.engine.llm import LLM
from infra_lab.paged_kv.block_manager import BlockManager
from infra_lab.scheduler.scheduler import Scheduler


def core_with(llm: LLM, clock: Clock | None = None, **settings: Any) -> EngineCore:
    """Return an engine on a model that is loaded, its cache empty and its scheduler with settings of its own.

    clock: that of the model's own engine, unless given. All compute in the same KV memory, so no two may have requests at once.
    Raises ConfigError as SchedulerConfig.
    """
    own = llm.core.scheduler.blocks
    blocks = BlockManager(own.num_blocks, own.block_size, enable_prefix_cache=own.enable_prefix_cache)
    scheduler = Scheduler(replace(llm.resolved.scheduler, **settings), blocks)
    return EngineCore(
        scheduler,
        llm.core.executor,
        llm.tokenizer,
        vocab_size=llm.model.config.vocab_size,
        clock=clock or llm.core.clock,
    )
