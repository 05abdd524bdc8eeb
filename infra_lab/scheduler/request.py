"""One request's life.

          add                    admitted                stop, length, error
    ─────────────▶ WAITING ──────────────────▶ RUNNING ──────────────────────▶ FINISHED
                      ▲ │                         │ │                             ▲
                      │ │                         │ └─────────────────────────────┤
                      │ └─────────────────────────┼───────────────────────────────┘
                      └───────────────────────────┘        abort, from either
                        preempted: blocks freed,
                        tokens kept, to be recomputed

There is no prefill state and no decode state: a request has `len(token_ids)` tokens, of which `num_computed` have their
KV in the cache. Where the two differ by one it decodes, by more it prefills; the scheduler only ever closes the gap.
"""

from dataclasses import dataclass, field
from enum import Enum

from infra_lab.paged_kv.sequence import KVSequence
from infra_lab.sampling_params import SamplingParams


class Status(Enum):
    """Where a request stands (see the picture above)."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False, kw_only=True)
class Request(KVSequence):
    """A prompt and what was generated so far; as a KVSequence it also carries its block table.

    Only the scheduler writes to it (through the block manager for the KVSequence part), between two steps. An executor
    reads it and changes nothing.
    """

    request_id: str
    params: SamplingParams
    arrival_s: float = 0.0
    priority: int = 0
    """Lower goes first."""
    deadline_s: float | None = None
    """When its first token is due, on the clock of `arrival_s`; None: no deadline of its own."""
    seed: int = 0
    """What the sampler draws from; the request's own, or a fresh one where it gave none."""
    stop_token_ids: frozenset[int] = frozenset()
    """The model's end-of-sequence tokens (unless ignored) and the request's own stop tokens."""
    forks: list["Request"] = field(default_factory=list)
    """The other samples of the same prompt (`n` > 1), until they are forked off once the prompt is computed."""
    sample_index: int = 0
    """Which of the `n` samples this is."""

    num_prompt_tokens: int = field(init=False)
    max_total_tokens: int = field(init=False, default=0)
    """Prompt and output together may not grow past this; set by the scheduler when it accepts the request."""
    min_total_tokens: int = field(init=False, default=0)
    """Stop tokens count only from this length on."""
    status: Status = field(init=False, default=Status.WAITING)
    finish_reason: str | None = field(init=False, default=None)
    num_computed: int = field(init=False, default=0)
    """Tokens whose KV lies in the cache: always a prefix of `token_ids`."""
    num_in_flight: int = field(init=False, default=0)
    """Tokens from there on that a step computes now, where the next one is planned meanwhile."""
    first_step: int = field(init=False, default=-1)
    """The step of its latest admission: what an earlier one computes of it went into blocks that it holds no more."""
    num_cached: int = field(init=False, default=0)
    """Tokens found in the prefix cache at the latest admission."""
    num_preemptions: int = field(init=False, default=0)
    rank: tuple[int, float] = field(init=False)
    """(class, virtual arrival), by the scheduler's policy."""
    sequence_number: int = field(init=False, default=0)
    """Order of arrival at the scheduler; decides between equal ranks."""

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.token_ids)
        self.rank = (self.priority, self.arrival_s)

    @property
    def urgency(self) -> tuple[int, float, int]:
        """Sorts requests, the most urgent first."""
        return (*self.rank, self.sequence_number)

    @property
    def output_token_ids(self) -> list[int]:
        """A copy of the tokens generated so far."""
        return self.token_ids[self.num_prompt_tokens :]

    @property
    def num_output_tokens(self) -> int:
        """How many tokens were generated so far."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def is_finished(self) -> bool:
        """Whether it has a finish reason and holds no blocks."""
        return self.status is Status.FINISHED
