"""That the suite `server` measures what it says: the counting client, the pace, the leak; no speed is judged here."""

import asyncio
import os
import threading
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra_lab.bench.load.host_process import Host, host
from infra_lab.bench.load.hosts import RawSource
from infra_lab.bench.load.lean_client import MARK, LeanConnection, drive, post
from infra_lab.bench.load.pacing import Handshake, PacedExecutor, SendCounter
from infra_lab.bench.server import Sizes, leak_row, server_rows
from infra_lab.errors import InfraLabError
from infra_lab.scheduler.plan import NO_TOKEN, StepPlan, StepResult
from tests.bench.load_server import WAIT_S, Scripted, scripted_server

BODY = b'data: {"text": "x"}\n\n'
EVENTS = [BODY] * 7 + [b'data: {"usage": {"completion_tokens": 7}}\n\n', b"data: [DONE]\n\n"]


@pytest.fixture
def server() -> Iterator[Scripted]:
    with scripted_server() as scripted:
        yield scripted


def port(server: Scripted) -> int:
    return int(server.url.rpartition(":")[2])


def answer() -> bytes:
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(event), event) for event in EVENTS)
    return b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n" + chunks + b"0\r\n\r\n"


@given(cuts=st.lists(st.integers(20, len(answer())), max_size=20))
def test_the_client_counts_the_same_however_the_bytes_are_cut(cuts: list[int]) -> None:
    async def main() -> None:
        connection = LeanConnection()
        connection._over = asyncio.get_running_loop().create_future()
        edges = [0, *sorted(cuts), len(answer())]
        for start, end in zip(edges, edges[1:], strict=False):  # noqa: RUF007
            if start < end:
                connection.data_received(answer()[start:end])
        count = connection._count
        assert (count.events, count.num_bytes, count.is_ok) == (len(EVENTS), len(answer()), True)
        assert connection._over.done()

    asyncio.run(main())
    assert answer().count(MARK) == len(EVENTS)


def run(server: Scripted, behaviour: str, number: int = 20, timeout_s: float = WAIT_S) -> list[tuple[bool, int, int]]:
    body = {"prompt": "a", "max_tokens": 5, "stream": True, "behaviour": behaviour}
    raw = post(port(server), "/v1/completions", body)
    counts = asyncio.run(drive(port(server), raw, num_requests=number, concurrency=4, timeout_s=timeout_s))
    return [(count.is_ok, count.events, count.tokens) for count in counts]


def test_the_client_reads_a_real_servers_streams(server: Scripted) -> None:
    assert run(server, "good") == [(True, 5 + 3, 5)] * 20
    assert server.max_open <= 4


@pytest.mark.parametrize("behaviour", ["busy", "breaks", "error"])
def test_a_stream_that_fails_is_not_ok_and_the_next_one_is_sent(server: Scripted, behaviour: str) -> None:
    assert [is_ok for is_ok, _, _ in run(server, behaviour, number=9)] == [False] * 9


def test_a_stream_that_stalls_is_given_up(server: Scripted) -> None:
    assert run(server, "stall", number=4, timeout_s=0.2) == [(False, 0, 0)] * 4


def test_no_server_and_no_host_are_said(server: Scripted) -> None:
    with pytest.raises(InfraLabError, match=r"no connection to 127\.0\.0\.1:1:"):
        asyncio.run(drive(1, b"", num_requests=1, concurrency=1))
    with pytest.raises(InfraLabError, match="did not start"), host("bare", "/nonexistent"):
        pass


class Made:
    """An executor that counts its steps and makes two tokens in each."""

    steps = 0

    def execute(self, plan: StepPlan) -> StepResult:
        self.steps += 1
        return StepResult([1, NO_TOKEN, 2])

    def close(self) -> None:
        self.steps = -1


def test_a_paced_step_waits_for_every_token_of_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra_lab.bench.load.pacing.MAX_WAIT_S", WAIT_S)
    handshake, made = Handshake(), Made()
    paced = PacedExecutor(made, handshake)
    plan = StepPlan.__new__(StepPlan)  # nobody looks at it
    paced.execute(plan)
    second = threading.Thread(target=paced.execute, args=(plan,))
    second.start()
    handshake.sent()
    assert made.steps == 1, "one of two tokens is not out"
    assert second.is_alive()
    handshake.sent()
    second.join(WAIT_S)
    assert made.steps == 2
    paced.close()
    assert made.steps == -1


def test_a_token_that_is_never_sent_does_not_stop_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("infra_lab.bench.load.pacing.MAX_WAIT_S", 0.01)
    handshake = Handshake()
    assert handshake.wait()
    handshake.owe(1)
    assert not handshake.wait()
    handshake.owe(0)
    handshake.owe(1)
    handshake.sent()
    assert handshake.wait()


def test_the_counter_counts_parts_with_tokens() -> None:
    class Counting(Handshake):
        number = 0

        def sent(self) -> None:
            self.number += 1

    handshake = Counting()
    passed = []

    async def app(scope: object, receive: object, send: object) -> None:
        for more in (True, True, False):
            await send({"type": "http.response.body", "body": b"x", "more_body": more})  # type: ignore[operator]

    async def send(message: object) -> None:
        passed.append(message)

    asyncio.run(SendCounter(app, handshake)({}, None, send))  # type: ignore[arg-type]
    assert handshake.number == 2
    assert len(passed) == 3


class Leaky(RawSource):
    """A server that forgets nothing."""

    kept: list[bytes]
    size = 0

    def data_received(self, data: bytes) -> None:
        self.kept.append(b"x" * self.size)
        super().data_received(data)


@pytest.mark.parametrize(("leaked_bytes", "is_flat"), [(0, True), (400_000, False)])
def test_the_leak_row_sees_a_leak(leaked_bytes: int, is_flat: bool) -> None:
    Leaky.kept, Leaky.size, Leaky.events = [], leaked_bytes, EVENTS
    ready: list[int] = []
    is_over = threading.Event()

    async def serve() -> None:
        server = await asyncio.get_running_loop().create_server(Leaky, "127.0.0.1", 0)
        ready.append(server.sockets[0].getsockname()[1])
        while not is_over.is_set():
            await asyncio.sleep(0.01)

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    try:
        while not ready:
            is_over.wait(0.01)
        row = leak_row(Sizes(leak_from=200, leak_to=1000), Host(ready[0], os.getpid()))
    finally:
        is_over.set()
        thread.join(WAIT_S)
        Leaky.kept = []
    assert row.is_reached is is_flat, row


@pytest.mark.slow
def test_all_rows_on_a_small_scale() -> None:
    sizes = Sizes(
        streams=4, stream_tokens=16, rounds=1, repeats=1, many_streams=20, leak_from=20, leak_to=60, ttft_requests=5
    )
    rows = {row.name: row for row in server_rows(sizes, lambda line: None)}
    assert list(rows) == [
        "SSE events/s", "  against one go", "server CPU an event", "tokens/s, merged", "client's ceiling", "TTFT added",
        "20 streams at once", "  slowest of them", "RSS after 60",
    ]  # fmt: skip
    assert rows["20 streams at once"].value == 20
    assert 0 < rows["  slowest of them"].ratio <= 1
    assert all(row.value > 0 and row.peer_value > 0 for row in rows.values())
