"""Who may come in, how many, how much, how urgently."""

import threading
from typing import Any

import httpx
import openai
import pytest

from infra_lab.server import ApiKey
from infra_lab.server.admission import Admission
from infra_lab.server.api_error import ApiError
from infra_lab.server.config import ServerConfig
from infra_lab.server.rate_limit import RateLimiter, TokenBucket
from tests.server.live import WAIT_S, Live, serving, simulated, until

KEYS = (
    ApiKey.of("alice", "alices-secret", priority=0),
    ApiKey.of("batch", "batchs-secret", priority=10),
    ApiKey.of("noël", "clé-secrète"),
    ApiKey.of("guest", "guests-secret", requests_per_minute=2),
)
LONG = {"prompt": "x", "max_tokens": 3000, "stream": True}


class Hand:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def now(self) -> float:
        return self.now_s

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds


def occupy(live: Live, count: int, **body: Any) -> list[threading.Thread]:
    def one() -> None:
        httpx.post(f"{live.url}/v1/completions", json={"prompt": "x", "max_tokens": 60, **body}, timeout=WAIT_S)

    threads = [threading.Thread(target=one) for _ in range(count)]
    for thread in threads:
        thread.start()
    return threads


def test_a_full_house_says_when_to_come_back() -> None:
    with serving(simulated(step_s=0.01, max_num_seqs=2), max_waiting=3) as live:
        threads = occupy(live, 5)
        until(lambda: live.runtime.admission.in_flight == 5, "all places are taken")
        with pytest.raises(openai.RateLimitError) as raised:
            live.openai().completions.create(model="sim", prompt="x", max_tokens=2)
        assert raised.value.code == "queue_full"
        assert 1 <= int(raised.value.response.headers["retry-after"]) <= 60
        for thread in threads:
            thread.join(WAIT_S)
        assert live.openai().completions.create(model="sim", prompt="x", max_tokens=2).choices[0].text == "th"


def test_too_many_requests_at_once_are_told_so_and_probes_get_through() -> None:
    """With uvicorn's own limit probes were refused too: a server would have been restarted for being busy."""
    with serving(simulated(step_s=0.01), max_in_flight=1) as live:
        with httpx.stream("POST", f"{live.url}/v1/completions", json=LONG, timeout=WAIT_S) as first:
            lines = first.iter_lines()
            next(lines)
            with pytest.raises(openai.InternalServerError) as raised:
                live.openai().models.list()
            assert (raised.value.status_code, raised.value.code) == (503, "too_busy")
            assert raised.value.response.headers["retry-after"] == "1"
            for path in ("/health", "/ready", "/metrics"):
                assert httpx.get(live.url + path).status_code == 200
        until(live.is_idle, "the first one has left")
        assert live.openai().models.list().data


def test_openais_client_retries_by_itself_until_there_is_room() -> None:
    with serving(simulated(step_s=0.01, max_num_seqs=1), max_waiting=0) as live:
        [thread] = occupy(live, 1)
        until(lambda: live.runtime.admission.in_flight == 1, "the only place is taken")
        answer = live.openai(max_retries=5).completions.create(model="sim", prompt="x", max_tokens=2)
        assert answer.choices[0].text == "th"
        thread.join(WAIT_S)


def test_samples_count_one_by_one() -> None:
    admission = Admission(max_running=4, max_waiting=4)
    admission.enter(6)
    with pytest.raises(ApiError) as raised:
        admission.enter(3)
    assert raised.value.status == 429
    with pytest.raises(ApiError) as raised:
        admission.enter(9)
    assert raised.value.status == 400, "nine never fit, however long one waits"
    admission.leave(6, 20.0)
    admission.enter(8)
    for _ in range(100):
        admission.leave(0, 20.0)
    assert admission.retry_after_s() == 5, "a place gets free every 20 s / 4"


def test_keys_are_asked_for_and_compared() -> None:
    with serving(simulated(), api_keys=KEYS) as live:
        for secret in ("wrong-secret", "alices-secre", "alices-secret2", "ünïcödé"):
            response = httpx.get(f"{live.url}/v1/models", headers={"Authorization": f"Bearer {secret}".encode()})
            assert response.status_code == 401
            assert response.headers["www-authenticate"] == "Bearer"
        with pytest.raises(openai.AuthenticationError) as raised:
            live.openai().models.list()
        assert raised.value.code == "invalid_api_key"
        assert live.openai(api_key="alices-secret").completions.create(model="sim", prompt="x", max_tokens=2)
        headers = {"Authorization": "bearer clé-secrète".encode()}
        assert httpx.get(f"{live.url}/v1/models", headers=headers).status_code == 200
        for path in ("/health", "/ready", "/metrics", "/v2/health/live"):
            assert httpx.get(live.url + path).status_code == 200
        for path in ("/v1/models", "/tokenize", "/v2", "/docs", "/openapi.json", "/nothing"):
            assert httpx.get(live.url + path).status_code == 401


def test_a_key_has_a_rate_of_its_own() -> None:
    with serving(simulated(), api_keys=KEYS) as live:
        guest, alice = live.openai(api_key="guests-secret"), live.openai(api_key="alices-secret")
        for _ in range(2):
            guest.completions.create(model="sim", prompt="x", max_tokens=2)
        with pytest.raises(openai.RateLimitError) as raised:
            guest.completions.create(model="sim", prompt="x", max_tokens=2)
        assert raised.value.code == "rate_limit_exceeded"
        assert 1 <= int(raised.value.response.headers["retry-after"]) <= 31
        alice.completions.create(model="sim", prompt="x", max_tokens=2)


