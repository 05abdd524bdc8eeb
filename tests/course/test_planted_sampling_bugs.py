"""Each planted bug breaks the promise that the lesson says, and no other; without one all hold."""

import pytest
import torch

from infra_lab import LLM, SamplingParams
from infra_lab.course.planted_sampling_bugs import SAMPLING_BUGS, planted_sampling_bug
from infra_lab.errors import ConfigError
from infra_lab.grammar import Grammar
from infra_lab.widgets.sampling_panel import filter_tokens, logits_along

BROKEN = {
    "none": set(),
    "A": {"characters are whole"},
    "B": {"no stop string is shown"},
    "C": {"a seed fixes the sample"},
    "D": {"the nucleus is of what is drawn from"},
}


@pytest.fixture(scope="module")
def llm() -> LLM:
    return LLM("tiny", dtype="float32", num_kv_blocks=64)


def broken(llm: LLM) -> set[str]:
    emoji = SamplingParams(max_tokens=40, seed=1, grammar=Grammar.regex("(🙂|你|é){8}"))
    deltas = list(llm.stream("Say it: ", emoji))
    text = "".join(delta.text for delta in deltas)
    stopped = llm.generate(["Return the "], SamplingParams(max_tokens=40, temperature=0, stop=["INDEX"]))[0]
    drawn = SamplingParams(max_tokens=12, seed=7, ignore_eos=True)
    alone, among = (llm.generate(prompts, drawn)[-1].token_ids for prompts in (["The "], ["x", "y", "The "]))
    prompt = "Return the number of items in "
    hot = [
        SamplingParams(max_tokens=1, n=50, temperature=2.0, top_p=0.9, seed=seed, ignore_eos=True) for seed in range(8)
    ]
    samples = [sample.token_ids[0] for output in llm.generate([prompt] * 8, hot) for sample in output.samples]
    order, _, final, _ = filter_tokens(logits_along(llm, prompt)[-1], hot[0])
    shares = torch.bincount(torch.tensor(samples), minlength=272)[order] / len(samples)
    distance = float((shares - final).abs().sum()) / 2  # total variation; 400 draws come within 0.2
    promises = {
        "characters are whole": "\ufffd" not in text
        and text == llm.tokenizer.decode([t for d in deltas for t in d.token_ids]),
        "no stop string is shown": "INDEX" not in stopped.text and stopped.finish_reason == "stop",
        "a seed fixes the sample": alone == among,
        "the nucleus is of what is drawn from": distance < 0.3,
    }
    return {name for name, holds in promises.items() if not holds}


@pytest.mark.parametrize("bug", SAMPLING_BUGS)
def test_a_bug_breaks_what_it_should(llm: LLM, bug: str) -> None:
    with planted_sampling_bug(bug):
        assert broken(llm) == BROKEN[bug]
    assert broken(llm) == set()


def test_an_unknown_bug() -> None:
    with pytest.raises(ConfigError, match="known: none, A"), planted_sampling_bug("Z"):
        pass
