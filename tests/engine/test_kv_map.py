"""The picture of the KV pool: every block's owners, contents and state, against the block tables themselves."""

from infra_lab import LLM, SamplingParams
from infra_lab.engine.kv_map import KVMap
from infra_lab.paged_kv.snapshot import BlockState

GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)


def engine(**settings: object) -> LLM:
    llm = LLM("tiny", dtype="float32", device="cpu", block_size=4, num_kv_blocks=32, **settings)
    llm.recorder.keep_kv_maps = True
    return llm


def maps_of(llm: LLM) -> list[KVMap]:
    maps = [step.kv_map for step in llm.recorder.steps if step.kv_map is not None]
    assert len(maps) == len(llm.recorder.steps)
    return maps


def test_a_block_holds_what_its_request_has_computed() -> None:
    llm = engine()
    prompt = llm.encode("abcdefghij")  # 10 tokens / 4 = 2 full blocks + 2
    llm.core.add(prompt, GREEDY, request_id="a")
    llm.core.step()
    (request,) = llm.core.scheduler.running
    kv_map = maps_of(llm)[0]
    assert [kv_map.blocks[block].token_ids for block in request.block_table] == [
        tuple(prompt[:4]), tuple(prompt[4:8]), tuple(prompt[8:])]  # fmt: skip
    assert [kv_map.blocks[block].is_matchable for block in request.block_table] == [True, True, False]
    assert [use for block in request.block_table for use in kv_map.blocks[block].users] == [
        ("a", 0, 4), ("a", 1, 4), ("a", 2, 2)]  # fmt: skip
    assert (kv_map.stored_tokens, kv_map.reserved_tokens) == (10, 12)
    assert (kv_map.count(BlockState.USED), kv_map.count(BlockState.FREE)) == (3, 29)


def test_a_shared_block_counts_once_and_names_all_its_users() -> None:
    llm = engine()
    llm.generate(["abcdefghij"], SamplingParams(n=3, max_tokens=6, temperature=1.0, seed=1, ignore_eos=True))
    shared = [kv_map for kv_map in maps_of(llm) if any(block.ref_count == 3 for block in kv_map.blocks)]
    assert shared
    for kv_map in maps_of(llm):
        assert all(block.ref_count == len(block.users) for block in kv_map.blocks)
        assert kv_map.stored_tokens <= kv_map.reserved_tokens
    assert sum(step.num_copies for step in llm.recorder.steps) == 2  # three writers, the last one keeps the original
    assert all(len(step.copies) == step.num_copies for step in llm.recorder.steps)


def test_a_cached_block_remembers_its_tokens_until_it_is_evicted() -> None:
    llm = engine()
    prompt = llm.encode("the same beginning, ")  # 20 tokens = 5 blocks
    llm.generate([prompt], GREEDY)
    last = maps_of(llm)[-1]
    cached = [block for block in last.blocks if block.state is BlockState.CACHED]
    assert {block.token_ids for block in cached} >= {tuple(prompt[i : i + 4]) for i in range(0, 20, 4)}
    assert all(not block.users and block.is_matchable for block in cached)
    assert sorted(last.eviction_order) == [i for i, block in enumerate(last.blocks) if block.state is BlockState.CACHED]
    for i in range(6):  # 6 · 8 blocks: everything older goes
        llm.generate([llm.encode(f"{i} other text, longer")], GREEDY)
    later = maps_of(llm)[-1]
    assert tuple(prompt[:4]) not in {block.token_ids for block in later.blocks}


def test_nothing_is_kept_unless_asked_for() -> None:
    llm = LLM("tiny", dtype="float32", device="cpu", kv_cache_bytes=1 << 20)
    llm.generate(["abc"], GREEDY)
    assert all(step.kv_map is None for step in llm.recorder.steps)
