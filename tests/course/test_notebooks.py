"""Reading notebooks that other programs wrote, or damaged."""

import json
from pathlib import Path

import pytest

from infra_lab.course import notebooks
from infra_lab.course.notebooks import notebook_text, read_notebook
from infra_lab.errors import ConfigError


def written(path: Path, *cells: dict[str, object]) -> Path:
    whole = [{"cell_type": "markdown", "metadata": {}, "source": "", **cell} for cell in cells]
    path.write_text(json.dumps({"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": whole}))
    return path


def test_ids_that_are_missing_malformed_or_taken_are_replaced(tmp_path: Path) -> None:
    path = written(tmp_path / "x.ipynb", {"id": "a"}, {}, {"id": "#VSC-12"}, {"id": "a"}, {"id": "x" * 65}, {"id": 3})
    ids = [cell["id"] for cell in read_notebook(path)["cells"]]
    assert ids == ["a", "cell-1", "cell-2", "cell-3", "cell-4", "cell-5"]


def test_half_a_character_becomes_a_question_mark(tmp_path: Path) -> None:
    path = written(tmp_path / "x.ipynb", {"source": "\ud83d and 🙂"})
    assert "? and 🙂" in notebook_text(read_notebook(path)).encode("utf-8").decode()


def test_a_notebook_full_of_output_is_not_even_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "x.ipynb", {"source": "x" * 1000})
    monkeypatch.setattr(notebooks, "MAX_NOTEBOOK_BYTES", 1000)
    with pytest.raises(ConfigError, match="clear its outputs"):
        read_notebook(path)
