"""A body within the limit on bytes may still be a million of something; none of it may be the event loop's work.

Each of these bodies, four megabytes long, once held up every stream: for two seconds, or for twenty and three gigabytes.
"""

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import BaseModel, ValidationError

from infra_lab.server.prepare import LONG_BODY_BYTES
from infra_lab.server.routes.chat import ChatRequest
from infra_lab.server.routes.completions import CompletionRequest
from infra_lab.server.routes.tokenize import DetokenizeRequest, TokenizeRequest
from infra_lab.server.sampling_fields import MAX_BIASES
from tests.server.live import WAIT_S, Live, serving, simulated

MANY = 10_000
PROMPT = {"prompt": "x"}
CHAT = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (CompletionRequest, {"prompt": [None] * MANY}),
        (CompletionRequest, {"prompt": [[None] * MANY]}),
        (CompletionRequest, {"prompt": [["x"]] * MANY}),
        (CompletionRequest, {**PROMPT, "stop_token_ids": [None] * MANY}),
        (CompletionRequest, {**PROMPT, "stop": [None] * MANY}),
        (CompletionRequest, {**PROMPT, "guided_choice": [None] * MANY}),
        (CompletionRequest, {**PROMPT, "logit_bias": {f"x{index}": None for index in range(MANY)}}),
        (ChatRequest, {"messages": [1] * MANY}),
        (ChatRequest, {**CHAT, "tools": [1] * MANY}),
        (TokenizeRequest, {"messages": [1] * MANY}),
        (DetokenizeRequest, {"tokens": [None] * MANY}),
    ],
)
def test_the_first_error_is_enough(model: type[BaseModel], fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as raised:
        model.model_validate(fields)
    assert raised.value.error_count() <= 6, "one for each type that the field may have"


def test_as_many_biases_as_are_allowed() -> None:
    biases = {str(token): 1.0 for token in range(MAX_BIASES)}
    assert len(CompletionRequest.model_validate({**PROMPT, "logit_bias": biases}).logit_bias or {}) == MAX_BIASES


class Watched:
    """A server that notes on which threads its tokenizer works."""

    def __init__(self, live: Live) -> None:
        self.live, self.threads = live, list[str]()
        tokenizer = live.engine.tokenizer
        for name in ("encode", "decode", "apply_chat_template"):
            self._watch(tokenizer, name)

    def _watch(self, tokenizer: Any, name: str) -> None:
        original = getattr(tokenizer, name)

        def watched(*arguments: Any, **keywords: Any) -> Any:
            self.threads.append(threading.current_thread().name)
            return original(*arguments, **keywords)

        setattr(tokenizer, name, watched)

    def post(self, path: str, **body: Any) -> httpx.Response:
        self.threads.clear()
        return httpx.post(self.live.url + path, json=body, timeout=WAIT_S)


@pytest.fixture(scope="module")
def watched() -> Iterator[Watched]:
    with serving(simulated()) as live:
        yield Watched(live)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "x" * LONG_BODY_BYTES, "max_tokens": 1}),
        ("/v1/completions", {"prompt": [""] * 300 + ["x" * 3600]}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": ""}] * 200}),
        ("/v1/chat/completions", {**CHAT, "metadata": "x" * LONG_BODY_BYTES}),
        ("/tokenize", {"messages": [{"role": "user", "content": ""}] * 200}),
        ("/tokenize", {"prompt": "x" * LONG_BODY_BYTES}),
        ("/detokenize", {"tokens": [97] * LONG_BODY_BYTES}),
    ],
)
def test_much_work_is_done_on_another_thread(watched: Watched, path: str, body: dict[str, Any]) -> None:
    watched.post(path, **body)
    assert watched.threads, "the tokenizer has worked"
    assert all(name.startswith("asyncio_") for name in watched.threads)


def test_prompts_that_never_fit_are_not_even_tokenized(watched: Watched) -> None:
    response = watched.post("/v1/completions", prompt=["x"] * (watched.live.runtime.admission.limit + 1))
    assert response.status_code == 400
    assert "sequences" in response.json()["error"]["message"]
    assert watched.threads == []
