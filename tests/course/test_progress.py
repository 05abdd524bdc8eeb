"""The progress file: nothing is lost to other writers, a crash, damage, or a disk that cannot be written."""

import errno
import fcntl
import json
import multiprocessing
import os
from pathlib import Path

import pytest

from infra_lab.course.progress import Progress

WRITERS, ROUNDS = 6, 40


def _count(path: str, name: str) -> None:
    for _ in range(ROUNDS):
        with Progress(Path(path)).edit("4.2") as section:
            record = section["exercises"].setdefault("shared", {"tries": 0})
            record["tries"] += 1
            section["exercises"].setdefault(name, {"tries": 0})["tries"] += 1


def test_concurrent_writers_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "progress.json"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_count, args=(str(path), f"w{n}")) for n in range(WRITERS)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    exercises = Progress(path).section("4.2")["exercises"]
    assert exercises["shared"]["tries"] == WRITERS * ROUNDS
    assert [exercises[f"w{n}"]["tries"] for n in range(WRITERS)] == [ROUNDS] * WRITERS
    assert sorted(file.name for file in tmp_path.iterdir()) == ["progress.json", "progress.json.lock"]


@pytest.mark.parametrize(
    "damage",
    [
        b"", b"{", b"\xff\xfe", b"[]", b'{"version": 1}', b'{"version": 9, "sections": {}}',
        b"[" * 100_000, b'{"version": 1, "sections": {"4.2": {"exercises": {"x": {"tries": "two"}}}}}',
        b'{"version": 1, "sections": {"4.2": []}}', b'{"version": 1, "sections": {"4.2": {"exercises": {"x": 3}}}}',
    ],
)  # fmt: skip
def test_a_damaged_file_is_kept_under_another_name(tmp_path: Path, damage: bytes) -> None:
    path, said = tmp_path / "progress.json", []
    for number in (1, 2):
        path.write_bytes(damage)
        progress = Progress(path, say=said.append)
        with progress.edit("1.1") as section:
            section["predictions"]["x"] = {"value": number}
        assert (tmp_path / f"progress.damaged-{number}.json").read_bytes() == damage
        assert f"kept as progress.damaged-{number}.json" in said[-1]
    assert Progress(path).section("1.1")["predictions"] == {"x": {"value": 2}}


def test_a_damaged_file_that_cannot_be_moved_is_left_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    path = tmp_path / "progress.json"
    path.write_bytes(b"{")
    with monkeypatch.context() as folder:
        folder.setattr(os, "replace", refuse)
        with Progress(path, say=lambda line: None).edit("1.1") as section:
            section["predictions"]["x"] = {"value": 1}
    assert path.read_bytes() == b"{"
    assert Progress(path).section("1.1")["predictions"] == {"x": {"value": 1}}


def test_an_exception_inside_an_edit_saves_nothing(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "progress.json")
    with progress.edit("4.2") as section:
        section["predictions"]["a"] = {"value": 1}
    with pytest.raises(ZeroDivisionError), progress.edit("4.2") as section:
        section["predictions"]["b"] = {"value": 1 // 0}
    assert progress.section("4.2")["predictions"] == {"a": {"value": 1}}


def test_what_is_read_is_a_copy(tmp_path: Path) -> None:
    progress = Progress(tmp_path / "progress.json")
    progress.section("4.2")["predictions"]["a"] = {"value": 1}
    assert progress.section("4.2")["predictions"] == {}


def test_where_nothing_can_be_written_it_says_so_and_lives_in_memory(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    said: list[str] = []
    path = tmp_path / "file" / "progress.json"
    for value in (1, 2):
        with Progress(path, say=said.append).edit("4.2") as section:
            section["predictions"]["a"] = {"value": value}
    assert Progress(path, say=said.append).section("4.2")["predictions"] == {"a": {"value": 2}}
    assert len(said) == 1
    assert "INFRA_LAB_PROGRESS" in said[0]


def test_where_files_cannot_be_locked_it_says_so_and_lives_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    said: list[str] = []
    with Progress(tmp_path / "progress.json", say=said.append).edit("4.2") as section:
        section["predictions"]["a"] = {"value": 1}
    assert Progress(tmp_path / "progress.json").section("4.2")["predictions"] == {"a": {"value": 1}}
    assert "No locks available" in said[0]


def test_after_a_full_disk_it_saves_again_and_reads_what_others_wrote(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    progress = Progress(tmp_path / "progress.json", say=lambda line: None)
    with monkeypatch.context() as disk:
        disk.setattr(os, "replace", full)
        with progress.edit("4.2") as section:
            section["predictions"]["a"] = {"value": 1}
    with progress.edit("4.2") as section:
        section["predictions"]["b"] = {"value": 2}
    assert set(progress.section("4.2")["predictions"]) == {"a", "b"}
    other = json.loads(progress.path.read_bytes())
    other["sections"]["4.2"]["predictions"]["c"] = {"value": 3}
    progress.path.write_text(json.dumps(other))
    assert set(progress.section("4.2")["predictions"]) == {"a", "b", "c"}


def test_a_crash_before_the_replacement_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Progress(tmp_path / "progress.json", say=lambda line: None)
    with progress.edit("4.2") as section:
        section["predictions"]["a"] = {"value": 1}
    before = progress.path.read_bytes()

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt), progress.edit("4.2") as section:
        section["predictions"]["a"] = {"value": 2}
    assert progress.path.read_bytes() == before
    assert json.loads(before)["version"] == 1
