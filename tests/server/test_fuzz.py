"""Whatever is sent, the answer is not a crash: every route of the OpenAPI description, with generated requests."""

from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from tests.server.live import WAIT_S, Live, until

schemathesis = pytest.importorskip("schemathesis")
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
FIELDS = [
    "n",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "logit_bias",
    "seed",
    "max_tokens",
    "min_tokens",
    "stop",
    "stop_token_ids",
    "include_stop_str_in_output",
    "ignore_eos",
    "skip_special_tokens",
    "stream",
    "stream_options",
    "response_format",
    "structured_outputs",
    "return_token_ids",
    "priority",
    "cache_salt",
    "logprobs",
    "echo",
    "suffix",
    "best_of",
    "tools",
    "tool_choice",
    "top_logprobs",
    "max_completion_tokens",
    "add_generation_prompt",
    "chat_template_kwargs",
    "model",
]
RELAXED = settings(
    max_examples=40,
    phases=[Phase.generate],  # to shrink an example over HTTP takes minutes
    database=None,
    derandomize=True,  # a failure can be had again
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def test_every_route_with_what_its_description_allows_and_forbids(sim: Live) -> None:
    schema = schemathesis.openapi.from_url(f"{sim.url}/openapi.json")
    seen = set()
    for operation in schema.get_all_operations():
        case_strategy = operation.ok().as_strategy()
        seen.add(operation.ok().label)

        @settings(RELAXED, max_examples=30)
        @given(case_strategy, st.integers(0, 4).map(bool))
        def check(case: Any, is_served: bool) -> None:
            if isinstance(case.body, dict):
                case.body["timeout"] = 0.5
            if is_served:  # a model's name that is made up would end nearly every case at its first check
                if isinstance(case.body, dict):
                    case.body.pop("model", None)
                if "model" in case.path_parameters:
                    case.path_parameters["model"] = "sim"
            response = case.call(base_url=sim.url, timeout=WAIT_S)
            assert response.status_code < 500, response.text
            if response.status_code >= 400 and not case.path.startswith("/v2"):
                assert set(response.json()["error"]) == {"message", "type", "param", "code"}

        check()
    assert {"POST /v1/chat/completions", "POST /v1/completions", "POST /v2/models/{model}/infer"} <= seen
    until(sim.is_idle, "nothing is left of it")


@RELAXED
@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4), st.booleans())
def test_any_value_in_any_field(sim: Live, fields: dict[str, Any], chat: bool) -> None:
    prompt: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}]} if chat else {"prompt": "x"}
    path = "/v1/chat/completions" if chat else "/v1/completions"
    response = httpx.post(sim.url + path, json={**fields, **prompt, "timeout": 0.5}, timeout=WAIT_S)
    assert response.status_code in (200, 400, 404, 408), response.text
    if response.status_code != 200:
        assert response.json()["error"]["message"]


@RELAXED
@given(JSON, st.sampled_from(["messages", "prompt"]))
def test_any_prompt(sim: Live, value: Any, field: str) -> None:
    path = "/v1/chat/completions" if field == "messages" else "/v1/completions"
    response = httpx.post(sim.url + path, json={field: value, "max_tokens": 1}, timeout=WAIT_S)
    assert response.status_code in (200, 400, 429), response.text


@RELAXED
@given(st.binary(max_size=300), st.sampled_from(["/v1/completions", "/tokenize", "/v2/models/sim/infer"]))
def test_any_bytes(sim: Live, body: bytes, path: str) -> None:
    headers = {"Content-Type": "application/json"}
    assert httpx.post(sim.url + path, content=body, headers=headers, timeout=WAIT_S).status_code == 400
