"""To the last request's end, and what must be true of an engine then."""

from infra_lab import LLM
from infra_lab.engine.outputs import OutputDelta


def drain(llm: LLM) -> list[OutputDelta]:
    """Step until nobody is left; return all deltas."""
    deltas = list[OutputDelta]()
    while llm.core.has_work:
        deltas += llm.core.step()
    return deltas


def assert_drained(llm: LLM) -> None:
    scheduler = llm.core.scheduler
    assert not scheduler.requests
    assert not scheduler.running
    assert len(scheduler.waiting) == 0
    assert scheduler.blocks.num_free_blocks == scheduler.blocks.num_blocks
    scheduler.blocks.check_integrity([])
