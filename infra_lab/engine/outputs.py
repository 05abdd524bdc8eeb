"""What comes out of the engine: pieces as they are generated, and the whole at the end."""

from dataclasses import dataclass, field
from typing import NamedTuple

from infra_lab.scheduler.plan import TokenLogprobs


@dataclass(slots=True)
class RequestMetrics:
    """Times of one sample, in seconds on the engine's clock."""

    arrival_s: float
    first_scheduled_s: float | None = None
    first_token_s: float | None = None
    last_token_s: float | None = None
    num_prompt_tokens: int = 0
    num_cached_tokens: int = 0
    """Prompt tokens that the prefix cache had."""
    num_output_tokens: int = 0
    num_preemptions: int = 0

    @property
    def queue_s(self) -> float | None:
        """From arrival to the first step that computed anything of it."""
        return None if self.first_scheduled_s is None else self.first_scheduled_s - self.arrival_s

    @property
    def ttft_s(self) -> float | None:
        """Time to first token, from arrival."""
        return None if self.first_token_s is None else self.first_token_s - self.arrival_s

    @property
    def tpot_s(self) -> float | None:
        """Time per output token after the first; None for fewer than two tokens."""
        if self.first_token_s is None or self.last_token_s is None or self.num_output_tokens < 2:
            return None
        return (self.last_token_s - self.first_token_s) / (self.num_output_tokens - 1)

    @property
    def e2e_s(self) -> float | None:
        """From arrival to the last token."""
        return None if self.last_token_s is None else self.last_token_s - self.arrival_s


class OutputDelta(NamedTuple):
    """What one step added to one sample. A tuple: one is made for every token, and a dataclass costs four times as much."""

    request_id: str
    index: int  # type: ignore[assignment]  # hides tuple.index, which has no use here
    """Which of the `n` samples."""
    text: str
    """New text; may be empty while a character or a possible stop string is incomplete."""
    token_ids: list[int]
    """New tokens."""
    logprobs: list[TokenLogprobs]
    """Of the new tokens, if asked for."""
    finish_reason: str | None
    """"stop", "length", "abort" or "error" with the last delta of a sample, else None."""
    stop_reason: str | int | None
    """The stop string or stop token that ended it; None for the model's own end of sequence."""
    error: str | None
    metrics: RequestMetrics


@dataclass(slots=True)
class SampleOutput:
    """One finished continuation of a prompt."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    error: str | None = None
    metrics: RequestMetrics = field(default_factory=lambda: RequestMetrics(0.0))

    def add(self, delta: OutputDelta) -> None:
        """Append what one step brought."""
        self.text += delta.text
        self.token_ids += delta.token_ids
        self.logprobs += delta.logprobs
        self.finish_reason, self.stop_reason, self.error = delta.finish_reason, delta.stop_reason, delta.error
        self.metrics = delta.metrics


@dataclass(slots=True)
class RequestOutput:
    """All samples of one prompt; text, tokens and metrics of the first are at hand directly."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    samples: list[SampleOutput]

    @property
    def text(self) -> str:
        """Text of the first sample."""
        return self.samples[0].text

    @property
    def token_ids(self) -> list[int]:
        """Generated tokens of the first sample, a final stop token included."""
        return self.samples[0].token_ids

    @property
    def logprobs(self) -> list[TokenLogprobs]:
        """Log-probabilities of the first sample's tokens."""
        return self.samples[0].logprobs

    @property
    def finish_reason(self) -> str | None:
        """Why the first sample ended."""
        return self.samples[0].finish_reason

    @property
    def metrics(self) -> RequestMetrics:
        """Times of the first sample."""
        return self.samples[0].metrics
