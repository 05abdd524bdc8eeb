"""Each planted bug breaks what its docstring says, and nothing else that a lesson looks at."""

import pytest

from infra_lab import LLM, SamplingParams
from infra_lab.course.planted_bugs import KV_BUGS, plant_kv_bug
from infra_lab.errors import ConfigError, InvalidRequestError

GREEDY = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True)
SAMPLED = SamplingParams(n=3, max_tokens=16, temperature=1.0, seed=3, ignore_eos=True)
FIRST = "The standard library has a module for "
OTHERS = ("Exceptions say that something went wrong", "A decorator returns another function", "Generators yield values")


def run(bug: str) -> tuple[list[list[int]], list[list[int]], int]:
    """Sampled texts, the text of a prompt before and after an eviction, and how many blocks never came home."""
    llm = LLM("tiny", dtype="float32", device="cpu", block_size=8, num_kv_blocks=16)
    plant_kv_bug(llm, bug)
    samples = [sample.token_ids for sample in llm.generate(["Return the number of items in all."], SAMPLED)[0].samples]
    texts = [llm.generate([FIRST], GREEDY)[0].token_ids]
    for other in OTHERS:
        llm.generate([other], GREEDY)
    texts.append(llm.generate([FIRST], GREEDY)[0].token_ids)
    return samples, texts, llm.core.scheduler.blocks.num_blocks - llm.core.scheduler.blocks.num_free_blocks


def test_each_bug_has_symptoms_of_its_own() -> None:
    samples, texts, lost = run("none")
    assert texts[0] == texts[1]
    assert lost == 0
    broken = {}
    for bug in KV_BUGS:
        bad_samples, bad_texts, bad_lost = run(bug)
        broken[bug] = (bad_samples != samples, bad_texts != texts, bad_lost > 0)
    assert broken == {
        "none": (False, False, False), "A": (False, False, True), "B": (True, False, False), "C": (False, True, False)
    }  # fmt: skip


def test_refusals() -> None:
    llm = LLM("tiny", dtype="float32", device="cpu", num_kv_blocks=16)
    with pytest.raises(ConfigError, match="unknown bug 'Z'; known: none, A, B, C"):
        plant_kv_bug(llm, "Z")
    llm.core.add([1, 2], GREEDY)
    with pytest.raises(InvalidRequestError, match="1 requests are open"):
        plant_kv_bug(llm, "A")
