"""The engine as a user meets it: stops, limits, streams, errors, aborts."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from infra_lab import LLM, SamplingParams
from infra_lab.engine.beam_search import beam_search
from infra_lab.engine.chrome_trace import write_chrome_trace
from infra_lab.errors import ConfigError, InvalidRequestError, ModelNotFoundError, QueueFullError
from infra_lab.models.transformer import CausalLM
from infra_lab.scheduler.plan import StepPlan, StepResult
from tests.engine.drained import drain

PROMPT = "The built-in function len returns"


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("tiny", dtype="float32", device="cpu", kv_cache_bytes=32 << 20)


def greedy(llm: LLM, **options: object) -> str:
    return llm.generate(PROMPT, SamplingParams(temperature=0.0, **{"max_tokens": 40, "ignore_eos": True, **options}))[
        0
    ].text  # type: ignore[arg-type]


def test_stop_strings_cut_the_text_and_end_the_request(llm: LLM) -> None:
    whole = greedy(llm)
    stop = whole[17:21]
    output = llm.generate(PROMPT, SamplingParams(temperature=0.0, max_tokens=40, stop=[stop]))[0]
    assert output.text == whole[: whole.index(stop)]
    assert output.finish_reason == "stop"
    assert output.samples[0].stop_reason == stop
    assert len(output.token_ids) <= 25, "generation must not go on after the stop string"
    assert greedy(llm, stop=[stop], include_stop=True) == whole[: whole.index(stop) + len(stop)]


def test_a_stop_string_is_never_half_shown(llm: LLM) -> None:
    whole = greedy(llm)
    stop = whole[10:22]
    shown = ""
    for delta in llm.stream(PROMPT, SamplingParams(temperature=0.0, max_tokens=40, stop=[stop])):
        shown += delta.text
        assert whole[: whole.index(stop)].startswith(shown)
    assert shown == whole[: whole.index(stop)]


def test_stop_tokens_and_minimum_length(llm: LLM) -> None:
    free = llm.generate(PROMPT, SamplingParams(temperature=0.0, max_tokens=40, ignore_eos=True))[0].token_ids
    token = free[5]
    stopped = llm.generate(PROMPT, SamplingParams(temperature=0.0, max_tokens=40, stop_token_ids=[token]))[0]
    assert stopped.token_ids == free[: free.index(token) + 1]
    assert stopped.samples[0].stop_reason == token
    assert stopped.finish_reason == "stop"
    later = llm.generate(PROMPT, SamplingParams(temperature=0.0, max_tokens=40, min_tokens=20, stop_token_ids=[token]))[
        0
    ]
    assert len(later.token_ids) >= 20
    assert token not in later.token_ids[:19]


def test_max_tokens_and_the_context_end_with_length(llm: LLM) -> None:
    output = llm.generate(PROMPT, SamplingParams(temperature=0.0, max_tokens=1))[0]
    assert len(output.token_ids) == 1
    assert output.finish_reason == "length"
    short = LLM("tiny", dtype="float32", device="cpu", max_model_len=48, kv_cache_bytes=8 << 20)
    output = short.generate(PROMPT, SamplingParams(temperature=0.0, max_tokens=None, ignore_eos=True))[0]
    assert len(output.token_ids) == 48 - len(output.prompt_token_ids)
    assert output.finish_reason == "length"


def test_stream_equals_generate(llm: LLM) -> None:
    params = SamplingParams(temperature=0.8, seed=3, max_tokens=60, logprobs=2)
    llm.generate(PROMPT, params)  # from here on the prefix cache has the prompt, for both
    whole = llm.generate(PROMPT, params)[0]
    deltas = list(llm.stream(PROMPT, params))
    assert "".join(delta.text for delta in deltas) == whole.text
    assert [token for delta in deltas for token in delta.token_ids] == whole.token_ids
    assert [entry for delta in deltas for entry in delta.logprobs] == whole.logprobs
    assert [delta.finish_reason for delta in deltas[:-1]] == [None] * (len(deltas) - 1)
    assert deltas[-1].finish_reason == whole.finish_reason


def test_logprobs_are_the_models_own(llm: LLM) -> None:
    entries = llm.generate(PROMPT, SamplingParams(temperature=0.0, max_tokens=5, logprobs=3))[0].logprobs
    assert len(entries) == 5
    for entry in entries:
        assert entry.rank == 1
        assert entry.top[0] == (entry.token_id, entry.logprob)
        assert len(entry.top) == 3
        assert sum(torch.tensor([value for _, value in entry.top]).exp()) <= 1.0


def test_metrics_add_up(llm: LLM) -> None:
    metrics = llm.generate(PROMPT, SamplingParams(temperature=0.0, max_tokens=10, ignore_eos=True))[0].metrics
    assert metrics.num_output_tokens == 10
    assert metrics.ttft_s is not None
    assert metrics.tpot_s is not None
    assert metrics.queue_s is not None
    assert metrics.e2e_s is not None
    assert 0 <= metrics.queue_s <= metrics.ttft_s <= metrics.e2e_s
    assert metrics.ttft_s + 9 * metrics.tpot_s == pytest.approx(metrics.e2e_s)


def test_closing_a_stream_frees_its_blocks(llm: LLM) -> None:
    stream = llm.stream(PROMPT, SamplingParams(max_tokens=100, temperature=0.0, n=3))
    next(stream)
    stream.close()
    blocks = llm.core.scheduler.blocks
    assert blocks.num_free_blocks == blocks.num_blocks
    assert not llm.core.has_work


def test_streams_and_whoever_else_steps_the_engine_each_get_their_own(llm: LLM) -> None:
    params = SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True)
    texts = [PROMPT, "def add(a, b):"]
    alone = [output.text for output in llm.generate(texts, params)]
    streams = [llm.stream(text, params) for text in texts]
    got = [[next(stream)] for stream in streams]
    beam_search(llm, PROMPT, beam_width=2, max_tokens=3)
    got[0].append(next(streams[0]))
    llm.core.add(llm.encode("company"), params)
    assert llm.generate(texts[1], SamplingParams(temperature=0.0, max_tokens=5, ignore_eos=True))[0].text
    for deltas, stream in zip(got, streams, strict=True):
        deltas += stream
    assert ["".join(delta.text for delta in deltas) for deltas in got] == alone
    assert [deltas[-1].finish_reason for deltas in got] == ["length", "length"]
    assert [len(deltas) for deltas in got] == [30, 30]
    drain(llm)  # the company


def test_a_stream_hears_of_a_step_that_failed_in_another_call() -> None:
    llm = LLM("tiny", dtype="float32", device="cpu", kv_cache_bytes=32 << 20)
    stream = llm.stream(PROMPT, SamplingParams(temperature=0.0, max_tokens=30, ignore_eos=True))
    first = next(stream)
    llm.core.executor = _FailsOnce(llm.core.executor)
    with pytest.raises(RuntimeError, match="out of memory"):
        llm.generate("another one")
    last = list(stream)
    assert [delta.finish_reason for delta in (first, *last)] == [None, "error"]
    assert last[0].error is not None
    assert "another call" in last[0].error
    assert not llm.core.has_work
    assert greedy(llm)


def test_a_stream_hears_of_an_abort_from_outside(llm: LLM) -> None:
    stream = llm.stream(PROMPT, SamplingParams(temperature=0.0, max_tokens=30, n=2))
    llm.core.abort(next(stream).request_id)
    assert [delta.finish_reason for delta in list(stream)[-2:]] == ["abort", "abort"]


def test_recorder_tells_what_happened(llm: LLM, tmp_path: Path) -> None:
    llm.recorder.clear()
    outputs = llm.generate([PROMPT, PROMPT + " the"], SamplingParams(temperature=0.0, max_tokens=6, ignore_eos=True))
    steps = llm.recorder.steps
    computed = sum(step.num_tokens for step in steps)
    cached = sum(admission.num_cached_tokens for step in steps for admission in step.admitted)
    stored = sum(len(output.prompt_token_ids) + len(output.token_ids) - 1 for output in outputs)
    assert computed + cached == stored
    ended = [ending.request_id for step in steps for ending in step.finished]
    assert sorted(ended) == sorted(output.request_id for output in outputs)
    sampled = [chunk.token_id for step in steps for chunk in step.chunks if chunk.request_id == outputs[0].request_id]
    assert [token for token in sampled if token is not None] == outputs[0].token_ids
    for step in steps:
        parts = sum(step.timings_s.values())
        assert parts <= step.duration_s + 1e-6
        assert {"schedule", "prepare", "forward", "sample", "update", "output"} <= step.timings_s.keys()
    trace = tmp_path / "trace.json"
    write_chrome_trace(steps, trace)
    events = json.loads(trace.read_text())["traceEvents"]
    slices = [event for event in events if event["ph"] == "X" and event["name"].startswith("step ")]
    assert len(slices) == len(steps)
    assert all(event["dur"] >= 0 for event in events if event["ph"] == "X")
    assert list(tmp_path.iterdir()) == [trace]


class TestBadInput:
    @pytest.mark.parametrize(
        ("prompt", "params", "message"),
        [
            ([], SamplingParams(), "no tokens"),
            ([5] * 2000, SamplingParams(), r"2000 tokens, .* context of 1024"),
            ([5, 99_999], SamplingParams(), "token id 99999 is outside the vocabulary of 272"),
            ([5], SamplingParams(logit_bias={300: 1.0}), "logit_bias names token 300"),
            ([5], SamplingParams(stop_token_ids=[-1]), "stop_token_ids names token -1"),
            ([5], SamplingParams(n=1000), "n = 1000 samples"),
        ],
    )
    def test_requests(self, llm: LLM, prompt: list[int], params: SamplingParams, message: str) -> None:
        with pytest.raises(InvalidRequestError, match=message):
            llm.core.add(prompt, params)
        assert not llm.core.has_work

    def test_one_bad_prompt_among_good_ones_leaves_nothing_behind(self, llm: LLM) -> None:
        with pytest.raises(InvalidRequestError):
            llm.generate([PROMPT, [5] * 2000], SamplingParams(max_tokens=4))
        assert not llm.core.has_work
        assert llm.core.scheduler.blocks.num_free_blocks == llm.core.scheduler.blocks.num_blocks

    def test_a_request_that_can_never_fit_names_the_numbers(self) -> None:
        small = LLM("tiny", dtype="float32", device="cpu", num_kv_blocks=4, block_size=16)
        with pytest.raises(InvalidRequestError, match=r"129 tokens in the KV cache, 9 blocks of 16, .* has 4"):
            small.core.add([5] * 30, SamplingParams(max_tokens=100))
        assert small.generate([[5] * 30], SamplingParams(max_tokens=34, ignore_eos=True))[0].finish_reason == "length"

    def test_queue_limit(self) -> None:
        small = LLM("tiny", dtype="float32", device="cpu", max_waiting=2, kv_cache_bytes=4 << 20)
        for _ in range(2):
            small.core.add([5], SamplingParams(max_tokens=2))
        with pytest.raises(QueueFullError, match="2 requests wait already, and max_waiting is 2"):
            small.core.add([5], SamplingParams(max_tokens=2))

    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"dtype": "float8"}, "unknown dtype 'float8'; known: auto, float32"),
            ({"device": "warp"}, "unknown device 'warp'"),
            ({"quantization": "int1"}, "unknown quantization 'int1'; known: int8"),
            ({"max_model_len": 5000}, "max_model_len is 5000; the model's context is 1 to 1024"),
            ({"block_size": 0}, "block_size is 0"),
            ({"num_kv_blocks": 0}, "num_kv_blocks is 0"),
            ({"kv_cache_bytes": 10}, "less than one block"),
            ({"max_num_seqs": 2000, "max_batched_tokens": 100}, "raise the budget or lower max_num_seqs"),
            ({"max_prefill_chunk": 4096}, "max_prefill_chunk is 4096"),
            ({"policy": "continuous", "max_batched_tokens": 512}, "policy continuous computes a prompt whole"),
            ({"max_waiting": 0}, "max_waiting is 0"),
        ],
    )
    def test_settings(self, settings: dict[str, object], message: str) -> None:
        with pytest.raises(ConfigError, match=message):
            LLM("tiny", **settings)

    def test_no_cuda(self) -> None:
        if torch.cuda.is_available():
            pytest.skip("this machine has a CUDA GPU")
        with pytest.raises(ConfigError, match="no CUDA GPU here"):
            LLM("tiny", device="cuda")

    def test_unknown_model(self) -> None:
        with pytest.raises(ModelNotFoundError, match="smollm2-135m"):
            LLM("gpt-17")


class _FailsOnce:
    """An executor that fails at its first step and then is the real one."""

    def __init__(self, real: object) -> None:
        self.real, self.has_failed = real, False

    def execute(self, plan: StepPlan) -> StepResult:
        if not self.has_failed:
            self.has_failed = True
            raise RuntimeError("out of memory, say")
        return self.real.execute(plan)  # type: ignore[attr-defined, no-any-return]

    def close(self) -> None: ...


def test_a_failing_step_ends_its_requests_and_not_the_engine() -> None:
    llm = LLM("tiny", dtype="float32", device="cpu", max_num_seqs=2, kv_cache_bytes=8 << 20)
    llm.core.executor = _FailsOnce(llm.core.executor)
    ids = [llm.core.add([5, 6, 7], SamplingParams(max_tokens=4, n=n)) for n in (2, 1, 1)]
    with pytest.raises(RuntimeError, match="out of memory"):
        llm.core.step()
    ended = llm.core.failed("out of memory, say")
    assert {delta.request_id for delta in ended} == set(ids[:1]) | ({ids[1]} if len(ended) > 2 else set())
    assert all(delta.finish_reason == "error" and delta.error == "out of memory, say" for delta in ended)
    rest = [delta.request_id for delta in drain(llm) if delta.finish_reason]
    assert ids[2] in rest
    assert llm.core.scheduler.blocks.num_free_blocks == llm.core.scheduler.blocks.num_blocks


def test_logits_that_are_not_numbers_end_one_request_only() -> None:
    llm = LLM("tiny", dtype="float32", device="cpu", kv_cache_bytes=8 << 20)
    bias = {token: float("-inf") for token in range(272)}
    bad = llm.core.add([5, 6], SamplingParams(max_tokens=4, logit_bias=bias, n=2))
    good = llm.core.add([5, 6], SamplingParams(max_tokens=4, temperature=0.0, ignore_eos=True))
    endings = {(delta.request_id, delta.index): delta for delta in drain(llm) if delta.finish_reason}
    assert endings[bad, 0].finish_reason == "error"
    assert endings[bad, 1].finish_reason == "error"
    assert "ruled out every token" in (endings[bad, 0].error or "")
    assert endings[good, 0].finish_reason == "length"
    assert not llm.core.has_work


def test_threads_are_the_engines_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small model computes on one thread, and the process's setting is as before after each step."""
    assert LLM("tiny", kv_cache_bytes=1 << 20).resolved.num_threads == 1
    llm = LLM("tiny", kv_cache_bytes=1 << 20, num_threads=2)
    before, seen, forward = torch.get_num_threads(), [], CausalLM.forward

    def watched(*args: Any) -> torch.Tensor:
        seen.append(torch.get_num_threads())
        return forward(*args)

    monkeypatch.setattr(CausalLM, "forward", watched)
    torch.set_num_threads(3)
    try:
        llm.generate(["abc"], SamplingParams(max_tokens=2))
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
    assert seen == [2, 2]
    with pytest.raises(ConfigError, match="num_threads is 0"):
        LLM("tiny", num_threads=0)
