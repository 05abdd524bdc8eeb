"""What a program asks of the engine: calls, each of which is one request there.

WAITING ── submit ──▶ OPEN ── prompt computed ──▶ OPEN ── all tokens there ──▶ DONE
   └── refused ──────────┴── aborted, failed ──────┴──────────────────────────▶ DONE, with an error
"""

from abc import ABC, abstractmethod

from infra_lab.engine.core import EngineCore
from infra_lab.engine.outputs import OutputDelta, SampleOutput
from infra_lab.errors import InfraLabError
from infra_lab.paged_kv.sequence import KVSequence
from infra_lab.sampling_params import SamplingParams
from infra_lab.scheduler.plan import StepResult
from infra_lab.scheduler.request import Request


class Call(ABC):
    """One request. Only the driver's thread touches it once it is made."""

    def __init__(self, prompt: list[int]) -> None:
        self.sequence = KVSequence(prompt)
        """The prompt as the block manager sees it; holds no blocks."""
        self.request_id = ""
        self.has_prompt = False
        """Whether the prompt's KV is computed, so that its full blocks can be found by others."""
        self.is_done = False
        self.error: Exception | None = None
        self.num_prompt_tokens = len(prompt)
        self.num_cached_tokens = 0
        self.num_generated_tokens = 0

    @abstractmethod
    def submit(self, core: EngineCore) -> None:
        """Queue it; sets `request_id`. Raises InvalidRequestError or QueueFullError, with nothing changed."""

    @abstractmethod
    def abort(self, core: EngineCore) -> None:
        """End its request and free what that holds, whatever has become of it."""

    def fail(self, error: Exception) -> None:
        """End it with an error."""
        self.is_done, self.error = True, error

    def take_delta(self, delta: OutputDelta) -> None:  # noqa: B027 - most calls get the one or the other
        """Read what a step added to its output."""

    def take_result(self, core: EngineCore, request: Request, position: int, result: StepResult) -> None:  # noqa: B027
        """Read what a step computed for it, at a position of the plan."""

    def take_failure(self, message: str) -> None:  # noqa: B027
        """A step has failed: its requests have ended."""


class GenerateCall(Call):
    """Continue a prompt."""

    def __init__(self, prompt: list[int], params: SamplingParams) -> None:
        super().__init__(prompt)
        self.sample = SampleOutput()
        self._params = params

    def submit(self, core: EngineCore) -> None:
        """See `Call`."""
        self.request_id = core.add(self.sequence.token_ids, self._params)

    def abort(self, core: EngineCore) -> None:
        """See `Call`."""
        core.abort(self.request_id)

    def take_delta(self, delta: OutputDelta) -> None:
        """See `Call`."""
        self.sample.add(delta)
        self.has_prompt = True
        self.num_cached_tokens = delta.metrics.num_cached_tokens
        self.num_generated_tokens = delta.metrics.num_output_tokens
        self.is_done = delta.finish_reason is not None
        if delta.finish_reason in ("error", "abort"):
            problem = delta.error or "it was aborted from outside the program"
            self.fail(InfraLabError(f"{delta.request_id} ended before its time: {problem}"))
