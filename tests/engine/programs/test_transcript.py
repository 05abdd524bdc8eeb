"""Text and tokens say the same, whatever was written, and earlier tokens never change."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra_lab import LLM
from infra_lab.engine.outputs import SampleOutput
from infra_lab.engine.programs import State, program
from infra_lab.engine.programs.transcript import Transcript
from infra_lab.models.fetch import resolve_model
from infra_lab.models.tokenizer import Tokenizer, load_tokenizer

pytestmark = pytest.mark.smollm2


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return load_tokenizer(resolve_model("smollm2-135m"))


words = st.sampled_from([" the", "the", "!!", "\n", "\n\n", " naïve", "你好", "ing", " unbeliev", "able", "."])
texts = st.lists(words, max_size=6).map("".join)


@settings(deadline=None)
@given(st.lists(st.tuples(texts, texts, st.sampled_from(["", "\n", "!", "e", "好"])), min_size=1, max_size=4))
def test_tokens_spell_the_text_and_only_grow(tokenizer: Tokenizer, parts: list[tuple[str, str, str]]) -> None:
    transcript, expected, before = Transcript(tokenizer), "", list[int]()
    for literal, generated, stop in parts:
        transcript.write(literal)
        prompt = transcript.tokens()
        assert prompt[: len(before)] == before
        token_ids = tokenizer.encode(generated)
        kept = generated
        sample = SampleOutput(text=generated, token_ids=token_ids, finish_reason="length")
        if stop and stop in generated:
            kept = generated[: generated.index(stop)]
            num = next(n for n in range(len(token_ids) + 1) if stop in tokenizer.decode(token_ids[:n]))
            sample = SampleOutput(text=kept, token_ids=token_ids[:num], finish_reason="stop", stop_reason=stop)
        transcript.take(sample, includes_stop=False)
        expected += literal + kept
        before = prompt
        assert transcript.text == expected
        assert tokenizer.decode(transcript.copy().tokens()) == expected


def test_a_token_that_the_stop_string_cuts_is_not_kept(tokenizer: Tokenizer) -> None:
    token_ids = tokenizer.encode(" unbelievable!!")
    assert tokenizer.decode(token_ids[-1:]) == "!!"
    transcript = Transcript(tokenizer)
    transcript.write("It is")
    sample = SampleOutput(text=" unbelievable!", token_ids=token_ids, finish_reason="stop", stop_reason="!")
    transcript.take(sample, includes_stop=True)
    assert transcript.text == "It is unbelievable!"
    assert transcript.tokens() == [*tokenizer.encode("It is"), *token_ids[:-1], *tokenizer.encode("!")]


def test_segments_are_what_stands_between_generations(tokenizer: Tokenizer) -> None:
    transcript = Transcript(tokenizer)
    transcript.write("un")
    transcript.write("believable")
    assert transcript.tokens() == tokenizer.encode("unbelievable")
    transcript.write("s")
    assert transcript.tokens() == tokenizer.encode("unbelievable") + tokenizer.encode("s")


@pytest.mark.slow
def test_a_model_of_words(tokenizer: Tokenizer) -> None:
    """A real vocabulary in the engine: a choice of several tokens, a stop string, and what is generated kept as it is."""

    @program(temperature=0.0)
    def ask(s: State) -> None:
        s.user("Is the sky blue? Answer yes or no.")
        with s.assistant():
            s.select("verdict", ["Yes", "No", "Unbelievably purple"])
            s.gen("why", max_tokens=12, stop=".")

    llm = LLM("smollm2-135m", kv_cache_bytes=64 << 20)
    run = ask.run(llm)
    assert run["verdict"] in ("Yes", "No")
    assert tokenizer.decode(run.token_ids, skip_special_tokens=False) == run.text
    assert run.outputs["why"].token_ids[:-1] == run.token_ids[-len(run.outputs["why"].token_ids) - 1 : -2]
