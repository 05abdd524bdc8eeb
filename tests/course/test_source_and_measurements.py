"""Showing the package's own code, and reading back what a GPU run recorded."""

import json
from pathlib import Path
from typing import Any

import pytest
from IPython.utils.capture import capture_output

from infra_lab.bench.report import BenchReport, at_least
from infra_lab.course import measurements
from infra_lab.course.source import show_source
from infra_lab.errors import ConfigError, CorruptModelError
from infra_lab.paged_kv.block_manager import BlockManager


def shown(thing: object, **options: Any) -> str:
    from IPython.core.interactiveshell import InteractiveShell

    InteractiveShell.instance()
    with capture_output() as captured:
        show_source(thing, **options)
    return str(captured.outputs[0].data["text/markdown"])


def test_source_says_where_it_stands_and_is_what_runs() -> None:
    text = shown(BlockManager.grow)
    path, rest = text.split(", from line ", 1)
    line = int(rest.split("\n", 1)[0])
    assert path == "`infra_lab/paged_kv/block_manager.py`"
    root = Path(__file__).resolve().parents[2]
    source = (root / "infra_lab/paged_kv/block_manager.py").read_text().splitlines()
    assert source[line - 1].strip() in text
    assert "Make room for writing tokens" in text


def test_without_the_docstring() -> None:
    text = shown(BlockManager.grow, docstring=False)
    assert '"""' not in text
    assert "Make room for writing tokens" not in text
    assert "def grow(self" in text
    assert "return copies" in text


def test_no_source() -> None:
    with pytest.raises(ConfigError, match="no Python source"):
        show_source(len)


def test_recorded_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def places(name: str) -> Path:
        return tmp_path / name

    monkeypatch.setattr(measurements, "data_path", places)
    report = BenchReport("kv", [at_least("output", 300.0, "tok/s", "blocks of 1024", 100.0, None)])
    report.write_json(tmp_path / "measurements" / "some-gpu" / "kv.json")
    (run,) = measurements.recorded("kv")
    assert (run.gpu, run.measured_at) == ("some-gpu", report.measured_at)
    assert run.lines() == ["output: 300 tok/s, 3.00 of blocks of 1024"]
    assert measurements.recorded("engine") == []
    (tmp_path / "measurements" / "some-gpu" / "kv.json").write_text(json.dumps({"rows": []}))
    with pytest.raises(CorruptModelError, match=r"kv\.json is no report"):
        measurements.recorded("kv")


def test_nothing_recorded_yet_is_no_error() -> None:
    assert measurements.recorded("a suite that nobody has run") == []
