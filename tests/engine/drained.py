"""What must be true of an engine when its last request has ended."""

from infra_lab import LLM


def assert_drained(llm: LLM) -> None:
    scheduler = llm.core.scheduler
    assert not scheduler.requests
    assert not scheduler.running
    assert len(scheduler.waiting) == 0
    assert scheduler.blocks.num_free_blocks == scheduler.blocks.num_blocks
    scheduler.blocks.check_integrity([])
