"""Prompt programs: Python that writes text, has the model continue it, and branches (SGLang, Zheng 2024).

>>> from infra_lab.engine.programs import State, program
>>> @program(temperature=0.0)
... def compare(s: State, first: str, second: str) -> None:
...     s.system("You are brief.")
...     s.user(f"Compare {first} and {second}.")
...     with s.assistant():
...         s.gen("answer", max_tokens=32, stop="\\n")
...         forks = s.fork(2)
...         for fork, topic in zip(forks, ("food", "price"), strict=True):
...             fork += f"\\nOn {topic}: "
...             fork.gen("tip", max_tokens=12, regex="[a-z ]+")
...         s += f"\\nFood: {forks[0]['tip']}\\nWorth a visit:"
...         s.select("verdict", [" yes", " no"])
>>> run = compare.run(llm, first="Rome", second="Oslo")
>>> run["verdict"], run.text, run.stats

A program runs ahead: `+=`, `gen`, `select` and `fork` only note what is to be done, and only reading a value waits for it.
Whatever is noted at one time, in all branches of all programs of a batch, goes through the engine as one continuous batch:

      programs (a thread each, one at a time)          the caller's thread
    s += …, s.gen(…), f.gen(…)  ── operations ──▶  branches ── calls ──▶ gate ──▶ EngineCore.step()
    s["tip"]  ◀────────────────── values ─────────────────────────────────────────────┘

A text that has grown is sent as a new prompt each time; what it begins with comes from the prefix cache. Two that begin
alike go one after the other through what they share, so that it is computed once (`prefix_gate`).
"""

from infra_lab.engine.programs.program import Program, program
from infra_lab.engine.programs.results import ProgramRun, ProgramStats, Selection, UnknownVariableError
from infra_lab.engine.programs.state import State

__all__ = ["Program", "ProgramRun", "ProgramStats", "Selection", "State", "UnknownVariableError", "program"]
