"""Real records: from the real scheduler on a simulated executor, and from the bundled model."""

import pytest

from infra_lab import LLM, SamplingParams
from infra_lab.data import data_path
from infra_lab.engine.recorder import StepRecord
from infra_lab.models.tokenizer import Tokenizer, load_tokenizer
from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.simulator.executor import simulated_engine

SYSTEM = "You are a helpful assistant. Answer in one short sentence."


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return load_tokenizer(data_path("tiny"))


def run_simulated(tokenizer: Tokenizer, *, requests: int = 6, blocks: int = 36, samples: int = 3) -> list[StepRecord]:
    """Requests with one system prompt; the second has several samples, which share blocks and copy on write."""
    config = SchedulerConfig(max_model_len=1024, max_num_seqs=64, max_batched_tokens=96)
    engine = simulated_engine(config, tokenizer, vocab_size=tokenizer.vocab_size, num_kv_blocks=blocks, block_size=8)
    engine.recorder.keep_kv_maps = True
    for i in range(requests):
        prompt = tokenizer.encode(SYSTEM + f" question {i}?" * (1 + i % 3))
        count = samples if i == 1 else 1
        engine.add(prompt, SamplingParams(max_tokens=8 + 5 * (i % 4), ignore_eos=True, temperature=0.0, n=count))
    while engine.has_work:
        engine.step()
    return engine.recorder.steps


@pytest.fixture(scope="session")
def simulated_steps(tokenizer: Tokenizer) -> list[StepRecord]:
    steps = run_simulated(tokenizer)
    assert any(step.copies for step in steps)
    assert any(step.preempted for step in steps)
    assert any(admission.num_cached_tokens for step in steps for admission in step.admitted)
    return steps


@pytest.fixture(scope="session")
def tiny_steps() -> list[StepRecord]:
    llm = LLM("tiny", dtype="float32", device="cpu", block_size=16, num_kv_blocks=24, max_num_seqs=4)
    llm.recorder.keep_kv_maps = True
    llm.generate([SYSTEM, SYSTEM + " Why?"], SamplingParams(max_tokens=6, temperature=0.0, ignore_eos=True))
    return llm.recorder.steps
