"""Steps that overlap: the same tokens, and nothing lost, whatever happens while a step is computed."""

import asyncio
import threading
import time
from typing import Any

import pytest
import torch

import kernels
from infra_lab import LLM, SamplingParams
from infra_lab.clock import VirtualClock
from infra_lab.engine.async_engine import AsyncEngine
from infra_lab.engine.beam_search import beam_search
from infra_lab.engine.core import EngineCore
from infra_lab.engine.outputs import RequestOutput
from infra_lab.engine.programs import State, program
from infra_lab.engine.scoring import token_logprobs
from infra_lab.engine.torch_executor import TorchExecutor
from infra_lab.errors import ConfigError
from infra_lab.grammar import Grammar
from infra_lab.models.transformer import CausalLM
from infra_lab.paged_kv.block_manager import BlockCopy
from infra_lab.scheduler.plan import StepPlan
from infra_lab.scheduler.policies import POLICIES
from tests.engine.drained import assert_drained, drain
from tests.engine.tiny_engine import TEXTS as ALL_TEXTS
from tests.engine.tiny_engine import engine

TEXTS = ALL_TEXTS[:6]
GREEDY = SamplingParams(max_tokens=20, temperature=0.0, ignore_eos=True)
ALL_KINDS = [
    GREEDY,
    SamplingParams(max_tokens=20, temperature=0.9, top_p=0.95, seed=7, repetition_penalty=1.3, frequency_penalty=0.5),
    SamplingParams(max_tokens=20, temperature=1.0, seed=3, n=3),
    SamplingParams(max_tokens=20, temperature=0.8, seed=5, stop=["e", "on"], min_tokens=3, logprobs=2),
    SamplingParams(max_tokens=20, temperature=1.0, seed=8, grammar=Grammar("regex", "(yes|no)( (yes|no))*[.]")),
    SamplingParams(max_tokens=20, temperature=0.0, grammar=Grammar("regex", "yes|no"), ignore_eos=True, min_tokens=15),
]
"""One for each text."""


def told(outputs: list[RequestOutput]) -> list[Any]:
    """All that a caller sees, but times and how often the prefix cache was hit."""
    return [
        (sample.token_ids, sample.text, sample.finish_reason, sample.stop_reason, [p.token_id for p in sample.logprobs])
        for output in outputs
        for sample in output.samples
    ]


@pytest.fixture(scope="module")
def plain() -> dict[str, list[Any]]:
    """What an engine answers whose steps do not overlap."""
    llm = engine()
    return {"greedy": told(llm.generate(TEXTS, GREEDY)), "all kinds": told(llm.generate(TEXTS, ALL_KINDS))}


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({}, id="batched"),
        pytest.param({"max_num_seqs": 3, "max_batched_tokens": 16}, id="chunked"),
        pytest.param({"num_kv_blocks": 60}, id="preempted"),
        pytest.param({"prefix_index": "radix", "num_kv_blocks": 60}, id="radix tree, preempted"),
        pytest.param({"kv_reservation": "whole"}, id="reserved whole"),
        *(pytest.param({"policy": name, "max_model_len": 1024}, id=name) for name in POLICIES),
    ],
)
def test_the_same_answers(plain: dict[str, list[Any]], settings: dict[str, Any]) -> None:
    llm = engine(overlap_scheduling=True, **settings)
    for _ in range(2):  # the second time prefixes are cached
        assert told(llm.generate(TEXTS, GREEDY)) == plain["greedy"]
        assert told(llm.generate(TEXTS, ALL_KINDS)) == plain["all kinds"]
    if "num_kv_blocks" in settings:
        assert any(step.preempted for step in llm.recorder.steps), "the memory was meant to be too small"
    assert not llm.core.has_work
    assert_drained(llm)


def test_the_same_answers_from_graphs() -> None:
    settings = {"kv_cache_bytes": 1 << 20, "max_model_len": 256}
    texts, params = TEXTS[:2], SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True)
    with kernels.use("triton"):
        plain, overlapped = (engine(overlap_scheduling=on, **settings) for on in (False, True))
        assert told(plain.generate(texts, params)) == told(overlapped.generate(texts, params))
        graphs = overlapped.core.executor.graphs  # type: ignore[attr-defined]
        assert sum(graphs.num_runs.values()) > 0, "decode steps were meant to go through the graphs"


