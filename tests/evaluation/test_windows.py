"""Every token is scored once, with the context that was promised."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra_lab.errors import ConfigError
from infra_lab.evaluation.windows import Window, sliding_windows


@given(st.integers(2, 300), st.integers(2, 60), st.data())
def test_each_token_once_with_its_context(num_tokens: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window - 1))
    scored: list[int] = []
    for begin, first_scored, end in sliding_windows(num_tokens, window, stride):
        assert end - begin <= window
        assert begin < first_scored < end
        assert begin == 0 or first_scored - begin >= window - stride
        scored += range(first_scored, end)
    assert scored == list(range(1, num_tokens))


def test_the_picture_in_the_docstring() -> None:
    assert list(sliding_windows(17, 8, 4)) == [Window(0, 1, 8), Window(4, 8, 12), Window(8, 12, 16), Window(12, 16, 17)]


def test_refusals() -> None:
    with pytest.raises(ConfigError, match="the text has 1 tokens"):
        list(sliding_windows(1, 8, 4))
    for stride in (0, 8):
        with pytest.raises(ConfigError, match="less than the window"):
            list(sliding_windows(10, 8, stride))
