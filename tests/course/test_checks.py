"""Checks: the first wrong place, points by parts, and nothing that a student's code does leaves the block."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from infra_lab.course import check
from infra_lab.course.compare import first_difference, first_far_value
from infra_lab.course.progress import Progress
from infra_lab.errors import ConfigError


@pytest.mark.parametrize(
    ("got", "expected", "message"),
    [
        ([0, 1], [0, 2], "at [1]: 1, expected 2"),
        ((0, 1), [0, 1], None),
        ([0], [0, 1], "1 items, expected 2: [0], expected [0, 1]"),
        ([[1], [2, 3]], [[1], [2, 4]], "at [1][1]: 3, expected 4"),
        ({"a": 1}, {"a": 1, "b": 2}, "no key 'b', expected {'a': 1, 'b': 2}"),
        ({"a": 1, "c": 0}, {"a": 1}, "a key 'c' that should not be there"),
        ({"a": [1]}, {"a": [2]}, "at ['a'][0]: 1, expected 2"),
        (np.array([1, 2]), [1, 2], None),
        (torch.tensor([[1, 2], [3, 4]]), np.array([[1, 2], [3, 5]]), "at [1][1]: 4, expected 5"),
        (np.int64(3), 3, None),
        (None, 3, "None, expected 3"),
        ("x" * 100 + "a", "x" * 100 + "b", "first different character at 100: 'a', expected 'b'"),
    ],
)
def test_equal_names_the_first_difference(got: object, expected: object, message: str | None) -> None:
    assert first_difference(got, expected) == message


def test_an_object_that_equals_everything_equals_no_number() -> None:
    class Anything:
        def __eq__(self, other: object) -> bool:
            return True

        __hash__ = None

    assert "of type Anything, expected 2" in str(first_difference(Anything(), 2))
    assert "at [0]" in str(first_difference([Anything()], [2]))
    for expected in ([1], (1, 2), {"a": 1}, {1}):
        assert "of type Anything, expected" in str(first_difference(Anything(), expected))


@pytest.mark.parametrize(
    ("got", "expected", "message"),
    [
        ([1.0, 2.0], [1.0, 2.0 + 1e-9], None),
        ([[1.0, 2.0], [3.0, 4.0]], [[1.0, 2.0], [3.5, 4.0]], "first at [1, 0]: 3, expected 3.5 (off by 0.5"),
        ([1.0, 2.0, 3.0], [0.0, 0.0, 3.0], "2 of 3 values are wrong"),
        (torch.ones(2, 2, dtype=torch.bfloat16), np.ones((2, 2)), None),
        ([torch.tensor(1.0), torch.tensor(2.0)], [1.0, 2.0], None),
        ([1.0, float("nan")], [1.0, 2.0], "first at [1]: nan, expected 2"),
        ([1.0, 2.0], [1.0, 2.0, 3.0], "shape [2], expected [3]"),
        (1.5, 1.0, "1.5, expected 1 (off by 0.5"),
        (None, 1.0, "None of type NoneType, expected numbers"),
        ("12", 12, "'12' of type str, expected numbers"),
        ([[1], [2, 3]], [[1, 1], [2, 3]], "cannot be read as an array of numbers"),
        (1 + 1j, 1 + 2j, "expected 1+2j"),
    ],
)
def test_close_names_the_first_far_value(got: object, expected: object, message: str | None) -> None:
    found = first_far_value(got, expected, atol=1e-6, rtol=1e-5)
    assert found is None if message is None else message in str(found)


@given(st.lists(st.integers(-3, 3), min_size=1), st.lists(st.integers(-3, 3), min_size=1))
def test_equal_is_pythons_equality_and_the_index_is_the_first(one: list[int], other: list[int]) -> None:
    found = first_difference(one, other)
    assert (found is None) == (one == other)
    differing = [i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b]
    if differing:
        assert str(found).startswith(f"at [{differing[0]}]: ")


def test_a_failed_part_is_recorded_and_the_next_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with check("blocks", points=3, parts=3) as c:
        assert not c.equal(1, 2, "first")
        assert c.close([1.0], [1.0], "second")
        assert c.true(lambda: True, "third")
    assert c.earned == pytest.approx(2.0)
    assert capsys.readouterr().out.splitlines() == [
        "blocks: 2 of 3 points", "  ✗ first: 1, expected 2", "  ✓ second", "  ✓ third",
    ]  # fmt: skip


def test_an_exception_in_a_part_fails_that_part_only() -> None:
    with check("blocks", points=2, parts=2) as c:
        c.equal(lambda: 1 // 0, 2, "divides")
        c.equal(1, 1, "goes on")
    assert [part.passed for part in c.parts] == [False, True]
    assert "ZeroDivisionError" in c.parts[0].message
    assert c.earned == 1.0


@pytest.mark.parametrize(("parts", "earned"), [(4, 1.0), (None, 2.0)])
def test_an_early_end_loses_the_parts_not_reached(parts: int | None, earned: float) -> None:
    with check("blocks", points=4, parts=parts) as c:
        c.true(True, "reached")
        raise RuntimeError("the student's code")
    assert c.earned == earned
    assert c.grade()["ended_by"].startswith("RuntimeError: the student's code")


@pytest.mark.parametrize("error", [SystemExit(0), RecursionError(), MemoryError(), GeneratorExit()])
def test_nothing_but_an_interrupt_leaves_the_block(error: BaseException) -> None:
    with check("blocks", points=1, parts=1) as c:
        raise error
    assert c.earned == 0
    interrupted = check("blocks", points=2, parts=2)
    interrupted.true(True, "before")
    assert not interrupted.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None), "it must go on to the caller"
    assert interrupted.earned == 1.0


def test_raises() -> None:
    def negative() -> None:
        raise ValueError("num_tokens is -1")

    def stub() -> None:
        raise NotImplementedError

    with check("blocks", points=1) as c:
        assert c.raises(ValueError, negative, "refuses")
        assert c.raises(ValueError, negative, "says which", match="-1")
        assert not c.raises(ValueError, negative, "says another", match="-2")
        assert not c.raises(ValueError, lambda: 3, "returns")
        assert not c.raises(TypeError, negative, "another error")
        assert not c.raises(RuntimeError, stub, "the stub's NotImplementedError is a RuntimeError")
    assert c.parts[3].message == "no ValueError was raised; the result was 3"
    assert c.parts[4].message.startswith("ValueError: num_tokens is -1")
    assert c.parts[5].message == "not written yet"


def test_full_points_are_exact_whatever_the_number_of_parts() -> None:
    for parts in range(1, 30):
        with check("x", points=1.1, parts=parts) as c:
            for part in range(parts):
                c.true(True, str(part))
        assert c.earned == 1.1


def test_tries_are_counted_and_the_untouched_stub_is_no_failed_try() -> None:
    def run(*outcomes: object) -> dict[str, object]:
        with check("blocks", points=1) as c:
            for outcome in outcomes:
                if isinstance(outcome, BaseException):
                    raise outcome
                c.true(outcome, "part")
        return dict(Progress().section("")["exercises"]["blocks"])

    assert run(NotImplementedError()) == {"tries": 1, "points": 1, "best": 0.0}
    assert run(True, False) == {"tries": 2, "failed": 1, "points": 1, "best": 0.5}
    assert run(True, NotImplementedError()) == {"tries": 3, "failed": 2, "points": 1, "best": 0.5}
    assert run(True) == {"tries": 4, "failed": 2, "points": 1, "best": 1}


@pytest.mark.parametrize(("points", "parts"), [(0, None), (-1, None), (float("nan"), None), (1, 0)])
def test_impossible_points_and_parts_are_refused(points: float, parts: int | None) -> None:
    with pytest.raises(ConfigError, match="check"):
        check("x", points=points, parts=parts)


def test_the_grade_is_json(tmp_path: Path) -> None:
    with check("x", points=3) as c:
        c.true(np.bool_(True), "numpy")
        c.equal(np.int32(1), np.int32(2), "numpy")
    record = json.loads(json.dumps(c.grade()))
    assert record["earned"] == 1.5
    assert [part["passed"] for part in record["parts"]] == [True, False]
