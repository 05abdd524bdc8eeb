"""The table of contents: every section once, Chinese titles, and a README that agrees with it."""

import re
from pathlib import Path

import pytest

from infra_lab.course.catalog import lesson_files, section, section_of
from infra_lab.course.folders import labs_path
from infra_lab.course.readme import render_toc, write_toc
from infra_lab.course.toc import CHAPTERS, SECTIONS
from infra_lab.errors import ConfigError

NUMBERS = (
    "0 1.1 1.2 1.3 2.1 2.2 2.3 2.4 3.1 3.2 3.3 3.4a 3.4b 3.4c 4.1 4.2 4.3 4.4 5.1 5.2 5.3 5.4 6.1 6.2 6.3a 6.3b 6.4 7"
)


def test_every_section_once_in_order_with_a_name_of_its_own() -> None:
    assert [entry.number for entry in SECTIONS] == NUMBERS.split()
    assert len({entry.slug for entry in SECTIONS}) == len(SECTIONS)
    assert all(re.search("[一-鿿]", entry.chinese) or entry.number == "4.1" for entry in SECTIONS)
    assert {entry.folder for entry in SECTIONS} == set(CHAPTERS)
    assert all(entry.minutes >= 15 for entry in SECTIONS)
    for entry in SECTIONS[1:]:
        assert entry.slug.startswith(entry.number.replace(".", "_") + "_"), entry
        assert entry.folder.startswith("0" + entry.number[0]), entry


def test_files_of_the_first_lesson_and_of_one_in_a_chapter() -> None:
    labs = Path("labs")
    assert lesson_files(section("0"), labs).exercise == labs / "exercises" / "00_start_here.ipynb"
    files = lesson_files(section("4.2"), labs)
    assert files.lesson.as_posix() == section("4.2").path == "labs/04_parallelism_and_memory/4_2_kv_cache.ipynb"
    assert files.mutants.as_posix() == "labs/04_parallelism_and_memory/solutions/4_2_kv_cache.mutants.toml"
    assert section_of(files.mutants) == section_of(files.lesson) == section("4.2")


def test_the_readme_links_what_is_written_and_says_what_is_not(tmp_path: Path) -> None:
    lesson = lesson_files(section("4.2"), tmp_path).lesson
    lesson.parent.mkdir(parents=True)
    lesson.write_text("{}")
    text = render_toc(tmp_path)
    assert "[KV cache: management and tiers](04_parallelism_and_memory/4_2_kv_cache.ipynb)" in text
    assert text.count("*(not written yet)*") == len(SECTIONS) - 1
    assert all((tmp_path / link).exists() for link in re.findall(r"\| \d\S* \| \[.*?\]\((.*?)\)", text))
    assert write_toc(tmp_path, check_only=True)
    assert not (tmp_path / "README.md").exists()
    assert write_toc(tmp_path)
    assert not write_toc(tmp_path, check_only=True)
    lesson.unlink()
    assert write_toc(tmp_path, check_only=True), "a lesson came or went"


def test_labs_are_found_by_the_variable_from_the_working_directory_or_in_the_clone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    course = tmp_path / "somewhere" / "labs"
    inside = course / "04_parallelism_and_memory" / "exercises"
    inside.mkdir(parents=True)
    (course / "00_start_here.ipynb").write_text("{}")
    monkeypatch.chdir(inside)
    assert labs_path() == course
    monkeypatch.chdir(tmp_path / "somewhere")
    assert labs_path() == course
    monkeypatch.setenv("INFRA_LAB_LABS", str(tmp_path))
    assert labs_path() == tmp_path
    monkeypatch.setenv("INFRA_LAB_LABS", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="which is not a folder"):
        labs_path()
