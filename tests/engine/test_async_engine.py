"""Many callers on one engine: streams, cancellation, errors, shutdown."""

import asyncio
import threading
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest

from infra_lab import LLM, AsyncEngine, SamplingParams
from infra_lab.engine.async_engine import EngineClosedError
from infra_lab.engine.outputs import OutputDelta
from infra_lab.engine.sampling.grammar import BoundGrammar
from infra_lab.errors import InvalidRequestError, QueueFullError
from infra_lab.grammar import Grammar
from infra_lab.scheduler.plan import StepPlan, StepResult

SETTINGS: dict[str, Any] = {"dtype": "float32", "device": "cpu", "kv_cache_bytes": 16 << 20}
PROMPTS = ["def ", "The built-in", "import sys", "class Foo", "Return True if"] * 4
GREEDY = SamplingParams(max_tokens=12, temperature=0.0, ignore_eos=True)
LONG = SamplingParams(max_tokens=900, temperature=0.0, ignore_eos=True)


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 60))


async def collect(stream: AsyncIterator[OutputDelta]) -> list[OutputDelta]:
    return [delta async for delta in stream]


async def until_idle(engine: AsyncEngine) -> None:
    while engine.core.has_work:
        await asyncio.sleep(0.005)
    blocks = engine.core.scheduler.blocks
    assert blocks.num_free_blocks == blocks.num_blocks
    assert not engine._outboxes


def test_concurrent_streams_equal_the_synchronous_engine() -> None:
    expected = [output.token_ids for output in LLM("tiny", **SETTINGS).generate(PROMPTS, GREEDY)]

    async def main() -> None:
        engine = AsyncEngine.start("tiny", **SETTINGS)
        streams = [collect(engine.generate(prompt, GREEDY)) for prompt in PROMPTS]
        for deltas, tokens in zip(await asyncio.gather(*streams), expected, strict=True):
            assert [token for delta in deltas for token in delta.token_ids] == tokens
            assert deltas[-1].finish_reason == "length"
        assert max(len(step.chunks) for step in engine.recorder.steps) > 1, "they must have been batched"
        await until_idle(engine)
        await engine.shutdown()

    run(main())


def test_all_samples_of_one_request_arrive() -> None:
    async def main() -> None:
        engine = AsyncEngine.start("tiny", **SETTINGS)
        params = SamplingParams(n=3, max_tokens=8, temperature=1.0, seed=1, ignore_eos=True)
        deltas = await collect(engine.generate("def ", params))
        for index in range(3):
            mine = [delta for delta in deltas if delta.index == index]
            assert sum(len(delta.token_ids) for delta in mine) == 8
            assert [delta.finish_reason for delta in mine].count("length") == 1
        await engine.shutdown()

    run(main())


def test_a_caller_that_leaves_frees_its_blocks_and_disturbs_nobody() -> None:
    expected = LLM("tiny", **SETTINGS).generate("def ", GREEDY)[0].token_ids

    async def main() -> None:
        engine = AsyncEngine.start("tiny", **SETTINGS)
        leaving = engine.generate("import sys", LONG)
        await anext(leaving)
        staying = asyncio.create_task(collect(engine.generate("def ", GREEDY)))
        cancelled = asyncio.create_task(collect(engine.generate("class", LONG)))
        await asyncio.sleep(0.02)
        cancelled.cancel()
        await leaving.aclose()  # type: ignore[attr-defined]
        deltas = await staying
        assert [token for delta in deltas for token in delta.token_ids] == expected
        with pytest.raises(asyncio.CancelledError):
            await cancelled
        await until_idle(engine)
        await engine.shutdown()

    run(main())


def test_abort_from_outside_ends_the_stream() -> None:
    async def main() -> None:
        engine = AsyncEngine.start("tiny", **SETTINGS)
        stream = engine.generate("def ", LONG, request_id="mine")
        await anext(stream)
        await engine.abort("mine")
        await engine.abort("unknown")
        rest = await collect(stream)
        assert rest[-1].finish_reason == "abort"
        await until_idle(engine)
        await engine.shutdown()

    run(main())


def test_refusals_reach_their_caller_only() -> None:
    async def main() -> None:
        engine = AsyncEngine.start("tiny", max_waiting=1, max_num_seqs=1, **SETTINGS)
        with pytest.raises(InvalidRequestError, match="no tokens"):
            await collect(engine.generate([], GREEDY))
        first = engine.generate("def ", LONG, request_id="a")
        await anext(first)
        second = asyncio.create_task(collect(engine.generate("def ", GREEDY)))
        await asyncio.sleep(0.02)
        with pytest.raises(QueueFullError):
            await collect(engine.generate("def ", GREEDY))
        with pytest.raises(InvalidRequestError, match="'a' is in use"):
            await collect(engine.generate("def ", GREEDY, request_id="a"))
        await first.aclose()  # type: ignore[attr-defined]
        assert (await second)[-1].finish_reason == "length"
        await engine.shutdown()

    run(main())


