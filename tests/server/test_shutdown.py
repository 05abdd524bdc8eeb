"""SIGTERM under load: who is in may finish, who comes is sent away, and in the end everybody has had an answer."""

import json
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.server.live import WAIT_S, until

TEXT = "the quick brown fox jumps over the lazy dog. " * 100


class Process:
    """The server's process and what it logged."""

    def __init__(self, step_s: float, drain_s: float, linger_s: float) -> None:
        command = [sys.executable, "-m", "tests.server.serve_simulated", str(step_s), str(drain_s), str(linger_s)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.url = f"http://127.0.0.1:{int(self.process.stdout.readline())}"
        self.log: list[dict[str, object]] = []
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        until(lambda: self.status("/ready") == 200, "the server is ready")

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(json.loads(line))

    def status(self, path: str) -> int | None:
        try:
            return httpx.get(self.url + path, timeout=WAIT_S).status_code
        except httpx.TransportError:
            return None

    def wait(self) -> int:
        code = self.process.wait(WAIT_S)
        self._reader.join(WAIT_S)
        return code


@contextmanager
def process(step_s: float = 0.01, drain_s: float = 30.0, linger_s: float = 0.0) -> Iterator[Process]:
    server = Process(step_s, drain_s, linger_s)
    try:
        yield server
    finally:
        server.process.kill()
        server.wait()


class Stream:
    """A client on a thread that reads one stream to its end."""

    def __init__(self, url: str, max_tokens: int) -> None:
        self.text, self.error, self.is_done = "", "", False
        self.has_begun = threading.Event()
        self._thread = threading.Thread(target=self._read, args=(url, max_tokens), daemon=True)
        self._thread.start()

    def _read(self, url: str, max_tokens: int) -> None:
        body = {"prompt": "x", "max_tokens": max_tokens, "stream": True}
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=WAIT_S) as response:
            for line in response.iter_lines():
                self.is_done |= line == "data: [DONE]"
                if line.startswith("data: {"):
                    event = json.loads(line[6:])
                    self.error += event.get("error", {}).get("code", "")
                    self.text += event["choices"][0]["text"] if "choices" in event else ""
                    self.has_begun.set()

    def join(self) -> "Stream":
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive()
        return self


def test_running_streams_finish_and_new_ones_are_refused() -> None:
    with process() as server:
        streams = [Stream(server.url, 150) for _ in range(8)]
        assert all(stream.has_begun.wait(WAIT_S) for stream in streams)
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.status("/ready") == 503, "it says that it is not ready any more")
        assert server.status("/health") == 200, "to be restarted now would kill those who are in"
        refused = httpx.post(f"{server.url}/v1/completions", json={"prompt": "x"})
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert refused.json()["error"]["code"] == "shutting_down"
        for stream in streams:
            assert (stream.join().text, stream.error, stream.is_done) == (TEXT[:150], "", True)
        assert server.wait() == 0
    lines = [line for line in server.log if line["event"] == "request" and line["route"] == "/v1/completions"]
    assert [line["status"] for line in lines] == [503] + [200] * 8
    assert all(line["output_tokens"] == 150 and line["stream"] for line in lines[1:])


def test_what_does_not_finish_in_time_is_told_so() -> None:
    with process(drain_s=0.3) as server:
        stream = Stream(server.url, 3000)
        assert stream.has_begun.wait(WAIT_S)
        server.process.send_signal(signal.SIGTERM)
        stream.join()
        assert stream.error == "shutting_down"
        assert stream.is_done
        assert stream.text == TEXT[: len(stream.text)]
        assert server.wait() == 0


def test_it_lingers_for_load_balancers() -> None:
    with process(linger_s=1.0) as server:
        server.process.send_signal(signal.SIGTERM)
        until(lambda: server.status("/ready") == 503, "idle, it still answers")
        assert server.wait() == 0
        assert server.status("/ready") is None


@pytest.mark.parametrize("first", [signal.SIGTERM, signal.SIGINT])
def test_a_second_signal_ends_it_at_once(first: signal.Signals) -> None:
    with process() as server:
        stream = Stream(server.url, 3000)
        assert stream.has_begun.wait(WAIT_S)
        server.process.send_signal(first)
        until(lambda: server.status("/ready") == 503, "it drains")
        server.process.send_signal(signal.SIGINT)
        assert server.wait() == 0
        assert len(stream.join().text) < 3000
