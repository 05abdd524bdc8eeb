"""Messages written piece by piece make the text that the chat template makes of the whole chat."""

from typing import Any

import pytest

from infra_lab import LLM, SamplingParams
from infra_lab.engine.programs import State, program
from infra_lab.engine.programs.chat import Chat
from infra_lab.errors import InvalidRequestError, UnsupportedModelError
from infra_lab.models.fetch import resolve_model
from infra_lab.models.tokenizer import Tokenizer, load_tokenizer
from tests.engine.programs.engines import engine

CHATS = [
    [("user", "Hi")],
    [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "Bye"), ("assistant", "Bye.")],
    [("user", "a"), ("assistant", "b"), ("user", "c")],
]


@pytest.fixture(scope="module")
def llm() -> LLM:
    return engine()


@program
def dictated(s: State, chat: list[tuple[str, str]]) -> None:
    for role, content in chat:
        with s.role(role):
            s += content


def written(tokenizer: Tokenizer, chat: list[tuple[str, str]]) -> str:
    state = Chat(tokenizer)
    return "".join(state.open(role) + content + state.close() for role, content in chat)


def rendered(tokenizer: Tokenizer, chat: list[tuple[str, str]], add_generation_prompt: bool = False) -> str:
    messages = [{"role": role, "content": content} for role, content in chat]
    return tokenizer.apply_chat_template(messages, add_generation_prompt=add_generation_prompt)


@pytest.mark.parametrize("chat", CHATS, ids=str)
def test_equals_the_template(llm: LLM, chat: list[tuple[str, str]]) -> None:
    run = dictated.run(llm, chat)
    assert run.text == rendered(llm.tokenizer, chat) == written(llm.tokenizer, chat)
    assert run.token_ids == llm.tokenizer.encode(run.text, add_special_tokens=False)


@pytest.mark.smollm2
@pytest.mark.parametrize("chat", CHATS, ids=str)
def test_equals_the_template_of_smollm2(chat: list[tuple[str, str]]) -> None:
    """Its template adds a system message of its own."""
    tokenizer = load_tokenizer(resolve_model("smollm2-135m"))
    assert written(tokenizer, chat) == rendered(tokenizer, chat)


def test_an_answer_is_asked_for_as_chat_does(llm: LLM) -> None:
    params: dict[str, Any] = {"temperature": 0.0, "max_tokens": 9}

    @program(**params)
    def asked(s: State) -> None:
        s.system("Be brief.")
        s.user("Hi")
        with s.assistant():
            s.gen("answer")
        s.user("Go on")
        with s.assistant():
            s.gen("more")

    run = asked.run(llm)
    chat = [("system", "Be brief."), ("user", "Hi")]
    messages = [{"role": role, "content": content} for role, content in chat]
    assert run["answer"] == llm.chat(messages, SamplingParams(**params)).text
    chat += [("assistant", run["answer"]), ("user", "Go on")]
    assert run.text == rendered(llm.tokenizer, [*chat, ("assistant", run["more"])])
    assert run.text.startswith(rendered(llm.tokenizer, chat, add_generation_prompt=True))


def test_forks_inside_a_message_can_go_on_with_the_chat(llm: LLM) -> None:
    @program
    def forked(s: State) -> list[str]:
        s.user("Hi")
        forks = s.fork(2)
        for fork, name in zip(forks, "ab", strict=True):
            fork.assistant(name)
            fork.user("?")
        return [fork.text for fork in forks]

    assert forked.run(llm).value == [
        rendered(llm.tokenizer, [("user", "Hi"), ("assistant", name), ("user", "?")]) for name in "ab"
    ]


def test_a_message_inside_a_message_is_refused(llm: LLM) -> None:
    @program
    def nested(s: State) -> None:
        with s.user():
            s.fork(1)[0].system("x")

    with pytest.raises(InvalidRequestError, match="a system message inside the user message"):
        nested.run(llm)


class _Templated:
    """A tokenizer of which only the template is asked."""

    def __init__(self, template: str) -> None:
        self.template = template

    def apply_chat_template(self, messages: list[dict[str, str]], *, add_generation_prompt: bool = True) -> str:
        from infra_lab.models.chat_template import render_chat_template

        return render_chat_template(self.template, messages, add_generation_prompt=add_generation_prompt)


LOOP = "{% for m in messages %}"
ENDS_ONCE = LOOP + "<{{ m.role }}>{{ m.content }}{% endfor %}</end>"
ONLY_LAST = "{{ messages[-1].content }}"
THINKS = (  # as Qwen3's: an empty thought in the last answer only, and none in what is asked to go on from
    LOOP + "<{{ m.role }}>{% if loop.last and m.role == 'assistant' %}<think></think>{% endif %}{{ m.content }}</s>"
    "{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.mark.parametrize("template", [ENDS_ONCE, ONLY_LAST])
def test_a_template_that_does_not_grow_at_its_end_is_refused(template: str) -> None:
    with pytest.raises(UnsupportedModelError, match="chat template"):
        written(_Templated(template), CHATS[1])  # type: ignore[arg-type]


def test_a_template_that_treats_the_last_answer_differently() -> None:
    tokenizer = _Templated(THINKS)
    assert written(tokenizer, CHATS[2]) == "<user>a</s><assistant>b</s><user>c</s>"  # type: ignore[arg-type]
