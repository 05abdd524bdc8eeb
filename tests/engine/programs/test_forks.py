"""Branches: side by side in the engine, on the blocks of what they share."""

from typing import Any

import pytest

from infra_lab import LLM, SamplingParams
from infra_lab.engine.programs import State, program
from infra_lab.errors import InvalidRequestError
from infra_lab.paged_kv.block_manager import BlockManager
from tests.engine.drained import assert_drained
from tests.engine.programs.engines import BLOCK, engine, whole_blocks

PREFIX = "Return a new object with fields"  # 31 bytes
TOPICS = (" of", " if", " to")
GREEDY: dict[str, Any] = {"temperature": 0.0, "max_tokens": 8}


@program(**GREEDY)
def branches(s: State) -> list[str]:
    s += PREFIX
    forks = s.fork(len(TOPICS))
    for fork, topic in zip(forks, TOPICS, strict=True):
        fork += topic
        fork.gen("tip")
    s.join(forks)
    s += " and"
    s.gen("own")
    return [fork["tip"] for fork in forks]


def by_hand(prompt: str) -> str:
    return engine().generate(prompt, SamplingParams(**GREEDY))[0].text


@pytest.mark.parametrize("options", [{}, {"prefix_index": "radix"}, {"enable_prefix_cache": False}], ids=str)
def test_each_branch_goes_on_from_the_fork(options: dict[str, Any]) -> None:
    llm = engine(**options)
    run = branches.run(llm)
    assert run.value == [by_hand(PREFIX + topic) for topic in TOPICS]
    assert run.text == PREFIX + " and" + by_hand(PREFIX + " and")
    assert set(run.outputs) == {"own"}, "a branch's variables are its own"
    assert_drained(llm)


def test_branches_run_in_the_same_steps() -> None:
    llm = engine()
    run = branches.run(llm)
    requests = [{chunk.request_id for chunk in step.chunks} for step in llm.recorder.steps]
    together = [step for step in requests if len(step) == len(TOPICS)]
    assert len(together) == 8 - 1, "the first one begins a step before the others, and all take 8"
    assert run.stats.num_steps == len(requests) == 9 + 8, "then the parent goes on"


def test_the_prefix_is_computed_once() -> None:
    run = branches.run(engine())
    # 31 tokens, and every branch begins with the same blank: 32 = 8 blocks of 4, which the first of them computes.
    assert len(PREFIX) == 31
    assert run.stats.prompt_tokens == 3 * 34 + 35
    assert run.stats.cached_tokens == 2 * 32 + 32
    uncached = branches.run(engine(enable_prefix_cache=False))
    assert uncached.stats.computed_tokens == run.stats.prompt_tokens == run.stats.computed_tokens + 96


def test_a_radix_index_shares_the_last_block_too() -> None:
    @program(**GREEDY)
    def after_a_gen(s: State) -> None:
        s += PREFIX
        s.gen("own")
        for fork in s.fork(2):
            fork += "!"
            fork.gen()

    # 31 + 8 tokens, the last of which has no KV: 38 = 9 blocks of 4 + 2, and then one character each.
    assert after_a_gen.run(engine()).stats.cached_tokens == 2 * 36
    assert after_a_gen.run(engine(prefix_index="radix")).stats.cached_tokens >= 38 + 38


def test_branches_share_physical_blocks() -> None:
    llm = engine()
    tables: list[list[list[int]]] = []
    original = llm.core.scheduler.schedule

    def watch(now_s: float = 0.0) -> Any:
        plan = original(now_s)
        tables.append([list(request.block_table) for request in llm.core.scheduler.running])
        return plan

    llm.core.scheduler.schedule = watch  # type: ignore[method-assign]
    branches.run(llm)
    first, second, third = next(step for step in tables if len(step) == 3)
    assert first[:8] == second[:8] == third[:8]
    assert len({first[8], second[8], third[8]}) == 3


def test_nested_forks(llm: LLM) -> None:
    @program(**GREEDY)
    def tree(s: State) -> dict[str, str]:
        s += "Return"
        s.gen("root", max_tokens=3)
        found = {}
        for outer, name in zip(s.fork(2), "ab", strict=True):
            outer += f" {name}"
            outer.gen("middle", max_tokens=4)
            leaves = outer.fork(2)
            for leaf, label in zip(leaves, "xy", strict=True):
                leaf += f" {label}"
                leaf.gen("leaf", max_tokens=5)
                found[name + label] = leaf
        s.join(list(found.values()))
        assert {leaf["root"] for leaf in found.values()} == {s["root"]}, "a fork sees what was made before it"
        return {path: leaf.text for path, leaf in found.items()}

    run = tree.run(llm)
    root = by_hand("Return")[:3]
    assert run.text == "Return" + root
    for path, text in (run.value or {}).items():
        middle_prompt = f"Return{root} {path[0]}"
        leaf_prompt = f"{middle_prompt}{by_hand(middle_prompt)[:4]} {path[1]}"
        assert text == leaf_prompt + by_hand(leaf_prompt)[:5]
    assert len(run.value or {}) == 4
    assert_drained(llm)


def test_what_nobody_waits_for_is_done_too(llm: LLM) -> None:
    kept: list[State] = []

    @program(**GREEDY)
    def careless(s: State) -> None:
        s += PREFIX
        kept.extend(s.fork(2))
        for fork in kept:
            fork.gen("tip")

    run = careless.run(llm)
    assert run.stats.num_requests == 2
    assert [fork["tip"] for fork in kept] == [by_hand(PREFIX)] * 2
    with pytest.raises(InvalidRequestError, match="has ended"):
        kept[0].gen("more")
    assert_drained(llm)


@pytest.mark.parametrize("num", [0, -1, 1.0, True, "2"])
def test_a_fork_into_what_is_no_number_is_refused(llm: LLM, num: Any) -> None:
    @program
    def wrong(s: State) -> None:
        s.fork(num)

    with pytest.raises(InvalidRequestError, match="at least 1"):
        wrong.run(llm)


@pytest.mark.parametrize("num_kv_blocks", [13, 16, 24])
def test_preempted_branches_write_the_same(num_kv_blocks: int) -> None:
    """13 blocks = 52 tokens hold one branch of 34 + 8 tokens, and a second one's own blocks only at first."""
    roomy = branches.run(engine())
    llm = engine(num_kv_blocks=num_kv_blocks)
    run = branches.run(llm)
    assert (run.value, run.text) == (roomy.value, roomy.text)
    assert_drained(llm)


def test_a_preemption_happens_in_the_test_above() -> None:
    llm = engine(num_kv_blocks=13)
    branches.run(llm)
    assert any(step.preempted for step in llm.recorder.steps)


def test_whole_blocks_are_what_the_manager_finds() -> None:
    """The arithmetic of these tests, against the block manager itself."""
    from infra_lab.paged_kv.sequence import KVSequence

    for length in range(1, 14):
        manager = BlockManager(8, BLOCK)
        seq = KVSequence(list(range(length)))
        manager.open(seq)
        manager.grow(seq, length, 0)
        manager.commit(seq, length)
        assert manager.match(KVSequence(list(range(length)))) == whole_blocks(length)


@pytest.fixture(scope="module")
def llm() -> LLM:
    return engine()
