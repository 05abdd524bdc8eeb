"""OpenAI's own package must not notice that this is another server."""

import asyncio
import json
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI

from tests.server.live import SENTENCE, Live, serving, simulated, tiny_tokenizer, until, writing

MODEL = "sim"
HELLO: list[Any] = [{"role": "user", "content": "Hello"}]
EMOJI = "naïve 👩‍👩‍👧 café — 𝔘𝔫𝔦𝔠𝔬𝔡𝔢 ✅"


def test_a_chat_whole_and_streamed_is_the_same(sim: Live) -> None:
    client = sim.openai()
    whole = client.chat.completions.create(model=MODEL, messages=HELLO, max_tokens=30)
    assert whole.choices[0].message.content == SENTENCE[:30]
    assert whole.choices[0].finish_reason == "length"
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 30
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + 30
    chunks = list(
        client.chat.completions.create(
            model=MODEL, messages=HELLO, max_tokens=30, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    assert [chunk.choices[0].delta.role for chunk in chunks[1:-1]] == [None] * (len(chunks) - 2)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == SENTENCE[:30]
    reasons = [chunk.choices[0].finish_reason for chunk in chunks[:-1]]
    assert reasons == [None] * (len(chunks) - 2) + ["length"]
    assert not chunks[-1].choices
    assert chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == 30
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


def test_three_samples_in_one_stream(sim: Live) -> None:
    texts, endings = ["", "", ""], [""] * 3
    for chunk in sim.openai().completions.create(model=MODEL, prompt="x", n=3, max_tokens=20, stream=True):
        for choice in chunk.choices:
            assert not endings[choice.index], "nothing comes after a choice has ended"
            texts[choice.index] += choice.text
            endings[choice.index] = choice.finish_reason or ""
    assert texts == [(SENTENCE * 2)[4 * index :][:20] for index in range(3)]
    assert endings == ["length"] * 3


def test_choices_of_several_prompts_are_numbered_prompt_by_prompt(sim: Live) -> None:
    answer = sim.openai().completions.create(model=MODEL, prompt=["a", "b"], n=2, max_tokens=5, echo=True)
    assert [choice.text for choice in answer.choices] == ["athe q", "aquick", "bthe q", "bquick"]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    ids = sim.openai().completions.create(model=MODEL, prompt=[[97], [98]], max_tokens=5, echo=True)
    assert [choice.text for choice in ids.choices] == ["athe q", "bthe q"]
    echoed = "".join(
        chunk.choices[0].text
        for chunk in sim.openai().completions.create(model=MODEL, prompt=[97], max_tokens=5, echo=True, stream=True)
    )
    assert echoed == "athe q"


@pytest.mark.parametrize("options", [{}, {"chunk_tokens": 7}, {"chunk_ms": 8}, {"chunk_tokens": 3, "chunk_ms": 4}])
def test_tokens_and_text_streamed_are_those_of_the_whole(tiny: Live, options: dict[str, Any]) -> None:
    body = {"prompt": "def ", "max_tokens": 40, "temperature": 1.0, "seed": 7, "return_token_ids": True}
    whole = tiny.post("/v1/completions", **body).json()["choices"][0]
    streamed = tiny.post("/v1/completions", **body, stream=True, stream_options=options).text
    events = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
    assert streamed.endswith("data: [DONE]\n\n")
    tokens = [token for event in events for token in event["choices"][0]["token_ids"]]
    assert tokens == whole["token_ids"]
    assert "".join(event["choices"][0]["text"] for event in events) == whole["text"]
    if options == {"chunk_tokens": 7}:
        sizes = [len(event["choices"][0]["token_ids"]) for event in events]
        assert all(size >= 7 for size in sizes[:-1]), "an event waits until it has as many tokens as asked"


def test_a_seed_repeats_and_greedy_ignores_it(tiny: Live) -> None:
    def text(**settings: Any) -> str:
        choices = tiny.openai().completions.create(model=MODEL, prompt="import ", max_tokens=24, **settings).choices
        return choices[0].text

    assert text(seed=1) == text(seed=1)
    assert text(temperature=0, seed=1) == text(temperature=0, seed=2)
    assert text(temperature=0, extra_body={"top_k": -1, "min_p": 0.0}) == text(temperature=0)
    assert text(temperature=0, logit_bias={"97": 100}) == "a" * 24


def test_stop_strings_never_show_not_even_in_part() -> None:
    for stop in ("fox", ["zzz", "own fox j", "fox"]):
        with serving(simulated()) as live:
            client = live.openai()
            whole = client.completions.create(model=MODEL, prompt="x", max_tokens=60, stop=stop)
            expected = SENTENCE[: SENTENCE.index("fox")]
            assert (whole.choices[0].text, whole.choices[0].finish_reason) == (expected, "stop")
            chunks = client.completions.create(model=MODEL, prompt="x", max_tokens=60, stop=stop, stream=True)
            assert "".join(chunk.choices[0].text for chunk in chunks) == expected


def test_no_event_has_half_a_character() -> None:
    with serving(simulated(next_token=writing(EMOJI))) as live:
        chunks = list(live.openai().chat.completions.create(model=MODEL, messages=HELLO, stream=True))
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks]
        assert "".join(pieces) == EMOJI
        assert not any("\ufffd" in piece for piece in pieces)
        assert chunks[-1].choices[0].finish_reason == "stop"
        assert live.openai().chat.completions.create(model=MODEL, messages=HELLO).choices[0].message.content == EMOJI


def test_chat_logprobs_have_openais_shape(tiny: Live) -> None:
    settings: dict[str, Any] = {"model": MODEL, "messages": HELLO, "max_tokens": 6, "temperature": 0, "logprobs": True}
    whole = tiny.openai().chat.completions.create(**settings, top_logprobs=3).choices[0]
    assert whole.logprobs is not None
    assert whole.logprobs.content is not None
    assert len(whole.logprobs.content) == 6
    for entry in whole.logprobs.content:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].logprob == pytest.approx(entry.logprob), "greedy takes the most probable one"
        assert bytes(entry.bytes or []).decode(errors="ignore") == entry.token or entry.token.startswith("bytes:")
        assert entry.logprob <= 0
    streamed = [
        entry
        for chunk in tiny.openai().chat.completions.create(**settings, top_logprobs=3, stream=True)
        if chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content or []
    ]
    assert [entry.token for entry in streamed] == [entry.token for entry in whole.logprobs.content]
    bare = tiny.openai().chat.completions.create(**settings).choices[0].logprobs
    assert bare is not None
    assert bare.content is not None
    assert bare.content[0].top_logprobs == []


