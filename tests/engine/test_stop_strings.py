"""Stop strings against a brute-force reading of the whole text, for any way of cutting it into chunks."""

from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st

from infra_lab.engine.stop_strings import StopChecker

texts = st.text(alphabet="ab.", max_size=24)
stops = st.lists(st.text(alphabet="ab.", min_size=1, max_size=5), min_size=0, max_size=3)


def cut_by_hand(text: str, stop: list[str], include_stop: bool) -> tuple[str, str | None]:
    """Read the text letter by letter; the first stop string that is complete ends it, the longest if several are."""
    for end in range(1, len(text) + 1):
        complete = [s for s in stop if text[:end].endswith(s)]
        if complete:
            longest = max(complete, key=len)
            return (text[:end] if include_stop else text[: end - len(longest)]), longest
    return text, None


@given(text=texts, stop=stops, include_stop=st.booleans(), cuts=st.lists(st.integers(0, 24), max_size=6))
@example(text="ab.ab", stop=["b.a"], include_stop=False, cuts=[1, 2, 3])
def test_any_chunking_gives_the_cut_text(text: str, stop: list[str], include_stop: bool, cuts: list[int]) -> None:
    expected, expected_match = cut_by_hand(text, stop, include_stop)
    borders = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    checker, shown, matched = StopChecker(stop, include_stop), "", None
    for begin, end in pairwise(borders):
        watched = checker.push(text[begin:end])
        shown += watched.emit
        assert expected.startswith(shown), "something was shown that must be taken back"
        if watched.matched is not None:
            matched = watched.matched
            break
        so_far = text[:end]
        held = len(so_far) - len(shown)
        needed = max((n for s in stop for n in range(len(s)) if so_far.endswith(s[:n])), default=0)
        assert held <= needed, "more was held back than could still become a stop string"
    if matched is None:
        shown += checker.flush()
    assert (shown, matched) == (expected, expected_match)


def test_nothing_is_looked_for_before_the_minimum_length() -> None:
    checker = StopChecker(["end"], include_stop=False)
    assert checker.push("the end, ", armed=False) == ("the end, ", None)
    assert checker.push("and en") == ("and ", None)
    assert checker.push("d of it") == ("", "end")


def test_a_stop_that_spans_the_border_counts_from_the_border() -> None:
    checker = StopChecker(["end"], include_stop=False)
    assert checker.push("en", armed=False).emit == "en", "already shown, so it cannot be part of a stop string"
    assert checker.push("d") == ("d", None)
