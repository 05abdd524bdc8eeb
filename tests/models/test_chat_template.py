"""Chat templates render as transformers renders them, inside a sandbox."""

from typing import Any

import pytest
import transformers

from infra_lab.data import data_path
from infra_lab.errors import InvalidRequestError, UnsupportedModelError
from infra_lab.models.chat_template import render_chat_template
from infra_lab.models.fetch import resolve_model
from infra_lab.models.tokenizer import load_tokenizer

CHATS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "Hi"}],
    [{"role": "system", "content": "Be brief & kind."}, {"role": "user", "content": "你好 <b>"}],
    [
        {"role": "user", "content": "1+1?"},
        {"role": "assistant", "content": " 2 "},
        {"role": "user", "content": "Sure?\n"},
    ],
]
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"city": "string", "é": "<&>"}}}]
TEMPLATES = {
    "llama-like": (
        "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}"
        "{% set messages = messages[1:] %}{% else %}{% set system = '' %}{% endif %}"
        "{% for message in messages %}{% if loop.index0 == 0 and system %}[{{ system }}] {% endif %}"
        "{% if message['role'] == 'user' %}[INST] {{ message['content'] | trim }} [/INST]"
        "{% else %} {{ message.content | trim }} {{ eos_token }}{% endif %}{% endfor %}"
    ),
    "tools": (
        "{%- if tools %}\n{%- for tool in tools %}\n    {{- tool | tojson }}\n{%- endfor %}\n{%- endif %}\n"
        "{%- for message in messages %}\n    {{- '<|' + message.role + '|>' + message.content }}\n{%- endfor %}\n"
        "{%- if add_generation_prompt %}{{- '<|assistant|>' }}{%- endif %}"
    ),
    "loop controls and generation": (
        "{% for message in messages %}{% if message.role == 'system' %}{% continue %}{% endif %}"
        "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}{% endgeneration %}"
        "{% else %}{{ message.content }}|{% endif %}{% if loop.last %}{% break %}{% endif %}{% endfor %}"
    ),
    "namespace": (
        "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + m.content | length %}{% endfor %}"
        "{{ ns.n }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ strftime_now('%Y') }}"
    ),
}


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES.keys())
@pytest.mark.parametrize("messages", CHATS, ids=range(len(CHATS)))
@pytest.mark.parametrize("tools", [None, TOOLS], ids=["", "tools"])
def test_equal_to_transformers(template: str, messages: list[dict[str, Any]], tools: Any) -> None:
    theirs: Any = transformers.AutoTokenizer.from_pretrained(data_path("tiny"))
    for add_generation_prompt in (False, True):
        expected = theirs.apply_chat_template(
            messages, chat_template=template, tools=tools, add_generation_prompt=add_generation_prompt, tokenize=False
        )
        ours = render_chat_template(
            template,
            messages,
            tools=tools,
            add_generation_prompt=add_generation_prompt,
            variables={"bos_token": theirs.bos_token, "eos_token": theirs.eos_token},
        )
        assert ours == expected


@pytest.mark.smollm2
def test_smollm2s_own_template() -> None:
    tokenizer = load_tokenizer(resolve_model("smollm2-135m"))
    theirs: Any = transformers.AutoTokenizer.from_pretrained(data_path("tiny"))
    for messages in CHATS:
        expected = theirs.apply_chat_template(
            messages, chat_template=tokenizer.chat_template, add_generation_prompt=True, tokenize=False
        )
        assert tokenizer.apply_chat_template(messages) == expected
    assert tokenizer.apply_chat_template(CHATS[0]).startswith("<|im_start|>system\nYou are a helpful AI assistant")


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append({'role': 'x'}) }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{ raise_exception('roles must alternate') }}",
        "{{ 1 / 0 }}",
        "{{ messages[99].content.x }}",
    ],
)
def test_attacks_and_failures_are_refused(template: str) -> None:
    with pytest.raises(InvalidRequestError, match="the chat template"):
        render_chat_template(template, CHATS[0])


def test_the_templates_own_message_reaches_the_user() -> None:
    with pytest.raises(InvalidRequestError, match="roles must alternate"):
        render_chat_template("{{ raise_exception('roles must alternate') }}", CHATS[0])
    with pytest.raises(UnsupportedModelError, match=r"not valid Jinja \(line 2"):
        render_chat_template("a\n{% for %}", CHATS[0])


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "messages is empty"),
        ("hello", "messages is a str"),
        ([{"content": "x"}], r"messages\[0\] has the role None"),
        ([{"role": "user"}], r"messages\[0\] has no content"),
        ([{"role": "user", "content": 5}], r"messages\[0\]\.content is a int"),
        ([CHATS[0][0], "x"], r"messages\[1\] is a str"),
        ([{"role": "user", "content": [{"type": "image"}]}], r"messages\[0\]\.content\[0\] is of type 'image'"),
        ([{"role": "user", "content": "x", "extra": {1}}], r"messages\[0\]\.extra is a set"),
    ],
    ids=str,
)
def test_malformed_messages_are_named(messages: Any, message: str) -> None:
    with pytest.raises(InvalidRequestError, match=message):
        render_chat_template(TEMPLATES["tools"], messages)


def test_a_model_without_a_template() -> None:
    tokenizer = load_tokenizer(data_path("tiny"))
    tokenizer.chat_templates = {}
    with pytest.raises(InvalidRequestError, match="no chat template"):
        tokenizer.apply_chat_template(CHATS[0])
