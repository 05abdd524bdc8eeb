"""A step's time from a chip's data sheet and a model's sizes: the roofline (Williams 2009) of one forward pass.

    FLOPs    2 · weights of the linear layers a token,  2 · hidden · vocabulary a sampled token,  4 · query width · layers a
             pair of query and key  (causal: token i has i + 1 keys)
    bytes    all weights once a step, embeddings apart (rows of it are looked up),  KV of every context read,  new KV written

    seconds = launch + all-reduces + max(FLOPs / (peak · efficiency), bytes / (bandwidth · efficiency))

What it leaves out: activations' own traffic, sampling, the host's work unless `launch_s` stands for it, and that attention and
matrices are separate launches with rooflines of their own. Peaks are a data sheet's, so efficiencies of 1 give a bound and no
prediction; where steps can be measured, `calibrate` gives one.
Tensor parallel (Shoeybi 2019): weights, KV and arithmetic are split evenly; two ring all-reduces of the activations a layer.
"""

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from infra_lab.errors import ConfigError
from infra_lab.models.config import ModelConfig
from infra_lab.scheduler.plan import StepPlan
from infra_lab.simulator.cost import StepShape
from kernels.chips import Chip, Unit


class StepWork(NamedTuple):
    """What a step must do at the least, over all chips."""

    flops: int
    num_bytes: int
    activation_bytes: int
    """Of the hidden states of all tokens: what an all-reduce carries."""


class _Rates(NamedTuple):
    """What a model's sizes come to, so that a step is a few multiplications."""

    token_flops: int
    sampled_flops: int
    pair_flops: int
    weight_bytes: int
    kv_token_bytes: int
    activation_token_bytes: int
    flops_per_s: float
    bytes_per_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RooflineStepCost:
    """Predicts steps of `model` on `chip` (see the module's formula). Raises ConfigError for impossible settings."""

    chip: Chip
    model: ModelConfig
    unit: Unit = "bf16"
    """What does the arithmetic."""
    weight_bytes: float = 2.0
    """A weight."""
    kv_bytes: int = 2
    """An element of the KV cache."""
    tensor_parallel: int = 1
    link_bytes_per_s: float | None = None
    """Of one chip to its peers, in one direction; needed for tensor parallel."""
    launch_s: float = 0.0
    """A step's fixed part: launches and the host's own work."""
    compute_efficiency: float = 1.0
    memory_efficiency: float = 1.0
    _rates: _Rates = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.unit not in self.chip.flops:
            raise ConfigError(f"unit is {self.unit!r}; {self.chip.name} has {', '.join(self.chip.flops)}")
        for name in ("weight_bytes", "kv_bytes"):
            if not 0 < getattr(self, name) <= 8:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be more than 0 and at most 8")
        for name in ("compute_efficiency", "memory_efficiency"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be more than 0 and at most 1")
        if not 0 <= self.launch_s < math.inf:
            raise ConfigError(f"launch_s is {self.launch_s}; it must be 0 or a positive number")
        if self.tensor_parallel < 1 or self.model.num_heads % self.tensor_parallel:
            raise ConfigError(
                f"tensor_parallel is {self.tensor_parallel}; it must divide the model's {self.model.num_heads} heads"
            )
        if self.tensor_parallel > 1 and not (self.link_bytes_per_s and 0 < self.link_bytes_per_s < math.inf):
            raise ConfigError(
                f"link_bytes_per_s is {self.link_bytes_per_s}; {self.tensor_parallel} chips need the bandwidth between them"
            )

        object.__setattr__(self, "_rates", _rates_of(self))

    def work(self, plan: StepPlan) -> StepWork:
        """Count a step's arithmetic and traffic."""
        return self._work(StepShape.of(plan))

    def step_s(self, plan: StepPlan) -> float:
        """Return the seconds that the plan takes."""
        return self.shape_s(StepShape.of(plan))

    def shape_s(self, shape: StepShape) -> float:
        """Return the seconds that a step of this shape takes."""
        work, rates = self._work(shape), self._rates
        reduce_s = self._reduce_s(work) if self.tensor_parallel > 1 else 0.0
        return self.launch_s + reduce_s + max(work.flops / rates.flops_per_s, work.num_bytes / rates.bytes_per_s)

    def _work(self, shape: StepShape) -> StepWork:
        rates, (_, num_tokens, num_sampled, context, pairs) = self._rates, shape
        return StepWork(
            rates.token_flops * num_tokens + rates.sampled_flops * num_sampled + rates.pair_flops * pairs,
            rates.weight_bytes + rates.kv_token_bytes * (context + num_tokens),
            rates.activation_token_bytes * num_tokens,
        )

    def _reduce_s(self, work: StepWork) -> float:
        assert self.link_bytes_per_s is not None
        carried = 2 * (self.tensor_parallel - 1) / self.tensor_parallel * work.activation_bytes
        return 2 * self.model.num_layers * carried / self.link_bytes_per_s


def _rates_of(cost: RooflineStepCost) -> _Rates:
    model, chips = cost.model, cost.tensor_parallel
    head = model.vocab_size * model.hidden_size
    attention = model.hidden_size * (2 * model.q_size + 2 * model.kv_size)
    linear = model.num_layers * (attention + 3 * model.hidden_size * model.intermediate_size)
    read = model.num_parameters - (0 if model.tie_word_embeddings else head)
    return _Rates(
        token_flops=2 * linear,
        sampled_flops=2 * head,
        pair_flops=4 * model.q_size * model.num_layers,
        weight_bytes=int(read * cost.weight_bytes),
        kv_token_bytes=model.kv_bytes_per_token(cost.kv_bytes),
        activation_token_bytes=2 * model.hidden_size,
        flops_per_s=chips * cost.chip.flops[cost.unit] * cost.compute_efficiency,
        bytes_per_s=chips * cost.chip.memory_bytes_per_s * cost.memory_efficiency,
    )
