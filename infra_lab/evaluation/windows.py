"""Sliding windows: a long text cut so that each token is scored once, with enough of the text before it.

    window 8, stride 4        tokens 0 … 16
    ▪ ● ● ● ● ● ● ●                           ● scored  ▫ context only  ▪ the very first token, which nothing predicts
            ▫ ▫ ▫ ▫ ● ● ● ●
                    ▫ ▫ ▫ ▫ ● ● ● ●
                            ▫ ▫ ▫ ▫ ●

But for the first window, each token has at least window - stride tokens of context. A smaller stride gives each token more
context and costs more: window / stride passes over the text.
"""

from collections.abc import Iterator
from typing import NamedTuple

from infra_lab.errors import ConfigError


class Window(NamedTuple):
    """A piece of a text, begin to end, of which the tokens from `first_scored` on are scored."""

    begin: int
    first_scored: int
    end: int


def sliding_windows(num_tokens: int, window: int, stride: int) -> Iterator[Window]:
    """Yield the windows over a text of `num_tokens`.

    Raises ConfigError unless there are two tokens at least, and 1 ≤ stride < window.
    """
    if num_tokens < 2:
        raise ConfigError(f"the text has {num_tokens} tokens; the second is the first that can be scored")
    if not 1 <= stride < window:
        raise ConfigError(f"window {window}, stride {stride}; the stride must be at least 1 and less than the window")
    scored = 1
    for begin in range(0, num_tokens, stride):
        end = min(begin + window, num_tokens)
        yield Window(begin, scored, end)
        if end == num_tokens:
            return
        scored = end
