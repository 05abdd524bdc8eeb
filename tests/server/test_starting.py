"""Configuration, keys, addresses and the command line: refused in one sentence, before a model is loaded."""

import builtins
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import typer
from typer.testing import CliRunner

from infra_lab.errors import ConfigError, MissingExtraError
from infra_lab.server import ApiKey, ServedEngine, ServerConfig, create_app
from infra_lab.server.cli import serve as serve_command
from infra_lab.server.keys import find_key, load_keys
from infra_lab.server.listening import check_exposure, for_host, is_loopback, listen, url_of
from infra_lab.server.run import serve
from tests.server.live import WAIT_S, simulated, until

app = typer.Typer()
app.command()(serve_command)


@pytest.mark.parametrize(
    "setting",
    [{"max_waiting": -1}, {"chunk_tokens": 0}, {"heartbeat_s": 0}, {"max_prompt_tokens": 0}, {"tokens_per_minute": -1}],
)
def test_impossible_limits(setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(setting))):
        ServerConfig(**setting)


def test_keys_from_a_file_and_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "keys"
    path.write_text("# who\nalice  sk-alice-1  priority=-2 rpm=10 tpm=1e4\n\nbatch sk-batch-1\n")
    monkeypatch.setenv("INFRA_LAB_API_KEY", "sk-from-env")
    keys = load_keys(path)
    assert [key.name for key in keys] == ["env", "alice", "batch"]
    alice = find_key(keys, b"sk-alice-1")
    assert alice is not None
    assert (alice.name, alice.priority, alice.requests_per_minute, alice.tokens_per_minute) == ("alice", -2, 10, 10_000)
    assert find_key(keys, b"sk-alice-") is None
    assert "sk-alice" not in repr(keys), "a key must not get into a log by way of its object"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("alice\n", "one word"),
        ("alice short\n", "at least 8"),
        ("alice long-enough rpm=fast\n", "rpm=fast"),
        ("alice long-enough rpm=0\n", "rpm=0"),
        ("alice long-enough priority=1.5\n", "priority=1.5"),
        ("alice long-enough speed=1\n", "speed=1"),
        ("# nobody\n", "no key"),
    ],
)
def test_key_files_with_mistakes(tmp_path: Path, text: str, complaint: str) -> None:
    path = tmp_path / "keys"
    path.write_text(text)
    with pytest.raises(ConfigError, match=complaint):
        load_keys(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_keys(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="same name"):
        ServerConfig(api_keys=(ApiKey.of("a", "long-enough"), ApiKey.of("a", "long-enough2")))


def test_nobody_is_let_in_from_outside_by_accident() -> None:
    open_config, keyed = ServerConfig(), ServerConfig(api_keys=(ApiKey.of("a", "long-enough"),))
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org", ""):
        with pytest.raises(ConfigError, match="insecure-no-auth"):
            check_exposure(host, open_config, insecure_no_auth=False)
        check_exposure(host, open_config, insecure_no_auth=True)
        check_exposure(host, keyed, insecure_no_auth=False)
    for host in ("127.0.0.1", "localhost", "::1", "127.8.8.8"):
        assert is_loopback(host)
        check_exposure(host, open_config, insecure_no_auth=False)
    for host in ("127.0.0.1", "127.8.8.8"):
        assert host in for_host(host, open_config).allowed_hosts, "where it listens, it answers"
    assert for_host("127.0.0.1", keyed).allowed_hosts == ()


def test_listening_without_delay_and_a_port_that_is_taken() -> None:
    with listen("127.0.0.1", 0) as listener:
        port = listener.getsockname()[1]
        assert url_of(listener) == f"http://127.0.0.1:{port}"
        assert listener.proto == socket.IPPROTO_TCP, "else asyncio leaves Nagle's algorithm on"
        with pytest.raises(ConfigError, match=str(port)):
            serve("no such model", port=port)
    with pytest.raises(ConfigError, match="insecure-no-auth"):
        serve("no such model", host="0.0.0.0", port=0)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import_module = builtins.__import__

    def without_fastapi(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.partition(".")[0] == "fastapi":
            raise ModuleNotFoundError("No module named 'fastapi'", name="fastapi")
        return import_module(name, *arguments, **keywords)

    for name in [name for name in sys.modules if name.startswith(("infra_lab.server.app", "infra_lab.server.routes"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without_fastapi)
    with pytest.raises(MissingExtraError, match=r"fastapi.*infra-lab\[server\]"):
        create_app(ServedEngine(simulated(), ("sim",)))


def test_importing_the_package_imports_no_framework() -> None:
    code = "import sys, infra_lab.server; print([m for m in ('fastapi', 'uvicorn', 'torch') if m in sys.modules])"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=WAIT_S)
    assert shown.stdout.strip() == "[]"


def test_the_command_says_what_is_wrong_in_one_line() -> None:
    for arguments in (
        ["--host", "0.0.0.0"],
        ["--chunk-tokens", "0"],
        ["--api-key-file", "/nothing"],
        ["--model", "/no", "--port", "0"],
    ):
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 2
        assert result.output.startswith("error: ")
        assert "Traceback" not in result.output


def test_the_command_serves_the_bundled_model(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("me sk-my-own-key\n")
    with listen("127.0.0.1", 0) as free:
        port = free.getsockname()[1]
    code = "import typer; from infra_lab.server.cli import serve; typer.run(serve)"
    arguments = ["--port", str(port), "--api-key-file", str(keys), "--served-model-name", "me", "--device", "cpu"]
    process = subprocess.Popen([sys.executable, "-c", code, *arguments], stderr=subprocess.PIPE, text=True)
    url = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        try:
            return httpx.get(f"{url}/ready").status_code == 200
        except httpx.TransportError:
            assert process.poll() is None, process.communicate()
            return False

    try:
        until(is_ready, "it serves")
        assert httpx.get(f"{url}/v1/models").status_code == 401
        headers = {"Authorization": "Bearer sk-my-own-key"}
        answer = httpx.post(f"{url}/v1/completions", json={"prompt": "def ", "model": "me"}, headers=headers)
        assert answer.json()["usage"]["completion_tokens"] > 0
        process.terminate()
        assert process.wait(WAIT_S) == 0
    finally:
        process.kill()
        log = process.communicate()[1]
    assert "sk-my-own-key" not in log
    assert '"key": "me"' in log
