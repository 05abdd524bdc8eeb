"""A course of one section, small enough to grade in seconds: an exercise about KV blocks, in two parts.

labs/00_start_here.ipynb
labs/04_parallelism_and_memory/4_2_kv_cache.ipynb  exercises/  solutions/
"""

from pathlib import Path
from typing import Any

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from infra_lab.course.catalog import LessonFiles, lesson_files, section
from infra_lab.course.exercises import build_exercises

NUMBER = "4.2"
FULL_POINTS = 4.0

SETUP = """\
from infra_lab.course import check, hint, lesson, reveal
lesson("4.2")"""
PARAMETERS = "block_size = 16"
BLOCKS = '''\
def num_blocks(num_tokens: int) -> int:
    """How many blocks hold that many tokens."""
    ### BEGIN SOLUTION
    return -(-num_tokens // block_size)
    ### END SOLUTION'''
CHECK_BLOCKS = """\
with check("blocks", points=3, parts=3) as c:
    c.equal(lambda: num_blocks(20), 2, "20 tokens take two blocks")
    c.equal(lambda: num_blocks(32), 2, "a full block is not followed by an empty one")
    c.equal(lambda: num_blocks(0), 0, "nothing takes nothing")"""
SLOTS = '''\
def slots(block_table: list[int], num_tokens: int) -> list[int]:
    """The slot of every token."""
    ### BEGIN SOLUTION
    return [block_table[t // block_size] * block_size + t % block_size for t in range(num_tokens)]
    ### END SOLUTION'''
CHECK_SLOTS = """\
with check("slots", points=1, parts=1) as c:
    c.equal(slots([3, 1], 18)[15:], [63, 16, 17], "tokens 15, 16 and 17 of the table [3, 1]")"""


def cell(source: str, cell_id: str, tag: str = "", **noted: Any) -> nbformat.NotebookNode:
    made = new_code_cell(source, id=cell_id)
    if noted:
        made.metadata["infra_lab"] = noted
    if tag:
        made.metadata["tags"] = [tag]
    return made


def solution_notebook() -> nbformat.NotebookNode:
    hints = ["Round up.", "-(-a // b) rounds up."]
    return new_notebook(
        metadata={"infra_lab": {"section": NUMBER}},
        cells=[
            new_markdown_cell("# Exercise 4.2", id="title"),
            cell(SETUP, "setup", role="setup"),
            cell(PARAMETERS, "parameters", "parameters", role="setup"),
            cell(BLOCKS, "answer-blocks", role="answer", exercise="blocks", hints=hints, reveal_after=2),
            cell(CHECK_BLOCKS, "check-blocks", role="check", exercise="blocks", points=3),
            cell('hint("blocks")', "hint-blocks", role="hint"),
            cell('reveal("blocks")', "reveal-blocks", role="hint"),
            cell(SLOTS, "answer-slots", role="answer", exercise="slots"),
            cell(CHECK_SLOTS, "check-slots", role="check", exercise="slots", points=1),
        ],
    )


def write_sample_course(labs: Path) -> LessonFiles:
    """Write the course below a folder and build its exercise; return the files of section 4.2."""
    files = lesson_files(section(NUMBER), labs)
    files.solution.parent.mkdir(parents=True)
    nbformat.write(solution_notebook(), files.solution)
    build_exercises(labs)
    return files


def answered(exercise: nbformat.NotebookNode, **answers: str) -> nbformat.NotebookNode:
    """Write answers into an exercise notebook: `blocks="def num_blocks..."`."""
    for one in exercise.cells:
        name = one.metadata.get("infra_lab", {}).get("exercise")
        if one.metadata.get("infra_lab", {}).get("role") == "answer" and name in answers:
            one.source = answers[name]
    return exercise


MUTANTS = """\
[[mutant]]
name = "rounds down"
exercise = "blocks"
old = "-(-num_tokens // block_size)"
new = "num_tokens // block_size"
loses = { blocks = 1.0 }

[[mutant]]
name = "wrong slot"
exercise = "slots"
old = "+ t % block_size"
new = "+ t"
loses = { slots = 1.0 }
"""
