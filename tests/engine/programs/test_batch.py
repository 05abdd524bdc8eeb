"""Many programs at once: the same texts as one by one, in fewer steps, and the common prefix computed once."""

from typing import Any

import pytest

from infra_lab.engine.programs import State, program
from infra_lab.errors import InvalidRequestError
from tests.engine.drained import assert_drained
from tests.engine.programs.engines import engine

EXAMPLES = "Return the first item of a list, or None if it is empty. "  # 57 bytes = 14 blocks of 4 + 1
assert len(EXAMPLES) == 57


@program(temperature=0.0, max_tokens=6)
def few_shot(s: State, number: int) -> str:
    s += EXAMPLES
    s += f"{number:03d}"
    s.gen("a", stop=".")
    forks = s.fork(2)
    for fork, word in zip(forks, (" if", " of"), strict=True):
        fork += word
        fork.gen("b", max_tokens=1 + number % 4)
    if "e" in s["a"]:
        s += " else"
        s.gen("c", max_tokens=2)
    s += forks[number % 2]["b"]
    return s["a"] + forks[0]["b"] + forks[1]["b"]


@pytest.mark.parametrize("options", [{}, {"max_waiting": 2}, {"policy": "prefix-aware"}], ids=str)
def test_equals_one_by_one(options: dict[str, Any]) -> None:
    alone, llm = engine(), engine(**options)
    expected = [few_shot.run(alone, number) for number in range(12)]
    runs = few_shot.run_batch(llm, [{"number": number} for number in range(12)])
    assert [run.error for run in runs] == [None] * 12
    assert [(run.text, run.token_ids, run.value) for run in runs] == [
        (run.text, run.token_ids, run.value) for run in expected
    ]
    assert len(llm.recorder.steps) < len(alone.recorder.steps) / 3
    assert_drained(llm)


def test_the_common_prefix_is_computed_once() -> None:
    @program(temperature=0.0, max_tokens=2)
    def short(s: State, number: int) -> None:
        s += f"{EXAMPLES}{number:03d}"
        s.gen("a")

    numbers = [{"number": number} for number in range(10)]
    runs = short.run_batch(engine(), numbers)
    # All have 60 tokens; the last block, of 1 token in common and 3 of the number, is each one's own.
    assert [run.stats.prompt_tokens for run in runs] == [60] * 10
    assert [run.stats.cached_tokens for run in runs] == [0] + [56] * 9
    without = short.run_batch(engine(enable_prefix_cache=False), numbers)
    assert sum(run.stats.computed_tokens for run in without) == 600
    assert sum(run.stats.computed_tokens for run in runs) == 600 - 9 * 56
    assert [run.text for run in runs] == [run.text for run in without]


def test_what_shares_nothing_does_not_wait() -> None:
    @program(temperature=0.0, max_tokens=3)
    def different(s: State, letter: str) -> None:
        s += letter * 20
        s.gen("a")

    llm = engine()
    different.run_batch(llm, [{"letter": letter} for letter in "abcde"])
    assert len(llm.recorder.steps) == 3


def test_two_hundred_programs() -> None:
    llm = engine()
    runs = few_shot.run_batch(llm, [{"number": number} for number in range(200)])
    assert all(run.error is None for run in runs)
    alone = engine()
    for number in (0, 77, 199):
        assert runs[number].text == few_shot.run(alone, number).text
    assert max(len(step.chunks) for step in llm.recorder.steps) > 50
    assert_drained(llm)


def test_no_more_than_so_many_at_a_time() -> None:
    running, most = set(), []

    @program(temperature=0.0, max_tokens=3)
    def counted(s: State, number: int) -> None:
        running.add(number)
        s += f"Return {number}"
        s.gen("a")
        s["a"]
        most.append(len(running))
        running.discard(number)

    runs = counted.run_batch(engine(), [{"number": number} for number in range(9)], max_parallel=3)
    assert [run["a"] for run in runs] == [counted.run(engine(), number)["a"] for number in range(9)]
    assert max(most) == 3
    assert counted.run_batch(engine(), []) == []
    with pytest.raises(InvalidRequestError, match="max_parallel is 0"):
        counted.run_batch(engine(), [], max_parallel=0)
