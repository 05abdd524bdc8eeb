"""A lesson that keeps the contract, as small as one can be."""

import nbformat
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from infra_lab.course.catalog import section
from infra_lab.course.ledger import claims_of

HEAD = """\
# 4.2 KV cache
KV Cache 管理与分层存储

**After this you can** say how many requests fit. 60 minutes · CPU, GPU adds a measurement · Before: 0."""
PANEL = """\
import matplotlib.pyplot as plt
from IPython.display import display
figure, axes = plt.subplots(figsize=(2, 1))
axes.plot([0, 1], [0, 1])
plt.close(figure)
display(figure)"""
SUMMARY = "Pages waste less than 4% of the memory (Kwon et al. 2023).\n\nA block of `16` tokens; `20 ms` is code."


def lesson_notebook() -> nbformat.NotebookNode:
    cells = [new_markdown_cell(HEAD)]

    def code(tag: str, source: str, *more: str) -> None:
        made = new_code_cell(source)
        made.metadata["tags"] = [tag, *more]
        cells.append(made)

    def text(tag: str, source: str) -> None:
        made = new_markdown_cell(source)
        made.metadata["tags"] = [tag]
        cells.append(made)

    code("setup", 'from infra_lab.course import claim, lesson, predict\nlesson("4.2")', "nbval-ignore-output")
    code("problem", "wasted = 1 - 20 / 32\nprint(wasted)")
    code("predict", 'guess = predict("waste", "What share is used?", unit="%")\nguess')
    text("mechanism", "The blocks of a request need not lie side by side.")
    code("panel", PANEL)
    code("invariants", "assert -(-20 // 16) == 2")
    code("break-it", "broken = 20 // 16\nassert broken != 2")
    for row in claims_of(section("4.2")):
        holds = {"holds": "True", "wrong": "False", "holds-under-conditions": '{"short": True, "long": False}'}
        code("claims", f'claim("{row.id}", {holds[row.expected_verdict]}, because="counted above")')
    text("gpu", "On a GPU the same, as [recorded](https://example.org).")
    text("exercise", "Now [yours](exercises/4_2_kv_cache.ipynb).")
    text("summary", SUMMARY)
    return new_notebook(cells=cells)
