"""Prompt lookup against a brute-force search."""

from hypothesis import given
from hypothesis import strategies as st

from infra_lab.engine.speculation.ngram import continuation


def brute_force(tokens: list[int], num_tokens: int, sizes: range) -> list[int]:
    for size in sizes:
        if size >= len(tokens):
            continue
        places = [i for i in range(len(tokens) - size) if tokens[i : i + size] == tokens[-size:]]
        if places:
            return tokens[places[-1] + size :][:num_tokens]
    return []


@given(st.lists(st.integers(0, 2), max_size=30), st.integers(1, 6), st.integers(1, 4), st.integers(0, 3))
def test_finds_what_a_search_finds(tokens: list[int], num_tokens: int, low: int, more: int) -> None:
    sizes = range(low + more, low - 1, -1)
    assert continuation(tokens, num_tokens, sizes) == brute_force(tokens, num_tokens, sizes)


def test_the_latest_occurrence_of_the_longest_ngram() -> None:
    tokens = [1, 2, 3, 9, 9, 2, 3, 7, 1, 2, 3]
    assert continuation(tokens, 2, range(3, 1, -1)) == [9, 9]
    assert continuation(tokens, 3, range(2, 1, -1)) == [7, 1, 2]
    assert continuation([4, 5, 6], 3, range(3, 1, -1)) == []
