"""One request's life.

          add                    admitted                finished, stopped, length
    ─────────────▶ WAITING ──────────────────▶ RUNNING ───────────────────────────▶ FINISHED
                      ▲                           │                                    ▲
                      └───────────────────────────┘                                    │
                        preempted: blocks freed,           aborted, from either ───────┘
                        tokens kept, to be recomputed

There is no prefill state and no decode state: a request has `len(token_ids)` tokens, of which `num_computed` have their
KV in the cache. Whenever the two differ by one it decodes, by more it prefills, and the scheduler only closes the gap.
"""

from dataclasses import dataclass, field
from enum import Enum

from infra_lab.sampling_params import SamplingParams


class Status(Enum):
    """Where a request stands (see the picture above)."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(slots=True, eq=False)
class Request:
    """A prompt, what was generated so far, and what the scheduler and the block manager know of it.

    Only the scheduler writes to it, between two steps. An executor reads `token_ids`, `block_table`, `params` and the
    penalties' window `num_prompt_tokens`, and changes nothing.
    """

    request_id: str
    token_ids: list[int]
    """Prompt, then output. Grows by the sampled token at each update."""
    params: SamplingParams
    arrival_s: float = 0.0
    priority: int = 0
    """Lower goes first."""
    cache_salt: str = ""
    """Requests share cached prefixes only with requests of the same salt (one tenant's prompts stay its own)."""
    stop_token_ids: frozenset[int] = frozenset()
    """The model's end-of-sequence tokens (unless ignored) and the request's own stop tokens."""
    parent_id: str | None = None
    """For the second and later of `n` samples: the request it was forked from."""
    sample_index: int = 0

    num_prompt_tokens: int = field(init=False)
    max_total_tokens: int = field(init=False, default=0)
    """Prompt and output together may not grow past this; set when the scheduler accepts the request."""
    min_total_tokens: int = field(init=False, default=0)
    status: Status = field(init=False, default=Status.WAITING)
    finish_reason: str | None = field(init=False, default=None)
    num_computed: int = field(init=False, default=0)
    """Tokens whose KV lies in the cache: always a prefix of `token_ids`."""
    block_table: list[int] = field(init=False, default_factory=list)
    """Physical blocks in order; belongs to the block manager, which mutates it in place."""
    capacity: int = field(init=False, default=0)
    """Tokens that the block table has room for without asking the block manager."""
    num_cached: int = field(init=False, default=0)
    """Prompt tokens found in the prefix cache at the latest admission."""
    num_preemptions: int = field(init=False, default=0)
    sequence_number: int = field(init=False, default=0)
    """Order of arrival at the scheduler; breaks ties of equal arrival times."""

    def __post_init__(self) -> None:
        self.num_prompt_tokens = len(self.token_ids)

    @property
    def sort_key(self) -> tuple[int, float, int]:
        """Smaller is more urgent: priority, then arrival."""
        return (self.priority, self.arrival_s, self.sequence_number)

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
