"""The scheduler's policy and its limits."""

from dataclasses import dataclass
from typing import Literal

from infra_lab.errors import ConfigError
from infra_lab.scheduler.policies import BatchingPolicy, policy_of


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerConfig:
    """How much one step may hold, and how much may wait. Raises ConfigError for limits that contradict each other."""

    policy: str | BatchingPolicy = "chunked-prefill"
    """One of `policies.POLICIES`, or such a policy with settings of its own."""
    max_model_len: int
    """Tokens of prompt and output together, at most."""
    max_num_seqs: int = 64
    """Requests running at once."""
    max_batched_tokens: int = 512
    """The token budget of one step."""
    max_prefill_chunk: int | None = None
    """Cap on one prompt's share of a step, so that a long prompt leaves room for others; None: the whole budget."""
    kv_reservation: Literal["paged", "whole"] = "paged"
    """"paged": blocks as tokens come; "whole": all that a request may ever need when it comes in, as engines did that kept a
    sequence's KV in one piece. Then nobody is preempted for blocks, and most of them lie idle."""
    num_speculative_tokens: int = 0
    """Room that a decode gets for proposals after its token, where the step's budget has any left."""
    max_waiting: int | None = None
    """Requests in the queue, at most; None: any number."""
    watermark: float = 0.01
    """Fraction of all blocks that admission leaves free, so that running requests can grow before they must preempt."""

    def __post_init__(self) -> None:
        for name in ("max_model_len", "max_num_seqs", "max_batched_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.max_prefill_chunk is not None and not 1 <= self.max_prefill_chunk <= self.max_batched_tokens:
            raise ConfigError(
                f"max_prefill_chunk is {self.max_prefill_chunk}; it must be between 1 and the step's token budget, "
                f"max_batched_tokens = {self.max_batched_tokens}"
            )
        if self.max_num_seqs > self.max_batched_tokens:
            raise ConfigError(
                f"max_num_seqs = {self.max_num_seqs} requests would need as many tokens a step, but max_batched_tokens "
                f"is {self.max_batched_tokens}; raise the budget or lower max_num_seqs"
            )
        policy = policy_of(self.policy)
        if not policy.chunks_prompts and self.max_prefill_chunk is not None:
            raise ConfigError(
                f"max_prefill_chunk is {self.max_prefill_chunk}, but policy {policy.name} computes a prompt whole; "
                "leave it out, or choose chunked-prefill"
            )
        if not policy.chunks_prompts and self.max_batched_tokens < self.max_model_len:
            raise ConfigError(
                f"policy {policy.name} computes a prompt whole: one of up to max_model_len = {self.max_model_len} tokens "
                f"must fit in one step, but max_batched_tokens is {self.max_batched_tokens}; raise it, or choose "
                "chunked-prefill"
            )
        if self.kv_reservation not in ("paged", "whole"):
            raise ConfigError(f"kv_reservation is {self.kv_reservation!r}; expected paged or whole")
        if self.num_speculative_tokens < 0:
            raise ConfigError(f"num_speculative_tokens is {self.num_speculative_tokens}; it must be at least 0")
        if self.max_waiting is not None and self.max_waiting < 1:
            raise ConfigError(f"max_waiting is {self.max_waiting}; it must be at least 1, or None for no limit")
        if not 0.0 <= self.watermark < 1.0:
            raise ConfigError(f"watermark is {self.watermark}; it must be in [0, 1)")
