"""Beam search against transformers, token for token, against all sequences there are, and against its own memory."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import tokenizers
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from infra_lab import LLM, SamplingParams
from infra_lab.engine.beam_hypotheses import EarlyStopping, Hypotheses
from infra_lab.engine.beam_search import BeamSearchOutput, beam_search
from infra_lab.errors import InfraLabError, InvalidRequestError
from infra_lab.models.fetch import resolve_model
from infra_lab.models.transformer import CausalLM
from infra_lab.scheduler.request import Request
from infra_lab.scheduler.scheduler import Scheduler
from tests.engine.drained import assert_drained
from tests.models.hf_models import random_model

PROMPTS = ["Return a", "Raises ValueError if", "Hello"]
STOPPING: list[EarlyStopping] = [True, False, "never"]


def engine(model: str = "tiny", **options: Any) -> LLM:
    return LLM(model, dtype="float32", device="cpu", **{"kv_cache_bytes": 16 << 20, "block_size": 4, **options})


def tokens(output: BeamSearchOutput) -> list[list[int]]:
    return [beam.token_ids for beam in output.beams]


def theirs(model: Any, prompt: list[int], eos: Sequence[int], width: int, max_tokens: int, **options: Any) -> list[Any]:
    """(tokens, score) of each sequence that transformers finds, best first."""
    others = torch.get_num_threads()
    torch.set_num_threads(1)  # models this small are slower on two
    try:
        found = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            num_beams=width,
            num_return_sequences=width,
            max_new_tokens=max_tokens,
            do_sample=False,
            eos_token_id=list(eos),
            pad_token_id=0,
            output_scores=True,
            return_dict_in_generate=True,
            **options,
        )
    finally:
        torch.set_num_threads(others)
    outputs = [_until_eos(row[len(prompt) :].tolist(), eos) for row in found.sequences]
    return list(zip(outputs, found.sequences_scores.tolist(), strict=True))


def _until_eos(token_ids: list[int], eos: Sequence[int]) -> list[int]:
    """Without the padding that follows an end of sequence."""
    ends = [position for position, token in enumerate(token_ids) if token in eos]
    return token_ids[: ends[0] + 1] if ends else token_ids


def assert_equals_transformers(
    llm: LLM, model: Any, prompt: str | list[int], width: int, **options: Any
) -> BeamSearchOutput:
    ours = beam_search(llm, prompt, beam_width=width, **options)
    expected = theirs(model, llm.encode(prompt), llm.tokenizer.eos_token_ids, width, **options)
    assert tokens(ours) == [token_ids for token_ids, _ in expected]
    assert [beam.score for beam in ours.beams] == pytest.approx([score for _, score in expected], rel=1e-4)
    assert_drained(llm)
    return ours


# ---- against transformers ----


@pytest.fixture(scope="module")
def tiny() -> Any:
    return transformers.AutoModelForCausalLM.from_pretrained(resolve_model("tiny"), dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def llm() -> LLM:
    return engine()


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
@pytest.mark.parametrize("early_stopping", STOPPING)
@pytest.mark.parametrize("width", [2, 5])
def test_equals_transformers(
    llm: LLM, tiny: Any, width: int, early_stopping: EarlyStopping, length_penalty: float
) -> None:
    for prompt in PROMPTS:
        options = {"max_tokens": 20, "length_penalty": length_penalty, "early_stopping": early_stopping}
        output = assert_equals_transformers(llm, tiny, prompt, width, **options)
        for beam in output.beams:
            assert llm.tokenizer.decode(beam.token_ids) == beam.text


def random_folder(folder: Path, vocab_size: int, *, architecture: str = "llama", eos: Sequence[int] = (2,)) -> Any:
    """A random model, and the simplest tokenizer that gives it a folder: one word a token. It may have several ends."""
    model = random_model(architecture, vocab_size=vocab_size)
    model.generation_config.eos_token_id = list(eos)
    model.save_pretrained(folder)
    words = {str(number): number for number in range(vocab_size)}
    tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="0")).save(str(folder / "tokenizer.json"))
    return model


SETTINGS = [
    {"max_tokens": 12, "early_stopping": early_stopping, "length_penalty": length_penalty}
    for early_stopping in STOPPING
    for length_penalty in (1.0, 0.0, -1.0, 2.0)
]


class Frequent(NamedTuple):
    """A random model of 12 tokens, four of which end a sequence: the rules of ending are all that matters."""

    llm: LLM
    model: Any
    prompts: list[list[int]]

    def assert_equal(self, width: int) -> list[BeamSearchOutput]:
        return [
            assert_equals_transformers(self.llm, self.model, prompt, width, **options)
            for prompt in self.prompts
            for options in SETTINGS
        ]


@pytest.fixture(scope="module")
def frequent(tmp_path_factory: pytest.TempPathFactory) -> Frequent:
    folder = tmp_path_factory.mktemp("frequent")
    model = random_folder(folder, 12, eos=[2, 3, 5, 8])
    return Frequent(
        engine(str(folder), max_model_len=64), model, [[(5 * k + i * i) % 12 for i in range(6)] for k in range(3)]
    )


@pytest.mark.parametrize("width", [2, 4, 7])
def test_equals_transformers_where_ends_are_frequent(frequent: Frequent, width: int) -> None:
    outputs = frequent.assert_equal(width)
    beams = [beam for output in outputs for beam in output.beams]
    for beam in beams:
        assert (beam.token_ids[-1] in (2, 3, 5, 8)) == (beam.finish_reason == "stop")
    assert {beam.finish_reason for beam in beams} == {"stop", "length"}
    assert len({len(beam.token_ids) for beam in beams}) > 3
    assert len({output.stats.num_steps for output in outputs}) > 2, "searches stop at different steps"


@pytest.mark.parametrize("options", [{"block_size": 1}, {"block_size": 16, "max_batched_tokens": 64}], ids=str)
def test_equals_transformers_with_random_weights(tmp_path: Path, options: dict[str, Any]) -> None:
    model = random_folder(tmp_path, 61, architecture="qwen3")
    llm = engine(str(tmp_path), max_model_len=200, **options)
    prompt = [(7 * i * i + 3) % 60 for i in range(90)]  # in two chunks, where the budget is 64
    for early_stopping in STOPPING:
        assert_equals_transformers(llm, model, prompt, 6, max_tokens=15, early_stopping=early_stopping)


def test_one_beam_is_greedy(llm: LLM) -> None:
    greedy = llm.generate(PROMPTS, SamplingParams(temperature=0.0, max_tokens=20))
    for prompt, expected in zip(PROMPTS, greedy, strict=True):
        output = beam_search(llm, prompt, beam_width=1, max_tokens=20)
        assert (output.token_ids, output.text) == (expected.token_ids, expected.text)
        assert output.beams[0].finish_reason == expected.finish_reason


@pytest.mark.smollm2
@pytest.mark.slow
def test_smollm2_equals_transformers() -> None:
    path = resolve_model("smollm2-135m")
    model = transformers.AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32, attn_implementation="sdpa"
    ).eval()
    llm = engine(str(path), max_model_len=256, kv_cache_bytes=32 << 20)
    chat = llm.chat_token_ids([{"role": "user", "content": "What is the capital of France?"}])
    for prompt, early_stopping in ((chat, True), (llm.encode("Water boils at"), False)):
        assert_equals_transformers(llm, model, prompt, 4, max_tokens=16, early_stopping=early_stopping)


# ---- against all sequences there are ----


def all_sequences(
    logprobs: Callable[[tuple[int, ...]], list[float]],
    vocab_size: int,
    eos: int,
    max_tokens: int,
    length_penalty: float,
) -> list[tuple[float, tuple[int, ...]]]:
    """Every sequence that ends, or is cut, with its score; the best first."""
    found = []
    for length in range(1, max_tokens + 1):
        for body in itertools.product([token for token in range(vocab_size) if token != eos], repeat=length - 1):
            last = range(vocab_size) if length == max_tokens else [eos]
            found += [(*body, token) for token in last]
    totals = [sum(logprobs(word[:i])[word[i]] for i in range(len(word))) for word in found]
    scores = [total / len(word) ** length_penalty for total, word in zip(totals, found, strict=True)]
    return sorted(zip(scores, found, strict=True), reverse=True)


@settings(max_examples=120, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    vocab_size=st.integers(2, 4),
    max_tokens=st.integers(1, 4),
    length_penalty=st.sampled_from([-1.5, 0.0, 0.6, 1.0, 3.0]),
    eagerness=st.sampled_from([-3.0, 0.0, 3.0]),
    num_best=st.integers(1, 5),
)
def test_wide_enough_it_finds_the_best_of_all(
    seed: int, vocab_size: int, max_tokens: int, length_penalty: float, eagerness: float, num_best: int
) -> None:
    """A made-up language model over a few tokens; with as many beams as there are sequences nothing is pruned."""
    generator = torch.Generator().manual_seed(seed)
    table: dict[tuple[int, ...], list[float]] = {}

    def logprobs(prefix: tuple[int, ...]) -> list[float]:
        if prefix not in table:
            logits = torch.randn(vocab_size, generator=generator, dtype=torch.float64)
            logits[0] += eagerness
            table[prefix] = torch.log_softmax(logits, 0).tolist()
        return table[prefix]

    expected = all_sequences(logprobs, vocab_size, 0, max_tokens, length_penalty)
    search = Hypotheses(vocab_size**max_tokens, max_tokens, length_penalty, "never", frozenset([0]))
    while not search.is_done:
        search.advance([list(enumerate(logprobs(beam.token_ids))) for beam in search.open])
    found = [(hypothesis.score, hypothesis.token_ids) for hypothesis in search.ended[:num_best]]
    assert [word for _, word in found] == [word for _, word in expected[:num_best]]
    assert [score for score, _ in found] == pytest.approx([score for score, _ in expected[:num_best]])
    for early_stopping in STOPPING[1:]:  # stopping early may lose some, but takes none that is worse than it says
        narrow = Hypotheses(2, max_tokens, length_penalty, early_stopping, frozenset([0]))
        while not narrow.is_done:
            tops = [sorted(enumerate(logprobs(beam.token_ids)), key=lambda pair: -pair[1]) for beam in narrow.open]
            narrow.advance([top[: narrow.num_candidates] for top in tops])
        scores = {word: score for score, word in expected}
        assert all(scores[h.token_ids] == pytest.approx(h.score) for h in narrow.ended)


def test_the_engine_finds_the_best_of_all(tmp_path: Path) -> None:
    """3 tokens, 3 steps: 15 sequences, and 12 continuations at most are ranked against each other."""
    model = random_folder(tmp_path, 3)
    llm = engine(str(tmp_path), max_model_len=64)
    prompt = [1, 0, 0, 1, 1]

    @functools.cache
    def logprobs(prefix: tuple[int, ...]) -> list[float]:
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *prefix]])).logits[0, -1]
        return torch.log_softmax(logits.double(), 0).tolist()

    for length_penalty in (0.0, 1.0, 2.5):
        expected = all_sequences(logprobs, 3, 2, 3, length_penalty)
        assert len(expected) == 15
        output = beam_search(
            llm, prompt, beam_width=12, max_tokens=3, length_penalty=length_penalty, early_stopping="never"
        )
        assert tokens(output) == [list(word) for _, word in expected[:12]]


# ---- the same beams, however they are computed ----

OPTIONS: dict[str, Any] = {"beam_width": 5, "max_tokens": 24, "early_stopping": "never"}
PROMPT = "Raises ValueError if"


@pytest.fixture(scope="module")
def roomy() -> BeamSearchOutput:
    return beam_search(engine(), PROMPT, **OPTIONS)


@pytest.mark.parametrize(
    "options",
    [
        {"block_size": 1},
        {"block_size": 16},
        {"enable_prefix_cache": False},
        {"max_batched_tokens": 8, "max_num_seqs": 5},
        {"num_kv_blocks": 14},
        {"num_kv_blocks": 14, "enable_prefix_cache": False},
        {"num_kv_blocks": 11, "max_batched_tokens": 16, "max_num_seqs": 6},
    ],
    ids=str,
)
def test_settings_change_the_cost_and_nothing_else(roomy: BeamSearchOutput, options: dict[str, Any]) -> None:
    llm = engine(**options)
    output = beam_search(llm, PROMPT, **OPTIONS)
    assert tokens(output) == tokens(roomy)
    if "num_kv_blocks" in options:
        assert any(step.preempted for step in llm.recorder.steps), "the cache was meant to be too small"
        assert output.stats.num_computed_tokens > roomy.stats.num_computed_tokens
        assert output.stats.peak_blocks <= options["num_kv_blocks"]
    assert_drained(llm)


def test_beams_and_other_requests_leave_each_other_alone(roomy: BeamSearchOutput) -> None:
    params = SamplingParams(temperature=0.8, seed=4, max_tokens=40, ignore_eos=True)
    alone = engine().generate(["class", "import os"], params)
    for options in ({}, {"max_num_seqs": 5}, {"num_kv_blocks": 24}):
        llm = engine(**options)
        ids = [llm.core.add(llm.encode(text), params) for text in ("class", "import os")]
        output = beam_search(llm, PROMPT, **OPTIONS)
        assert tokens(output) == tokens(roomy)
        while llm.core.has_work:
            llm.core.step()
        for request_id, expected in zip(ids, alone, strict=True):
            sampled = [
                chunk.token_id
                for step in llm.recorder.steps
                for chunk in step.chunks
                if chunk.request_id == request_id and chunk.token_id is not None
            ]
            assert sampled == expected.token_ids
        assert_drained(llm)


# ---- what it costs ----


def test_every_token_is_computed_once(llm: LLM, roomy: BeamSearchOutput) -> None:
    assert roomy.stats.num_steps == 24
    num_prompt = len(llm.encode(PROMPT))
    assert roomy.stats.num_computed_tokens == num_prompt + 23 * 5, "the prompt once, then one token a beam and step"


def test_beams_share_the_blocks_of_what_they_share(roomy: BeamSearchOutput) -> None:
    """20 prompt tokens + 23 that are stored = 43; 43 / 4 = 11 blocks a beam, 5 of them full of the prompt alone."""
    stats = roomy.stats
    assert stats.peak_unshared_blocks == 5 * 11
    assert stats.peak_blocks <= 5 + 5 * 6
    assert 0 < stats.num_copies <= 24 * 4, "of the beams that share a block, all but one get a copy"


def test_the_records_show_as_many_lanes_as_beams() -> None:
    llm = engine()
    beam_search(llm, PROMPT, **OPTIONS)
    assert len({chunk.request_id for step in llm.recorder.steps for chunk in step.chunks}) == 5


# ---- what is refused, and what is left behind ----


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beam_width": 0}, "beam_width is 0; it must be a whole number"),
        ({"beam_width": 19}, "beam_width is 19; 18 beams at most"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"max_tokens": True}, "max_tokens is True"),
        ({"length_penalty": math.nan}, "length_penalty is nan"),
        ({"length_penalty": 1e6}, "must be between -16.0 and 16.0"),
        ({"early_stopping": "always"}, "early_stopping is 'always'"),
        ({"prompt": []}, "the prompt has no tokens"),
        ({"prompt": [5, 999]}, "token id 999 is outside the vocabulary of 272"),
    ],
    ids=str,
)
def test_impossible_searches(llm: LLM, options: dict[str, Any], message: str) -> None:
    prompt = options.pop("prompt", "A")
    with pytest.raises(InvalidRequestError, match=message):
        beam_search(llm, prompt, **{"beam_width": 2, "max_tokens": 4, **options})
    assert_drained(llm)


def test_more_beams_than_seats() -> None:
    with pytest.raises(InvalidRequestError, match="3 beams at most run side by side here: max_num_seqs is 3"):
        beam_search(engine(max_num_seqs=3), "A", beam_width=4, max_tokens=4)


def test_the_context_ends_the_search() -> None:
    llm = engine(max_model_len=16)
    output = beam_search(llm, "The list", beam_width=3, max_tokens=100, early_stopping="never")
    assert max(len(beam.token_ids) for beam in output.beams) == 8
    assert output.beams == beam_search(engine(), "The list", beam_width=3, max_tokens=8, early_stopping="never").beams
    assert_drained(llm)


@pytest.mark.parametrize("options", [{}, {"num_kv_blocks": 14}], ids=str)
def test_an_exception_leaves_no_block_behind(monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]) -> None:
    for failing_step in (0, 1, 9):
        llm, forward, calls = engine(**options), CausalLM.forward, itertools.count()

        def fails(*args: Any, forward: Any = forward, calls: Any = calls, failing_step: int = failing_step) -> Any:
            if next(calls) == failing_step:
                raise RuntimeError("out of memory, say")
            return forward(*args)

        with monkeypatch.context() as patch:
            patch.setattr(CausalLM, "forward", fails)
            with pytest.raises(RuntimeError, match="out of memory"):
                beam_search(llm, PROMPT, **OPTIONS)
        assert_drained(llm)
        assert llm.generate("A", SamplingParams(max_tokens=2, ignore_eos=True))[0].finish_reason == "length"


def test_logits_that_are_not_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    llm, forward = engine(), CausalLM.forward

    def broken(*args: Any) -> torch.Tensor:
        logits = forward(*args)
        logits[-1, 3] = float("nan")
        return logits

    monkeypatch.setattr(CausalLM, "forward", broken)
    with pytest.raises(InfraLabError, match="largest logit is nan"):
        beam_search(llm, PROMPT, **OPTIONS)
    assert_drained(llm)


# ---- mutants: what the comparisons above would catch ----

_BRANCH = Scheduler.branch


def _writes_in_place(self: Scheduler, parent: Request, children: Sequence[Request]) -> None:
    _BRANCH(self, parent, children)
    for child in children:
        child.capacity = len(child.block_table) * self.blocks.block_size


MUTANTS: dict[str, tuple[type, str, Any]] = {
    "beams write into the blocks they share": (Scheduler, "branch", _writes_in_place),
    "a length that is off by one": (
        Hypotheses, "_score", lambda self, logprob, length: logprob / (length + 1) ** self.length_penalty,
    ),
    "always stops early": (
        Hypotheses, "is_done", property(lambda self: not self.open or len(self.ended) >= self.width),
    ),
    "never stops early": (Hypotheses, "is_done", property(lambda self: not self.open)),
    "ends take the place of candidates": (Hypotheses, "num_candidates", property(lambda self: self.width)),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_transformers_would_disagree(monkeypatch: pytest.MonkeyPatch, frequent: Frequent, name: str) -> None:
    monkeypatch.setattr(*MUTANTS[name])
    with pytest.raises(AssertionError):
        frequent.assert_equal(4)
