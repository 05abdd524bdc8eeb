"""`infra-lab bench serve` from the shell."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner, Result

from infra_lab.bench.serve import bench_serve
from tests.bench.load_server import WAIT_S, Scripted, scripted_server

app = typer.Typer()
app.command()(bench_serve)
FAST = ["--rate", "400", "-n", "6", "--output-tokens", "3", "--prompt-tokens", "20"]


@pytest.fixture
def server() -> Iterator[Scripted]:
    with scripted_server() as scripted:
        yield scripted


def serve(*arguments: str, **env: str) -> Result:
    return CliRunner().invoke(app, list(arguments), env=env, terminal_width=120)


def test_table_json_and_key(server: Scripted, tmp_path: Path) -> None:
    path = tmp_path / "new" / "load.json"
    done = serve(
        "--url", server.url, *FAST, "--slo", "ttft:60000", "--json", str(path), "--records", OPENAI_API_KEY="k"
    )
    assert done.exit_code == 0, done.output
    for text in ("TTFT", "TPOT", "ITL", "E2E", "6 of 6 requests answered", "100% of requests kept ttft"):
        assert text in done.output
    content = json.loads(path.read_text())
    assert (content["num_ok"], content["output_tokens"], len(content["records"])) == (6, 18, 6)
    assert content["goodput"]["num_good"] == 6
    assert {header["authorization"] for header in server.headers} == {"Bearer k"}
    assert "Bearer" not in path.read_text()


def test_fields_and_a_trace_reach_the_server(server: Scripted, tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text("arrival_s,prompt_tokens,output_tokens\n0,20,2\n0.01,30,3\n")
    extra = ["--extra-body", '{"top_k": 5}', "--no-ignore-eos", "--endpoint", "chat"]
    done = serve("--url", server.url, "--trace", str(trace), *extra)
    assert done.exit_code == 0, done.output
    assert sorted(body["max_tokens"] for body in server.bodies) == [2, 3]
    assert all(body["top_k"] == 5 and "ignore_eos" not in body for body in server.bodies)


def test_no_answer_at_all_is_a_failure_with_its_reason(server: Scripted) -> None:
    done = serve("--url", server.url, *FAST, "--extra-body", '{"behaviour": "busy"}')
    assert done.exit_code == 1
    assert "6 × HTTP 429" in done.output
    assert "come back later" in done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--url", "nowhere"], "expected something like http://"),
        (["--url", "http://127.0.0.1:9", "--slo", "fast"], "ttft:500"),
        (["--url", "http://127.0.0.1:9", "--arrivals", "weekly"], "known: poisson"),
        (["--url", "http://127.0.0.1:9", "--extra-body", "[1]"], "expected an object"),
        (["--url", "http://127.0.0.1:9", "--extra-body", "{"], "not JSON"),
    ],
)
def test_mistakes_are_one_line(arguments: list[str], message: str) -> None:
    done = serve(*arguments)
    assert done.exit_code == 2
    assert message in done.output.replace("\n", " ")
    assert "Traceback" not in done.output


def test_ctrl_c_prints_what_there_is(server: Scripted, tmp_path: Path) -> None:
    server.gate_size = 10**6  # nobody is ever answered
    path = tmp_path / "partial.json"
    code = "import typer; from infra_lab.bench.serve import bench_serve; typer.run(bench_serve)"
    options = ["--rate", "50", "-n", "100000", "--extra-body", '{"behaviour": "gate"}', "--json", str(path)]
    with subprocess.Popen(
        [sys.executable, "-c", code, "--url", server.url, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "COLUMNS": "120"},
    ) as process:
        end_s = time.monotonic() + 3 * WAIT_S
        while len(server.bodies) < 5 and time.monotonic() < end_s:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=60)
    assert "stopped early" in output
    assert process.returncode == 1  # no request was answered
    content = json.loads(path.read_text())
    assert content["is_partial"]
    assert content["errors"] == {"stopped": content["num_sent"]}
    assert 5 <= content["num_sent"] < 100_000
