"""Hints come one at a time; a solution opens after enough failed tries, or once it is solved."""

from pathlib import Path

import pytest

from infra_lab.course import check, hint, lesson, reveal
from infra_lab.course.progress import Progress
from infra_lab.errors import ConfigError


@pytest.fixture(autouse=True)
def _begun(sample_labs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("INFRA_LAB_LABS", str(sample_labs))
    lesson("4.2")
    out = capsys.readouterr().out.splitlines()
    assert out[0] == "4.2 KV cache: management and tiers · KV Cache 管理与分层存储"
    assert "torch" in out[1]


def attempt(right: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with check("blocks", points=3) as c:
        c.true(right, "part")
    capsys.readouterr()


def test_one_more_hint_each_time(capsys: pytest.CaptureFixture[str]) -> None:
    shown = []
    for _ in range(3):
        hint("blocks")
        shown.append(capsys.readouterr().out)
    assert "1. Round up.\n(1 more" in shown[0]
    assert "2." not in shown[0]
    assert "1. Round up.\n2. -(-a // b) rounds up.\n(no more hints" in shown[1]
    assert shown[2] == shown[1]
    assert Progress().section("4.2")["exercises"]["blocks"]["hints"] == 2


def test_the_solution_opens_after_the_stated_number_of_failed_tries(capsys: pytest.CaptureFixture[str]) -> None:
    said = []
    for _ in range(3):
        reveal("blocks")
        said.append(capsys.readouterr().out)
        attempt(False, capsys)
    assert "after 2 more tries" in said[0]
    assert "after 1 more try " in said[1]
    assert "return -(-num_tokens // block_size)" in said[2]
    assert "SOLUTION" not in said[2]
    assert "block_size" not in said[0] + said[1]


def test_the_solution_opens_once_it_is_solved(capsys: pytest.CaptureFixture[str]) -> None:
    attempt(True, capsys)
    reveal("blocks")
    assert "One solution of blocks" in capsys.readouterr().out


def test_an_exercise_without_hints_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    hint("slots")
    assert "Hint 0 of 0" in capsys.readouterr().out


def test_mistakes_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="has no exercise 'block'; it has blocks, slots"):
        hint("block")
    with pytest.raises(ConfigError, match=r"no section '4\.9' in the course; the sections are 0, 1\.1"):
        lesson("4.9")
    monkeypatch.setattr("infra_lab.course.session._current", "")
    with pytest.raises(ConfigError, match="Run its first cell"):
        reveal("blocks")
