"""Every test of the course has a progress file of its own and no lesson begun."""

from pathlib import Path

import pytest

from infra_lab.course import session
from infra_lab.course.catalog import LessonFiles
from tests.course.sample import write_sample_course


@pytest.fixture(autouse=True)
def _own_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFRA_LAB_PROGRESS", str(tmp_path / "progress" / "progress.json"))
    monkeypatch.delenv("INFRA_LAB_LABS", raising=False)
    monkeypatch.setattr(session, "_current", "")


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> LessonFiles:
    """The sample course; not to be changed."""
    return write_sample_course(tmp_path_factory.mktemp("course") / "labs")


@pytest.fixture(scope="session")
def sample_labs(sample: LessonFiles) -> Path:
    return sample.lesson.parents[1]
