"""The command line, in real processes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ENVIRONMENT = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1"}


def infra_lab(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "infra_lab.cli", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, env={**ENVIRONMENT, **(environment or {})}
    )


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom infra_lab.cli import app\n"
        "result = CliRunner().invoke(app, ['--help'])\nassert result.exit_code == 0, result\n"
        "assert 'generate' in result.output\nprint('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def test_generate_streams_and_says_how_fast(tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    done = infra_lab("generate", "What is json.dumps?", "--max-tokens", "20", "--trace", str(trace))
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "tokens/s" in done.stderr
    assert "measured" in done.stderr
    assert json.loads(trace.read_text())["traceEvents"]


def test_generate_is_deterministic_and_raw_differs_from_chat() -> None:
    texts = [
        infra_lab("generate", "def f(", "--max-tokens", "12", "--dtype", "float32", *options).stdout
        for options in ([], [], ["--raw"], ["--raw", "--temperature", "1", "--seed", "4"])
    ]
    assert texts[0] == texts[1]
    assert len(set(texts)) == 3


def test_several_samples() -> None:
    done = infra_lab("generate", "class", "--raw", "--n", "2", "--temperature", "1", "--seed", "1", "--max-tokens", "8")
    assert done.returncode == 0, done.stderr
    assert "--- sample 1 ---" in done.stdout
    assert "--- sample 2 ---" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["generate", "x", "--model", "gpt-17"], "unknown model 'gpt-17'"),
        (["generate", "x", "--temperature", "-1"], "temperature is -1.0"),
        (["generate", "x", "--quantization", "int1"], "unknown quantization 'int1'"),
        (["generate", "x", "--kv-dtype", "int4"], "unknown kv_dtype 'int4'; known: auto, int8, fp8"),
        (["serve", "--port", "0", "--kv-dtype", "int4"], "unknown kv_dtype 'int4'"),
        (["generate", "", "--raw"], "no tokens"),
        (["generate", "x" * 5000], "context of 1024"),
        (["fetch", "gpt-17"], "no model is known as 'gpt-17'"),
        (["bench", "everything"], "unknown suite 'everything'; known: engine"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    done = infra_lab(*arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_a_truncated_gguf_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF\x03\x00\x00\x00")
    done = infra_lab("generate", "x", "--model", str(path))
    assert done.returncode == 2
    assert str(path) in done.stderr.replace("\n", "")
    assert "fetch it again" in done.stderr


def test_a_reader_that_has_seen_enough_is_no_error() -> None:
    command = f"{sys.executable} -m infra_lab.cli generate class --raw --max-tokens 300 | head -c 5"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, env=ENVIRONMENT, timeout=120)
    assert len(done.stdout) == 5
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_doctor(tmp_path: Path) -> None:
    done = infra_lab("doctor", "--json", environment={"INFRA_LAB_CACHE": str(tmp_path)})
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["machine"]["num_cores"] >= 1
    assert report["ceilings"]["read_bytes_per_s"] > 1e8
    assert report["ceilings"]["matmul_flops"]["float32"] > 1e8
    assert any("infra-lab fetch smollm2-135m" in line for line in report["advice"])
    assert (tmp_path / "ceilings.json").exists(), "measured once, then remembered"
    table = infra_lab("doctor", environment={"INFRA_LAB_CACHE": str(tmp_path)})
    assert "GB/s" in table.stdout


def test_bench_scheduler_prints_a_table_and_writes_the_same(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "bench.json"
    done = infra_lab("bench", "scheduler", "--quick", "--json", str(path))
    assert done.returncode == 0, done.stderr
    report = json.loads(path.read_text())
    assert report["suite"] == "scheduler"
    names = [row["name"] for row in report["rows"]]
    assert "schedule+update, 256 run" in names
    for row in report["rows"]:
        assert row["name"].strip() in done.stdout
        assert row["peer"]
        assert row["ratio"] == pytest.approx(row["value"] / row["peer_value"])
    assert [file.name for file in path.parent.iterdir()] == ["bench.json"]