def test_completion_logprobs_are_parallel_lists(tiny: Live) -> None:
    choice = (
        tiny.openai().completions.create(model=MODEL, prompt="def ", max_tokens=8, temperature=0, logprobs=2).choices[0]
    )
    logprobs = choice.logprobs
    assert logprobs is not None
    assert logprobs.tokens is not None
    assert logprobs.text_offset is not None
    assert logprobs.top_logprobs is not None
    assert "".join(logprobs.tokens) == choice.text
    assert [choice.text[offset] for offset in logprobs.text_offset] == [token[0] for token in logprobs.tokens]
    assert all(len(top) == 2 for top in logprobs.top_logprobs)


def test_the_chosen_token_is_always_among_its_alternatives(tiny: Live) -> None:
    hot: dict[str, Any] = {"prompt": "def ", "max_tokens": 24, "temperature": 2.0, "seed": 1, "logprobs": 1}
    logprobs = tiny.openai().completions.create(model=MODEL, **hot).choices[0].logprobs
    assert logprobs is not None
    chosen = list(zip(logprobs.tokens or [], logprobs.token_logprobs or [], logprobs.top_logprobs or [], strict=True))
    assert all(top[token] == logprob for token, logprob, top in chosen)
    assert {len(top) for _, _, top in chosen} == {1, 2}, "some were the most probable one, some were not"