def test_output_tokens_are_charged_when_they_are_known() -> None:
    clock = Hand()
    rates = RateLimiter(ServerConfig(tokens_per_minute=600), clock)
    rates.admit(None, 100)
    rates.charge(None, 700)  # 200 of debt: 20 s at 10 a second
    with pytest.raises(ApiError) as raised:
        rates.admit(None, 1)
    assert raised.value.headers["Retry-After"] == "21"
    clock.sleep(20.2)
    rates.admit(None, 1)
    other = ApiKey.of("other", "others-secret", tokens_per_minute=10)
    rates.admit(other, 10_000)  # more than a minute brings: let in when the bucket is full, else never
    with pytest.raises(ApiError):
        rates.admit(other, 1)


def test_a_refused_request_is_not_charged() -> None:
    clock = Hand()
    rates = RateLimiter(ServerConfig(tokens_per_minute=60, requests_per_minute=60), clock)
    rates.admit(None, 60)
    for _ in range(100):
        with pytest.raises(ApiError):
            rates.admit(None, 60)
    clock.sleep(60)
    rates.admit(None, 60)


def test_a_bucket_never_holds_more_than_a_minute() -> None:
    clock = Hand()
    bucket = TokenBucket(60, clock)
    clock.sleep(3600)
    assert bucket.wait_s(60) == 0
    bucket.take(60)
    assert bucket.wait_s(30) == pytest.approx(30)


def test_priorities_overtake_but_not_beyond_the_keys_class() -> None:
    with serving(simulated(step_s=0.01, max_num_seqs=1), api_keys=KEYS) as live:
        blocker = live.openai(api_key="alices-secret").completions.create(
            model="sim", prompt="x", max_tokens=30, stream=True
        )
        next(iter(blocker))
        order: list[str] = []

        def one(key: str, name: str, priority: int) -> None:
            body = {"priority": priority}
            live.openai(api_key=key).completions.create(model="sim", prompt="x", max_tokens=3, extra_body=body)
            order.append(name)

        waiting = [
            ("batchs-secret", "batch that claims to be urgent", -5),
            ("alices-secret", "alice, patient", 5),
            ("alices-secret", "alice, urgent", 0),
        ]
        threads = []
        for index, arguments in enumerate(waiting):
            threads.append(threading.Thread(target=one, args=arguments))
            threads[-1].start()
            until(lambda count=index: live.runtime.admission.in_flight == 2 + count, "it waits")  # type: ignore[misc]
        list(blocker)
        for thread in threads:
            thread.join(WAIT_S)
        assert order == ["alice, urgent", "alice, patient", "batch that claims to be urgent"]


def test_keys_can_have_prefix_caches_of_their_own() -> None:
    prompt = "a secret that should not be guessed from how fast it is answered. " * 2
    for isolate, expected in ((False, True), (True, False)):
        with serving(simulated(), api_keys=KEYS, isolate_keys=isolate) as live:
            cached = []
            for secret in ("alices-secret", "batchs-secret"):
                answer = live.openai(api_key=secret).completions.create(model="sim", prompt=prompt, max_tokens=1)
                cached.append(answer.usage.prompt_tokens_details.cached_tokens)  # type: ignore[union-attr]
            assert (cached[1] > 0) is expected


def test_no_salt_leads_into_the_cache_of_another_key() -> None:
    keys = (ApiKey.of("a", "as-own-secret"), ApiKey.of("a:b", "abs-own-secret"))
    with serving(simulated(), api_keys=keys, isolate_keys=True) as live:
        for secret, salt in (("abs-own-secret", "x"), ("as-own-secret", "b:x")):
            answer = live.openai(api_key=secret).completions.create(
                model="sim", prompt="x" * 40, max_tokens=1, extra_body={"cache_salt": salt}
            )
            assert answer.usage.prompt_tokens_details.cached_tokens == 0  # type: ignore[union-attr]


def test_long_prompts_and_foreign_hosts_are_refused() -> None:
    with serving(simulated(), max_prompt_tokens=10, allowed_hosts=("127.0.0.1",)) as live:
        with pytest.raises(openai.BadRequestError) as raised:
            live.openai().completions.create(model="sim", prompt="x" * 11)
        assert raised.value.code == "prompt_too_long"
        foreign = httpx.get(f"{live.url}/v1/models", headers={"Host": "attacker.example:8000"})
        assert foreign.status_code == 403


def test_a_context_that_is_exceeded_has_openais_code() -> None:
    with serving(simulated(max_model_len=64, num_kv_blocks=100)) as live:
        with pytest.raises(openai.BadRequestError) as raised:
            live.openai().completions.create(model="sim", prompt="x" * 60, max_tokens=5)
        assert raised.value.code == "context_length_exceeded"
        assert live.openai().completions.create(model="sim", prompt="x" * 60, max_tokens=4).usage
        short = live.openai().completions.create(model="sim", prompt="x" * 60)
        assert short.choices[0].finish_reason == "length"
    with serving(simulated(max_model_len=4096, num_kv_blocks=4)) as live:  # 64 tokens of KV, and one more sampled
        chat: list[Any] = [{"role": "user", "content": "Hi"}]
        answer = live.openai().chat.completions.create(model="sim", messages=chat)
        assert answer.usage is not None
        assert answer.usage.total_tokens == 65
