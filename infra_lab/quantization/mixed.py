"""Mixed precision by measured sensitivity: FP8 everywhere, and INT4 where it costs least, until the weights fit a budget.

    matrix              KL if it alone goes to INT4      bytes saved      KL a byte
    layers.7.o          0.0002                           147,000          ▏          first to go
    layers.0.down       0.0031                           390,000          ▊
    layers.0.qkv        0.0140                           245,000          ███████    last

Costs are taken as independent: two matrices in INT4 cost what each costs alone. So the choice is a knapsack, and the greedy
one, by cost a saved byte, is optimal but for the last matrix (Dantzig 1957).
"""

from collections.abc import Mapping
from typing import NamedTuple

from infra_lab.errors import ConfigError


class Candidate(NamedTuple):
    """One matrix, and what INT4 would do to it."""

    cost: float
    """What the model loses if this matrix alone goes to INT4, e.g. KL in nats a token; below zero counts as zero."""
    fp8_bytes: int
    int4_bytes: int


def choose_int4(candidates: Mapping[str, Candidate], budget_bytes: int) -> list[str]:
    """Return the names that go to INT4, cheapest first, such that the weights take at most `budget_bytes`.

    Raises ConfigError if not even INT4 everywhere fits, naming the size that it takes.
    """
    total = sum(candidate.fp8_bytes for candidate in candidates.values())

    def cost_per_byte(name: str) -> float:
        candidate = candidates[name]
        return max(candidate.cost, 0.0) / (candidate.fp8_bytes - candidate.int4_bytes)

    saving = [name for name, candidate in candidates.items() if candidate.int4_bytes < candidate.fp8_bytes]
    chosen: list[str] = []
    for name in sorted(saving, key=cost_per_byte):
        if total <= budget_bytes:
            break
        chosen.append(name)
        total -= candidates[name].fp8_bytes - candidates[name].int4_bytes
    if total > budget_bytes:
        raise ConfigError(f"INT4 in every matrix takes {total:,} bytes, more than the budget of {budget_bytes:,}")
    return chosen