class _Fails:
    """Fails at every step in which the wanted request takes part, else it is the real executor."""

    def __init__(self, real: Any, request_id: str) -> None:
        self.real, self.request_id = real, request_id

    def execute(self, plan: StepPlan) -> StepResult:
        if any(chunk.request.request_id == self.request_id for chunk in plan.chunks):
            raise RuntimeError("device lost")
        result: StepResult = self.real.execute(plan)
        return result

    def close(self) -> None:
        self.real.close()


def test_a_failing_step_is_an_error_for_its_requests_and_the_engine_goes_on() -> None:
    async def main() -> None:
        engine = AsyncEngine.start("tiny", **SETTINGS)
        engine.core.executor = _Fails(engine.core.executor, "bad")
        deltas = await collect(engine.generate("def ", GREEDY, request_id="bad"))
        assert deltas[-1].finish_reason == "error"
        assert deltas[-1].error == "RuntimeError: device lost"
        assert (await collect(engine.generate("def ", GREEDY)))[-1].finish_reason == "length"
        await until_idle(engine)
        await engine.shutdown()

    run(main())


def test_shutdown_drains_or_aborts() -> None:
    async def main() -> None:
        before = set(threading.enumerate())
        for drain, reason in ((True, "length"), (False, "abort")):
            engine = AsyncEngine.start("tiny", **SETTINGS)
            params = SamplingParams(max_tokens=200, temperature=0.0, ignore_eos=True)
            stream = engine.generate("def ", params)
            await anext(stream)
            reading = asyncio.create_task(collect(stream))
            await engine.shutdown(drain=drain)
            assert (await reading)[-1].finish_reason == reason
            with pytest.raises(EngineClosedError):
                await collect(engine.generate("def ", GREEDY))
        assert not [t for t in threading.enumerate() if t.name == "infra-lab-engine" and t not in before]

    run(main())


def test_a_grammar_is_compiled_while_the_engine_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("xgrammar")

    async def main() -> None:
        engine = AsyncEngine.start("tiny", **SETTINGS)
        begun, gate, compile_now = threading.Event(), threading.Event(), engine.core.grammars.compile

        def compile_late(grammar: Grammar) -> BoundGrammar:
            begun.set()
            assert gate.wait(30)
            return compile_now(grammar)

        monkeypatch.setattr(engine.core.grammars, "compile", compile_late)
        params = SamplingParams(max_tokens=9, grammar=Grammar.regex("abc"))
        constrained = asyncio.create_task(collect(engine.generate("def ", params)))
        try:
            assert await asyncio.to_thread(begun.wait, 30)
            free = await asyncio.wait_for(collect(engine.generate("def ", GREEDY)), 20)
            assert free[-1].finish_reason == "length"
        finally:
            gate.set()
        assert "".join(delta.text for delta in await constrained) == "abc"
        await engine.shutdown()

    run(main())


def test_one_taker_that_raises_does_not_cost_the_others_their_deltas() -> None:
    async def main() -> None:
        engine = AsyncEngine.start("tiny", **SETTINGS)

        def refuse(delta: OutputDelta) -> None:
            raise RuntimeError("I do not want it")

        raising = [engine.submit("def ", GREEDY, refuse) for _ in range(2)]
        taken = await collect(engine.generate("def ", GREEDY))
        assert sum(len(delta.token_ids) for delta in taken) == GREEDY.max_tokens
        for submitted in raising:
            assert await submitted.accepted
        await until_idle(engine)
        await engine.shutdown()

    run(main())


def test_a_caller_that_leaves_before_the_engine_looks_harms_nobody() -> None:
    """Cancelled while its request was still in the inbox: that killed the engine's thread, and everybody waited for ever."""

    async def main() -> None:
        engine = AsyncEngine.start("tiny", dtype="float32", device="cpu", kv_cache_bytes=1 << 20)
        gate = threading.Event()
        blocked = engine._submit(gate.wait)  # the engine is busy between two steps

        async def use() -> list[int]:
            params = SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True)
            return [token for delta in [d async for d in engine.generate("abc", params)] for token in delta.token_ids]

        gone = asyncio.ensure_future(use())
        await asyncio.sleep(0.05)
        gone.cancel()
        await asyncio.gather(gone, return_exceptions=True)
        gate.set()
        await asyncio.wrap_future(blocked)
        assert len(await asyncio.wait_for(use(), 30)) == 3
        assert not engine.core.scheduler.requests
        await engine.shutdown()

    asyncio.run(main())