def test_cached_prompt_tokens_are_reported(sim: Live) -> None:
    prompt = "a prompt of its own, longer than a block " * 2
    first, second = (sim.openai().completions.create(model=MODEL, prompt=prompt, max_tokens=2) for _ in range(2))
    cached = [answer.usage.prompt_tokens_details.cached_tokens for answer in (first, second)]  # type: ignore[union-attr]
    assert cached == [0, len(prompt) // 16 * 16]


def test_many_asynchronous_streams_at_once(sim: Live) -> None:
    async def one(client: AsyncOpenAI, length: int) -> str:
        chunks = await client.completions.create(model=MODEL, prompt="x", max_tokens=length, stream=True)
        return "".join([chunk.choices[0].text async for chunk in chunks])

    async def main() -> list[str]:
        async with AsyncOpenAI(base_url=f"{sim.url}/v1", api_key="unused-key") as client:
            return await asyncio.gather(*(one(client, 5 + index) for index in range(40)))

    assert asyncio.run(main()) == [(SENTENCE * 2)[: 5 + index] for index in range(40)]


def test_leaving_a_stream_early_frees_its_blocks(sim: Live) -> None:
    with sim.openai() as client:
        stream = client.completions.create(model=MODEL, prompt="x", max_tokens=3000, stream=True)
        next(iter(stream))
        assert sim.runtime.running
        stream.close()
    until(sim.is_idle, "the request is gone")


def test_models(sim: Live) -> None:
    assert [model.id for model in sim.openai().models.list()] == ["sim", "sim-alias"]
    assert sim.openai().models.retrieve("sim-alias").id == "sim-alias"
    with pytest.raises(openai.NotFoundError, match="other"):
        sim.openai().models.retrieve("other")
    assert sim.openai().completions.create(model="sim-alias", prompt="x", max_tokens=1).model == "sim-alias"


@pytest.mark.parametrize(
    ("settings", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 0}, "n"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": ""}, "stop"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 100_000}, "messages"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages"),
        ({"messages": [{"content": "Hi"}]}, "messages"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"99999": 1}}, "logit_bias"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "f"}}, "tools": []}, "tool_choice"),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"extra_body": {"min_tokens": 9, "max_tokens": 3}}, "min_tokens"),
    ],
)
def test_a_bad_request_names_its_field(sim: Live, settings: dict[str, Any], param: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        sim.openai().chat.completions.create(**{"model": MODEL, "messages": HELLO, "max_tokens": 4, **settings})
    assert raised.value.param == param
    assert raised.value.type == "invalid_request_error"
    assert len(str(raised.value)) > 30


@pytest.mark.parametrize(
    ("fields", "complaint"),
    [
        ({"prompt": "x", "stop": list("abcde")}, "at most 4 items"),
        ({"prompt": "x", "stop": ""}, "at least 1 character"),
        ({"prompt": ["a", "b", 3]}, "2: Input should be a valid string"),
        ({"prompt": None}, "valid string"),
    ],
)
def test_of_several_complaints_the_telling_one_is_given(sim: Live, fields: dict[str, Any], complaint: str) -> None:
    """Five stop strings were told to be one string."""
    assert complaint in sim.post("/v1/completions", **fields).json()["error"]["message"]


def test_echo_of_a_token_that_there_is_not(sim: Live) -> None:
    """It was decoded before anybody had looked at it: a 500 for a negative number."""
    for token_id in (-1, 1 << 40):
        with pytest.raises(openai.BadRequestError, match="outside the vocabulary"):
            sim.openai().completions.create(model=MODEL, prompt=[97, token_id], echo=True)


@pytest.mark.parametrize("field", ["suffix", "best_of", "echo"])
def test_what_completions_do_not_support_is_said(sim: Live, field: str) -> None:
    settings: dict[str, Any] = {"suffix": "x"} if field == "suffix" else {"best_of": 3}
    settings = {"echo": True, "logprobs": 1} if field == "echo" else settings
    with pytest.raises(openai.BadRequestError) as raised:
        sim.openai().completions.create(model=MODEL, prompt="x", **settings)
    assert raised.value.param == field


def test_unknown_fields_and_nulls_are_ignored(sim: Live) -> None:
    answer = sim.openai().chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]}],
        max_completion_tokens=3,
        max_tokens=50,
        user="somebody",
        metadata={"a": "b"},
        store=False,
        extra_body={"made_up": 1, "stop": None, "seed": None, "temperature": None},
    )
    assert answer.choices[0].message.content == SENTENCE[:3]


def test_a_developer_is_the_system_unless_the_template_knows_better(sim: Live) -> None:
    def prompt(live: Live, role: str) -> str:
        tokens = live.post("/tokenize", messages=[{"role": role, "content": "Be brief."}, *HELLO]).json()["tokens"]
        return str(live.post("/detokenize", tokens=tokens).json()["prompt"])

    assert prompt(sim, "developer") == prompt(sim, "system")
    template = "{% for message in messages %}{{ 'D' if message.role == 'developer' else 'S' }}{% endfor %}"
    with serving(simulated(tokenizer=tiny_tokenizer(template))) as live:
        assert (prompt(live, "developer"), prompt(live, "system")) == ("DS", "SS")


def test_a_wrong_model_is_not_found(sim: Live) -> None:
    with pytest.raises(openai.NotFoundError) as raised:
        sim.openai().completions.create(model="gpt-17", prompt="x")
    assert raised.value.code == "model_not_found"


def test_headers_of_a_stream(sim: Live) -> None:
    body = {"prompt": "x", "max_tokens": 2, "stream": True}
    response = httpx.post(f"{sim.url}/v1/completions", json=body, headers={"X-Request-Id": "mine-1"})
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["x-request-id"] == "mine-1"
    made = httpx.post(f"{sim.url}/v1/completions", json=body, headers={"X-Request-Id": "with space"})
    assert made.headers["x-request-id"] != "with space"


def test_tokenize_and_back(sim: Live) -> None:
    tokens = sim.post("/tokenize", prompt="naïve", return_token_strs=True).json()
    assert tokens["count"] == len(tokens["tokens"]) == len(tokens["token_strs"]) == 6
    assert sim.post("/detokenize", tokens=tokens["tokens"]).json() == {"prompt": "naïve"}
    chat = sim.post("/tokenize", messages=HELLO).json()["tokens"]
    assert sim.post("/detokenize", tokens=chat).json()["prompt"].endswith("<|im_start|>assistant\n")
    assert sim.post("/tokenize").status_code == 400
    assert sim.post("/detokenize", tokens=[10**12, -1, 97]).json() == {"prompt": "a"}
