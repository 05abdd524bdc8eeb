"""Real bugs of sampling and streaming, to plant into the running engine: the learner finds out which promise breaks.

Each is one that a serving stack has had somewhere. What it does stands in its docstring; a lesson shows that last.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from unittest.mock import patch

import torch

from infra_lab.engine.sampling.choose import choose
from infra_lab.engine.sampling.uniform import Counter
from infra_lab.engine.stop_strings import StopChecker, Watched
from infra_lab.errors import ConfigError
from infra_lab.models.detokenizer import IncrementalDetokenizer
from infra_lab.sampling_params import SamplingParams


class DecodesTokenByToken(IncrementalDetokenizer):
    """Turns each token into text on its own: a character that is spread over several tokens never becomes one."""

    def add(self, token_id: int) -> str:
        """Decode the bytes of this token alone."""
        return "" if token_id in self._skipped else self._tokenizer.token_bytes(token_id).decode(errors="replace")

    def flush(self) -> str:
        """Nothing was kept."""
        return ""


class LooksAtEachChunkAlone(StopChecker):
    """Searches each new piece of text for a stop string and holds nothing back: one that is cut in two passes."""

    def push(self, text: str, *, armed: bool = True) -> Watched:
        """Search this piece alone."""
        watched = super().push(text, armed=armed)
        self._held, held = "", self._held
        return watched if watched.matched is not None else Watched(watched.emit + held, None)


class SharedGenerator:
    """Draws all requests' numbers from one generator: a request's sample depends on who else is there."""

    def __init__(self) -> None:
        self._random = random.Random(0)

    def __call__(self, seed: int, sample_index: int, position: int) -> Counter:
        """Return the place of the generator's next number, whoever asks."""
        return Counter(self._random.getrandbits(63), 0)


def nucleus_before_temperature(
    logits: torch.Tensor, params: Sequence[SamplingParams], counters: Sequence[Counter]
) -> list[int]:
    """Choose the nucleus from the model's own distribution, then apply the temperature: a hot request keeps too few."""
    logits = logits.float().clone()
    for row, row_params in enumerate(params):
        ordered, order = logits[row].sort(descending=True, stable=True)
        weights = torch.softmax(ordered.double(), dim=0)
        outside = weights.cumsum(0) - weights >= row_params.top_p
        outside[0] = False
        logits[row, order[outside]] = float("-inf")
    return choose(logits, [_without_nucleus(row_params) for row_params in params], counters)


def _without_nucleus(params: SamplingParams) -> SamplingParams:
    return SamplingParams(temperature=params.temperature, top_k=params.top_k, min_p=params.min_p)


_STREAM, _SAMPLER = "infra_lab.engine.output_stream", "infra_lab.engine.sampling.sampler"
SAMPLING_BUGS = ("none", "A", "B", "C", "D")


@contextmanager
def planted_sampling_bug(name: str) -> Iterator[None]:
    """Run the block with the bug of that name in every engine of the process; "none" plants nothing.

    Requests that are added in the block have it to their end. Raises ConfigError for an unknown name.
    """
    places = {
        "none": (f"{_SAMPLER}.choose", choose),
        "A": (f"{_STREAM}.IncrementalDetokenizer", DecodesTokenByToken),
        "B": (f"{_STREAM}.StopChecker", LooksAtEachChunkAlone),
        "C": (f"{_SAMPLER}.counter", SharedGenerator()),
        "D": (f"{_SAMPLER}.choose", nucleus_before_temperature),
    }
    if name not in places:
        raise ConfigError(f"unknown bug {name!r}; known: {', '.join(SAMPLING_BUGS)}")
    with patch(*places[name]):
        yield
