"""Workloads: how long prompts and answers are, as seeded random draws that any executor can be fed with."""

import random
from typing import NamedTuple

from infra_lab.errors import ConfigError


class RequestShape(NamedTuple):
    """One request, as far as scheduling and memory are concerned."""

    prompt_tokens: int
    output_tokens: int

    @property
    def total_tokens(self) -> int:
        """Prompt and output together."""
        return self.prompt_tokens + self.output_tokens


def lognormal_shapes(
    num_requests: int,
    *,
    median_prompt: int,
    median_output: int,
    sigma: float = 0.7,
    max_total: int,
    seed: int = 0,
) -> list[RequestShape]:
    """Draw request lengths: log-normal, as real conversations are (a few long ones among many short ones).

    Both parts are at least 1, and a request that would exceed `max_total` is cut to it: the output first, as an engine
    does. Raises ConfigError for numbers that make no workload.
    """
    for name, number in (
        ("num_requests", num_requests),
        ("median_prompt", median_prompt),
        ("median_output", median_output),
    ):
        if number < 1:
            raise ConfigError(f"{name} is {number}; it must be at least 1")
    if sigma < 0:
        raise ConfigError(f"sigma is {sigma}; it must not be negative")
    if max_total < 2:
        raise ConfigError(f"max_total is {max_total}; a prompt and an output need at least 2 tokens")
    rng = random.Random(seed)
    shapes = []
    for _ in range(num_requests):
        prompt = min(max(1, round(median_prompt * rng.lognormvariate(0.0, sigma))), max_total - 1)
        output = min(max(1, round(median_output * rng.lognormvariate(0.0, sigma))), max_total - prompt)
        shapes.append(RequestShape(prompt, output))
    return shapes
