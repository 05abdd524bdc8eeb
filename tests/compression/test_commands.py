"""`infra-lab distill` and `infra-lab prune`, down to a folder that the engine serves."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from infra_lab import LLM, SamplingParams
from infra_lab.cli import app

QUICK = ("--steps", "2", "--batch", "2", "--length", "32")


def infra_lab(*arguments: str) -> Result:
    return CliRunner(env={"COLUMNS": "300", "NO_COLOR": "1"}).invoke(app, arguments)


def serve(folder: Path) -> LLM:
    llm = LLM(str(folder), dtype="float32", device="cpu", num_kv_blocks=8)
    [output] = llm.generate(["The "], SamplingParams(max_tokens=3, temperature=0.0, ignore_eos=True))
    assert len(output.token_ids) == 3
    return llm


def test_distill(tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("a few words of text, over and over. " * 20)
    done = infra_lab("distill", "tiny", "--out", str(tmp_path / "out"), "--layers", "2", "--text", str(text), *QUICK)
    assert done.exit_code == 0, done.output
    assert "839,616 weights" in done.output
    assert "in 2 steps" in done.output
    assert "tokens a step with 4 proposals" in done.output
    assert serve(tmp_path / "out").model.config.num_layers == 2


def test_prune(tmp_path: Path) -> None:
    shares = ("--heads", "0.5", "--channels", "0.25", "--layers", "0.25")
    done = infra_lab("prune", "tiny", "--out", str(tmp_path / "out"), *shares, "--recover", *QUICK[1:])
    assert done.exit_code == 0, done.output
    assert "3 layers, 3 query and 1 KV heads, 384 channels" in done.output
    config = serve(tmp_path / "out").model.config
    assert (config.num_heads, config.num_kv_heads, config.intermediate_size) == (3, 1, 384)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("prune", "OUT"), "nothing would be removed"),
        (("prune", "OUT", "--heads", "0.9"), "removes all 2 KV-head groups"),
        (("prune", ".", "--heads", "0.5"), "exists and is not empty"),
        (("distill", "OUT", "--heads", "5"), "num_heads is 5; it must be a multiple of num_kv_heads, 2"),
        (("distill", "OUT", "--device", "abacus"), "device is 'abacus'; expected cpu or cuda"),
        (("distill", "OUT", "--dtype", "int8"), "dtype is 'int8'; expected one of"),
        (("distill", "OUT", "--length", "2000000"), "give a longer text, or shorter windows"),
        (("distill", "OUT", "--text", "/nowhere/text"), "cannot be read as UTF-8 text"),
    ],
)
def test_errors_take_one_line_and_leave_nothing(tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    command, out, *options = arguments
    folder = tmp_path / "out" if out == "OUT" else Path.cwd()
    done = infra_lab(command, "tiny", "--out", str(folder), *options)
    assert done.exit_code == 2
    assert message in done.output
    assert not any(tmp_path.iterdir())
    assert "distilling" not in done.output  # found before any work
    assert "measuring" not in done.output
