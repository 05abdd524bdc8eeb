"""Tool calls: found in the text however it is cut, and as OpenAI's client expects them."""

import json
from typing import Any

import openai
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from infra_lab.engine.async_engine import AsyncEngine
from infra_lab.server.tool_calls import Arguments, CallStart, Text, ToolCallParser, ToolEvent
from tests.server.live import serving, simulated, tiny_tokenizer, writing

TEMPLATE = """{% if tools %}<|im_start|>system
{% for tool in tools %}{{ tool | tojson }}
{% endfor %}<|im_end|>
{% endif %}{% for message in messages %}<|im_start|>{{ message.role }}
{% if message.tool_calls %}{% for call in message.tool_calls %}<tool_call>{{ call.function | tojson }}</tool_call>
{% endfor %}{% else %}{{ message.content }}{% endif %}<|im_end|>
{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"type": "integer"}},
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
ASK: Any = [{"role": "user", "content": "Weather in Paris?"}]
CALLS = """I'll look.
<tool_call>
{"name": "get_weather", "arguments": {"city": "Pa}ris </tool_call>", "days": 3}}
</tool_call>
<tool_call>
{"name": "now", "arguments": {}}
</tool_call>"""


def with_tools(text: str) -> AsyncEngine:
    return simulated(next_token=writing(text), tokenizer=tiny_tokenizer(TEMPLATE))


def parse(pieces: list[str]) -> tuple[str, list[tuple[str, str]]]:
    """Content, and the calls with their arguments."""
    parser = ToolCallParser()
    events: list[ToolEvent] = [event for piece in pieces for event in parser.push(piece)] + parser.finish()
    content, calls = "", list[tuple[str, str]]()
    for event in events:
        match event:
            case Text(text):
                content += text
            case CallStart(call, name):
                assert call == len(calls)
                calls.append((name, ""))
            case Arguments(call, text):
                assert call == len(calls) - 1
                calls[call] = (calls[call][0], calls[call][1] + text)
    return content, calls


def test_text_and_two_calls() -> None:
    content, calls = parse([CALLS])
    assert content == "I'll look."
    assert calls == [("get_weather", '{"city": "Pa}ris </tool_call>", "days": 3}'), ("now", "{}")]


@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ("no call at all, a < b", "no call at all, a < b", []),
        ("  spaces  ", "  spaces  ", []),
        ("<tool_call>not json</tool_call> after", "<tool_call>not json</tool_call> after", []),
        ('<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', "", [("f", '{"a": 1}')]),
        ('<tool_call>{"name": "f", "arguments": "{}"}</tool_call>', "", [("f", "{}")]),
        ('<tool_call>{"name": "f"}</tool_call>', "", [("f", "{}")]),
        ('<tool_call>{"name": "f", "arguments": {"a": "\\"}', "", [("f", '{"a": "\\"}')]),
        ("<tool_call>cut off", "<tool_call>cut off", []),
        ("<tool_", "<tool_", []),
        ('a<tool_call>{"name": 5}</tool_call>', 'a<tool_call>{"name": 5}</tool_call>', []),
    ],
)
def test_odd_texts(text: str, content: str, calls: list[tuple[str, str]]) -> None:
    assert parse([text]) == (content, calls)
    assert parse(list(text)) == (content, calls)


ODDS = st.sampled_from(
    ["<tool_call>", "</tool_call>", '{"name": "f", "arguments": {', "}", '"', "\\", " \n", "x", "<t"]
)


@given(st.lists(ODDS | st.text(max_size=4), max_size=12).map("".join), st.data())
@example(CALLS, None)
def test_however_the_text_is_cut_the_result_is_the_same(text: str, data: st.DataObject | None) -> None:
    whole = parse([text])
    assert parse(list(text)) == whole
    if data is not None:
        cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
        assert parse([text[i:j] for i, j in zip([0, *cuts], [*cuts, len(text)], strict=True)]) == whole


def test_a_call_reaches_openais_client_whole_and_streamed() -> None:
    with serving(with_tools(CALLS)) as live:
        settings: dict[str, Any] = {"model": "sim", "messages": ASK, "tools": [WEATHER]}
        choice = live.openai().chat.completions.create(**settings).choices[0]
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content == "I'll look."
        assert choice.message.tool_calls is not None
        whole = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls]  # type: ignore[union-attr]
        assert whole == parse([CALLS])[1]
        assert len({call.id for call in choice.message.tool_calls}) == 2

        content, calls, pieces = "", list[list[str]](), 0
        for chunk in live.openai().chat.completions.create(**settings, stream=True):
            delta = chunk.choices[0].delta
            content += delta.content or ""
            for call in delta.tool_calls or []:
                assert call.function is not None
                if call.id:
                    assert call.type == "function"
                    calls.append([call.function.name or "", ""])
                calls[call.index][1] += call.function.arguments or ""
                pieces += 1
        assert chunk.choices[0].finish_reason == "tool_calls"
        assert content == "I'll look."
        assert [tuple(call) for call in calls] == whole
        assert pieces > 20, "arguments arrive while they are written"


@pytest.mark.parametrize(("allowed", "expected"), [(False, ["get_weather"]), (True, ["get_weather", "now"])])
def test_a_client_that_can_do_one_call_at_a_time_gets_one(allowed: bool, expected: list[str]) -> None:
    with serving(with_tools(CALLS + "\nThat is all.")) as live:
        settings: dict[str, Any] = {"model": "sim", "messages": ASK, "tools": [WEATHER], "parallel_tool_calls": allowed}
        choice = live.openai().chat.completions.create(**settings).choices[0]
        assert choice.finish_reason == "tool_calls"
        whole = [(call.function.name, call.function.arguments) for call in choice.message.tool_calls or []]  # type: ignore[union-attr]
        assert whole == parse([CALLS])[1][: len(expected)]
        assert [name for name, _ in whole] == expected
        assert choice.message.content == "I'll look.\nThat is all."

        content, arguments = "", list[str]()
        for chunk in live.openai().chat.completions.create(**settings, stream=True):
            content += chunk.choices[0].delta.content or ""
            for call in chunk.choices[0].delta.tool_calls or []:
                assert call.function is not None
                arguments += [""] * bool(call.id)
                arguments[call.index] += call.function.arguments or ""
        assert arguments == [text for _, text in whole]
        assert content == choice.message.content
        assert chunk.choices[0].finish_reason == "tool_calls"


def test_the_conversation_goes_back_into_the_template() -> None:
    with serving(with_tools("It is sunny.")) as live:
        call = {"id": "c1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
        messages: Any = [
            *ASK,
            {"role": "assistant", "content": None, "tool_calls": [call]},
            {"role": "tool", "tool_call_id": "c1", "content": "sunny"},
        ]
        answer = live.openai().chat.completions.create(model="sim", messages=messages, tools=[WEATHER])
        assert answer.choices[0].message.content == "It is sunny."
        assert answer.choices[0].finish_reason == "stop"
        assert answer.choices[0].message.tool_calls is None
        shown = live.post("/detokenize", tokens=live.post("/tokenize", messages=messages).json()["tokens"]).json()
        assert '{"name": "get_weather", "arguments": {"city": "Paris"}}' in shown["prompt"], "the object, not a string"


def test_without_tools_the_text_is_text() -> None:
    with serving(with_tools(CALLS)) as live:
        for settings in ({}, {"tools": [WEATHER], "tool_choice": "none"}):
            message = live.openai().chat.completions.create(model="sim", messages=ASK, **settings).choices[0].message
            assert message.content == CALLS
            assert message.tool_calls is None


@pytest.mark.parametrize(
    "settings",
    [
        {"tools": [{"type": "function"}]},
        {"tools": [{"type": "retrieval"}]},
        {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "other"}}},
        {"tools": [WEATHER], "tool_choice": {"type": "function"}},
        {"tools": [WEATHER], "tool_choice": "required", "response_format": {"type": "json_object"}},
    ],
)
def test_malformed_tools_are_refused(settings: Any) -> None:
    with serving(with_tools("x")) as live, pytest.raises(openai.BadRequestError):
        live.openai().chat.completions.create(model="sim", messages=ASK, **settings)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
def test_a_forced_call_has_the_arguments_that_the_schema_asks_for(choice: Any) -> None:
    pytest.importorskip("xgrammar")
    engine = AsyncEngine.start("tiny", dtype="float32", device="cpu", kv_cache_bytes=16 << 20)
    engine.core.tokenizer.chat_templates["default"] = TEMPLATE
    other = {"type": "function", "function": {"name": "other", "parameters": {"type": "object", "maxProperties": 0}}}
    with serving(engine) as live:
        for seed in range(5):
            answer = live.openai().chat.completions.create(
                model="sim", messages=ASK, tools=[WEATHER, other], tool_choice=choice, seed=seed, max_tokens=200
            )
            message = answer.choices[0].message
            assert message.tool_calls
            assert message.content is None
            function = message.tool_calls[0].function  # type: ignore[union-attr]
            assert function.name in ("get_weather", "other") if choice == "required" else function.name == "get_weather"
            arguments = json.loads(function.arguments)
            if function.name == "get_weather":
                assert set(arguments) == {"city", "days"}
                assert isinstance(arguments["days"], int)
            assert answer.choices[0].finish_reason == "tool_calls"
