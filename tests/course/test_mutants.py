"""Mutants: read strictly, applied in one place, and graded like any solution."""

from pathlib import Path

import nbformat
import pytest

from infra_lab.course.catalog import LessonFiles
from infra_lab.course.mutants import apply_mutant, read_mutants
from infra_lab.course.notebooks import read_notebook
from infra_lab.errors import ConfigError
from tests.course.grading_help import grade_one
from tests.course.sample import FULL_POINTS, MUTANTS


def mutants_of(text: str, folder: Path) -> Path:
    path = folder / "4_2_kv_cache.mutants.toml"
    path.write_text(text)
    return path


def test_each_sample_mutant_loses_what_it_says(sample: LessonFiles, sample_labs: Path, tmp_path: Path) -> None:
    solution = read_notebook(sample.solution)
    for mutant in read_mutants(mutants_of(MUTANTS, tmp_path)):
        path = tmp_path / "4_2_kv_cache.ipynb"
        nbformat.write(nbformat.from_dict(apply_mutant(solution, mutant)), path)
        row = grade_one(path, sample_labs)
        full = {"blocks": 3.0, "slots": 1.0}
        assert row.scores == {name: points - mutant.loses.get(name, 0) for name, points in full.items()}, mutant.name
        assert row.points == FULL_POINTS


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[[mutant]]", "[[mutants]]", "expected one or more"),
        ('name = "rounds down"\n', "", r"mutant 1 \(without a name\): expected text"),
        ('exercise = "slots"', "exercise = 3", r"mutant 2 \(wrong slot\): expected text"),
        ("loses = { slots = 1.0 }", "loses = { slots = 0 }", "loses must say how many points"),
        ("loses = { slots = 1.0 }", "loses = {}", "loses must say how many points"),
        ("[[mutant]]", "[[mutant", "is not TOML"),
    ],
)
def test_a_mutants_file_with_a_mistake_is_refused(old: str, new: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        read_mutants(mutants_of(MUTANTS.replace(old, new), tmp_path))


def test_a_mutant_must_fit_in_one_place(sample: LessonFiles, tmp_path: Path) -> None:
    first = read_mutants(mutants_of(MUTANTS, tmp_path))[0]
    solution = read_notebook(sample.solution)
    for old, times in (("nowhere", 0), ("num_tokens", 2)):
        with pytest.raises(ConfigError, match=f"occurs {times} times in the answers of 'blocks'; expected once"):
            apply_mutant(solution, first._replace(old=old))
    assert "num_tokens // block_size" in read_notebook(sample.solution)["cells"][3]["source"]
