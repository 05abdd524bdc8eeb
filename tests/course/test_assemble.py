"""The graded notebook: the student's answers, and every check and setup cell as it was handed out."""

import random
from pathlib import Path

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra_lab.course.catalog import LessonFiles
from infra_lab.course.exercises import student_notebook
from infra_lab.course.grading.assemble import Assembled, assemble
from infra_lab.course.grading.submissions import section_named
from tests.course.grading_help import by_id, remove
from tests.course.sample import CHECK_BLOCKS, CHECK_SLOTS, SETUP, solution_notebook


def pristine() -> nbformat.NotebookNode:
    return nbformat.from_dict(student_notebook(solution_notebook(), Path("solutions/4_2_kv_cache.ipynb")))


def ids(assembled: Assembled) -> list[str]:
    return [cell["id"] for cell in assembled.notebook["cells"]]


def test_an_untouched_exercise_keeps_its_cells() -> None:
    assembled = assemble(pristine(), pristine())
    assert ids(assembled) == [cell.id for cell in pristine().cells]
    assert assembled.restored == ()
    assert [(check.exercise, check.points) for check in assembled.checks] == [("blocks", 3), ("slots", 1)]


def test_edited_checks_and_setup_are_overwritten() -> None:
    submitted = pristine()
    for name in ("setup", "parameters", "check-blocks", "check-slots"):
        by_id(submitted, name).source = "print('mine')"
    assembled = assemble(submitted, pristine())
    sources = {cell["id"]: cell["source"] for cell in assembled.notebook["cells"]}
    assert sources["setup"] == SETUP
    assert sources["check-blocks"].endswith(CHECK_BLOCKS)
    assert "mine" not in "".join(sources.values())
    assert assembled.restored == ()


@pytest.mark.parametrize("keep", ["metadata", "source"])
def test_checks_that_lost_their_ids_are_found_otherwise(keep: str) -> None:
    submitted = pristine()
    for number, cell in enumerate(submitted.cells):
        cell.id = f"new-{number}"
        if keep == "source":
            cell.metadata = {}
    assembled = assemble(submitted, pristine())
    assert [cell["id"] for cell in assembled.notebook["cells"] if cell["source"].endswith(CHECK_SLOTS)] == [
        "check-slots"
    ]
    assert len(assembled.notebook["cells"]) == len(pristine().cells)
    assert not any("check" in name for name in assembled.restored)


def test_missing_checks_come_back_after_their_answer_or_at_the_end() -> None:
    submitted = pristine()
    remove(submitted, "check-blocks", "check-slots", "answer-slots", "setup")
    assembled = assemble(submitted, pristine())
    assert ids(assembled) == [
        "setup", "title", "parameters", "answer-blocks", "check-blocks", "hint-blocks", "reveal-blocks", "check-slots",
    ]  # fmt: skip
    assert set(assembled.restored) == {"setup setup", "check blocks", "check slots"}


def test_a_check_above_its_answer_is_moved_below() -> None:
    submitted = pristine()
    submitted.cells.insert(0, submitted.cells.pop(4))
    assembled = assemble(submitted, pristine())
    assert ids(assembled) == [cell.id for cell in pristine().cells]


def test_hints_are_not_run_and_tags_cannot_keep_a_cell_from_running() -> None:
    submitted = pristine()
    by_id(submitted, "hint-blocks").id = "copied"
    by_id(submitted, "answer-blocks").metadata["tags"] = ["skip-execution", "raises-exception"]
    both = "\n" * 60 + 'def num_blocks(n):\n    return -(-n // 16)\nhint("blocks")'
    submitted.cells.append(nbformat.v4.new_code_cell(both, id="both"))
    cells = {cell["id"]: cell for cell in assemble(submitted, pristine()).notebook["cells"]}
    assert cells["copied"]["source"] == cells["reveal-blocks"]["source"] == "# hints are not run in grading"
    assert cells["answer-blocks"]["metadata"]["tags"] == []
    assert cells["both"]["source"] == both, "an answer that asks for a hint is still an answer"


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 8)), st.integers(0, 1000), st.booleans())
def test_whatever_is_deleted_or_shuffled_each_check_is_there_once_after_its_answers(
    dropped: set[int], seed: int, lose_ids: bool
) -> None:
    submitted = pristine()
    submitted.cells = [cell for at, cell in enumerate(submitted.cells) if at not in dropped]
    random.Random(seed).shuffle(submitted.cells)
    if lose_ids:
        for number, cell in enumerate(submitted.cells):
            cell.id = f"new-{number}"
    assembled = assemble(submitted, pristine())
    sources = [cell["source"] for cell in assembled.notebook["cells"]]
    for check, answer in ((CHECK_BLOCKS, "def num_blocks"), (CHECK_SLOTS, "def slots")):
        places = [at for at, source in enumerate(sources) if source.endswith(check)]
        assert len(places) == 1
        assert all(at < places[0] for at, source in enumerate(sources) if source.startswith(answer))
    assert sources.count(SETUP) == 1
    assert len(set(ids(assembled))) == len(sources)


@pytest.mark.parametrize(
    ("name", "number", "prefix"),
    [
        ("4_2_kv_cache", "4.2", ""), ("alice_4_2_kv_cache", "4.2", "alice"), ("bob-4_2_kv_cache (1)", "4.2", "bob"),
        ("4_2_kv_cache-Copy1", "4.2", ""), ("00_start_here", "0", ""), ("eve_b_00_start_here", "0", "eve_b"),
    ],
)  # fmt: skip
def test_sections_by_file_name(name: str, number: str, prefix: str) -> None:
    named = section_named(Path(f"{name}.ipynb"))
    assert named is not None
    assert (named.section.number, named.prefix) == (number, prefix)
    assert section_named(Path("x4_2_kv_cache.ipynb")) is None


def test_the_sample_is_what_was_built(sample: LessonFiles) -> None:
    assert nbformat.read(sample.exercise, as_version=4) == pristine()
