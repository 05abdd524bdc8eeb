"""How long prompts and answers are: log-normal lengths with published centres.

Publications give medians or means, and pictures of the rest. So the centres here are theirs, each with its source, and the
spread is an assumption: sigma 1 for both parts unless a caller says otherwise (the median's e-fold either way holds 68 %).
A log-normal of mean m has the median m · exp(-sigma²/2).

    azure-conversation, azure-code   medians of the Azure LLM inference trace of November 2023 (Splitwise, Patel 2024, §3)
    sharegpt, alpaca                 means of the data sets as tokenized for OPT (PagedAttention, Kwon 2023, figure 11)
    mooncake                         means of Kimi's trace (Mooncake, Qin 2024, arXiv:2407.00079, §4.2)
"""

import math
from dataclasses import dataclass
from typing import Self

import numpy as np

from infra_lab.errors import ConfigError
from infra_lab.simulator.workload import RequestShape

ASSUMED_SIGMA = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LognormalLength:
    """Tokens of one part of a request. Raises ConfigError for a median below 1 or a negative sigma."""

    median: float
    sigma: float = ASSUMED_SIGMA
    """Standard deviation of the logarithm; 0: always the median."""

    def __post_init__(self) -> None:
        if not 1 <= self.median < math.inf:
            raise ConfigError(f"median is {self.median}; it must be at least 1 token")
        if not 0 <= self.sigma < math.inf:
            raise ConfigError(f"sigma is {self.sigma}; it must be 0 or a positive number")

    @classmethod
    def of_mean(cls, mean: float, sigma: float = ASSUMED_SIGMA) -> Self:
        """Return the log-normal of a given mean."""
        return cls(median=mean * math.exp(-(sigma**2) / 2), sigma=sigma)

    @property
    def mean(self) -> float:
        """Before rounding and cutting."""
        return self.median * math.exp(self.sigma**2 / 2)

    def draw(self, number: int, rng: np.random.Generator) -> list[int]:
        """Return whole numbers of tokens, at least 1."""
        tokens = np.maximum(1, np.rint(self.median * np.exp(self.sigma * rng.standard_normal(number))))
        drawn: list[int] = tokens.astype(np.int64).tolist()
        return drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthModel:
    """Prompt and answer lengths, independent of each other (which real ones are not quite)."""

    prompt: LognormalLength
    output: LognormalLength
    max_total: int
    """The context: longer requests are cut to it, the output first."""

    def __post_init__(self) -> None:
        if self.max_total < 2:
            raise ConfigError(f"max_total is {self.max_total}; a prompt and an output need at least 2 tokens")

    def draw(self, num_requests: int, seed: int = 0) -> list[RequestShape]:
        """Return a shape for each request; the same seed gives the same."""
        rng = np.random.default_rng(seed)
        prompts, outputs = self.prompt.draw(num_requests, rng), self.output.draw(num_requests, rng)
        shapes = []
        for prompt, output in zip(prompts, outputs, strict=True):
            prompt = min(prompt, self.max_total - 1)
            shapes.append(RequestShape(prompt, min(output, self.max_total - prompt)))
        return shapes


PUBLISHED = {
    "azure-conversation": (LognormalLength(median=1020), LognormalLength(median=129)),
    "azure-code": (LognormalLength(median=1500), LognormalLength(median=13)),
    "sharegpt": (LognormalLength.of_mean(161.31), LognormalLength.of_mean(337.99)),
    "alpaca": (LognormalLength.of_mean(19.31), LognormalLength.of_mean(58.45)),
    "mooncake": (LognormalLength.of_mean(7590), LognormalLength.of_mean(182)),
}
"""(prompt, output) by the name of a publication's workload; sources in the module's docstring."""


def published_lengths(name: str, *, max_total: int) -> LengthModel:
    """Return the lengths of a published workload. Raises ConfigError for an unknown name."""
    if name not in PUBLISHED:
        raise ConfigError(f"no published lengths {name!r}; known: {', '.join(PUBLISHED)}")
    prompt, output = PUBLISHED[name]
    return LengthModel(prompt=prompt, output=output, max_total=max_total)