def test_the_next_step_is_planned_while_one_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model computes nothing until somebody has planned the step after, and until tokens were handed out."""
    llm = engine(overlap_scheduling=True)
    is_planned, schedule, forward = threading.Event(), llm.core.scheduler.schedule, CausalLM.forward
    llm.core.add(llm.encode("A"), GREEDY)
    num_waited = 0

    def watched_schedule(now_s: float = 0.0) -> StepPlan:
        plan = schedule(now_s)
        if plan.step > 0:
            is_planned.set()
        return plan

    def waiting_forward(*args: Any) -> torch.Tensor:
        nonlocal num_waited
        assert is_planned.wait(30), "nobody plans while this is computed"
        is_planned.clear()
        num_waited += 1
        return forward(*args)

    monkeypatch.setattr(llm.core.scheduler, "schedule", watched_schedule)
    monkeypatch.setattr(CausalLM, "forward", waiting_forward)
    num_deltas = sum(len(llm.core.step()) for _ in range(5))
    assert num_deltas == 5
    assert llm.core.has_work
    assert num_waited in (5, 6), "a sixth step is under way"
    llm.core.abort("request-0")
    is_planned.set()
    assert llm.core.has_work, "the step under way still writes to its blocks"
    assert llm.core.step() == []
    assert not llm.core.has_work
    assert_drained(llm)


def test_parts_of_a_step_add_up() -> None:
    llm = engine(overlap_scheduling=True)
    llm.generate(TEXTS, GREEDY)
    for before, step in zip(llm.recorder.steps, llm.recorder.steps[1:], strict=False):
        assert step.step == before.step + 1
        assert before.start_s + before.duration_s <= step.start_s
        assert set(step.timings_s) == {"schedule", "prepare", "forward", "sample", "update", "output"}
        assert sum(step.timings_s.values()) <= step.duration_s


def test_a_failing_step_ends_its_requests_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = engine(overlap_scheduling=True)
    first = [llm.core.add(llm.encode(text), GREEDY) for text in TEXTS[:2]]
    for _ in range(3):
        llm.core.step()
    third = llm.core.add(llm.encode(TEXTS[4]), GREEDY)
    executor = llm.core.executor
    assert isinstance(executor, TorchExecutor)
    with monkeypatch.context() as patch:
        patch.setattr(executor.sampler, "sample", lambda *_: _fail())
        with pytest.raises(RuntimeError, match="out of memory"):
            llm.core.step()
    ended = llm.core.failed("out of memory, say")
    assert sorted(delta.request_id for delta in ended) == first
    assert all(delta.finish_reason == "error" and delta.error == "out of memory, say" for delta in ended)
    deltas = drain(llm)
    alone = engine().generate([TEXTS[4]], GREEDY)[0]
    assert [token for delta in deltas for token in delta.token_ids] == alone.token_ids
    assert {delta.request_id for delta in deltas} == {third}
    assert_drained(llm)


def _fail() -> Any:
    raise RuntimeError("out of memory, say")


def test_a_launch_that_fails_is_told_after_the_step_before(monkeypatch: pytest.MonkeyPatch) -> None:
    llm = engine(overlap_scheduling=True)
    llm.core.add(llm.encode("A"), GREEDY)
    assert len(llm.core.step()) == 1
    monkeypatch.setattr(llm.core.executor, "_begin", lambda plan: _fail())
    assert len(llm.core.step()) == 1, "the step under way is not lost"
    with pytest.raises(RuntimeError, match="out of memory"):
        llm.core.step()
    monkeypatch.undo()
    assert [delta.finish_reason for delta in llm.core.failed("out of memory, say")] == ["error"]
    assert told(llm.generate(TEXTS, GREEDY)) == told(engine().generate(TEXTS, GREEDY))
    assert_drained(llm)


def test_interrupted_while_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C leaves a step behind that still computes; nobody's blocks are written while it does."""
    llm = engine(overlap_scheduling=True)
    is_running, forward, apply = threading.Event(), CausalLM.forward, llm.kv_memory.apply

    def slow_forward(*args: Any) -> torch.Tensor:
        is_running.set()
        time.sleep(0.05)
        logits = forward(*args)
        is_running.clear()
        return logits

    def watched_apply(copies: list[BlockCopy]) -> None:
        assert not is_running.is_set(), "the next step begins while the last one is computed"
        apply(copies)

    def interrupted(timeout: float | None = None) -> torch.Tensor:
        assert is_running.wait(30)
        raise KeyboardInterrupt

    expected = told(llm.generate(TEXTS, GREEDY))
    monkeypatch.setattr(CausalLM, "forward", slow_forward)
    monkeypatch.setattr(llm.kv_memory, "apply", watched_apply)
    with monkeypatch.context() as patch:
        patch.setattr("concurrent.futures.Future.result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate(TEXTS, GREEDY)
    assert told(llm.generate(TEXTS, GREEDY)) == expected
    assert not llm.core.has_work
    assert_drained(llm)


def test_an_id_that_is_used_again_while_its_last_step_is_computed() -> None:
    llm = engine(overlap_scheduling=True, clock=(clock := VirtualClock()))
    for name in ("first", "second"):
        llm.core.add(llm.encode("A"), GREEDY, request_id="same")
        clock.sleep(1.0)
        if name == "first":
            llm.core.step()
            llm.core.abort("same")
    last = [delta for delta in drain(llm) if delta.finish_reason][-1]
    assert last.metrics.first_scheduled_s is not None
    assert last.metrics.first_scheduled_s >= last.metrics.arrival_s + 1.0, "that was the first one's step"
    assert last.metrics.num_output_tokens == 20


def test_closing_waits_for_the_step_under_way() -> None:
    llm = engine(overlap_scheduling=True)
    llm.core.add(llm.encode(TEXTS[2]), GREEDY)
    llm.core.step()
    llm.close()
    llm.close()
    assert all(not thread.name.startswith("infra-lab-step") for thread in threading.enumerate() if thread.is_alive())


def test_many_streams_that_come_and_go() -> None:
    async def read(stream: AsyncEngine, index: int) -> list[int]:
        tokens: list[int] = []
        async for delta in stream.generate(TEXTS[index % len(TEXTS)], GREEDY):
            tokens += delta.token_ids
            if index % 4 == 3 and len(tokens) > index % 7:
                break  # its caller goes while its next token is computed
        return tokens

    async def main() -> None:
        served = AsyncEngine.start(
            "tiny", dtype="float32", device="cpu", block_size=8, overlap_scheduling=True, num_kv_blocks=120
        )
        found = await asyncio.gather(*(read(served, index) for index in range(24)))
        await served.shutdown()
        for index, tokens in enumerate(found):
            assert tokens == expected[index % len(TEXTS)][: len(tokens)]
            assert len(tokens) == (index % 7 + 1 if index % 4 == 3 else 20)
        assert served.core.scheduler.blocks.num_free_blocks == 120

    expected = [output.token_ids for output in engine().generate(TEXTS, GREEDY)]
    asyncio.run(asyncio.wait_for(main(), 60))


class TestWhatGoesByTheLatestStep:
    """Beam search, programs and scoring look at a step before they decide what comes next: no step is planned ahead."""

    def test_beam_search(self) -> None:
        found = [beam_search(llm, TEXTS[0], beam_width=3, max_tokens=8) for llm in self.engines()]
        assert found[0].token_ids == found[1].token_ids

    def test_programs(self) -> None:
        @program
        def ask(s: State, text: str) -> None:
            s += text
            s.select("kind", ["yes", "no", "perhaps"])
            s.gen("rest", max_tokens=6, temperature=0.0)

        plain, overlapped = self.engines()
        calls = [{"text": text} for text in TEXTS[:3]]
        expected, found = (ask.run_batch(llm, calls) for llm in (plain, overlapped))
        assert [run.text for run in found] == [run.text for run in expected]
        assert len(overlapped.recorder.steps) == len(plain.recorder.steps), "steps were spent on what had ended"

    def test_scoring(self) -> None:
        plain, overlapped = self.engines()
        request_id = overlapped.core.add(overlapped.encode(TEXTS[2]), GREEDY)
        overlapped.core.step()
        overlapped.core.abort(request_id)
        tokens = plain.encode(TEXTS[4])
        assert torch.equal(token_logprobs(plain, tokens), token_logprobs(overlapped, tokens))
        assert not overlapped.core.has_work

    def engines(self) -> tuple[LLM, LLM]:
        return engine(), engine(overlap_scheduling=True)


def test_not_with_speculation() -> None:
    with pytest.raises(ConfigError, match="leave one of the two off"):
        engine(overlap_scheduling=True, speculation="ngram")


def test_not_with_an_executor_that_cannot() -> None:
    class OneAfterTheOther:
        execute, close = TorchExecutor.execute, TorchExecutor.close

    core = engine().core
    with pytest.raises(ConfigError, match=r"launch\(\)"):
        EngineCore(core.scheduler, OneAfterTheOther(), core.tokenizer, vocab_size=9, clock=core.clock, overlap=True)  # type: ignore[arg-type]
