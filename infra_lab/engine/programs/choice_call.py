"""The likelihood of a given continuation, computed in the batch, next to whatever else runs.

The engine gives the log-probability of the token that it sampled. So every token of the continuation is made the only one
that can be sampled, by a bias that no logit outweighs; log-probabilities are of the model's own distribution, before any
bias. For each token the request goes on as one with another bias, on the same blocks (`Scheduler.branch`, as beams do):

    prompt              step 1: bias on "y"      step 2: bias on "e"      step 3: bias on "s"
    "Is it true? " ──▶  log p(y | prompt)  ───▶  log p(e | prompt y) ──▶  log p(s | prompt ye)

One token a step and nothing twice: a continuation of L tokens costs L - 1 beyond its prompt.
"""

from infra_lab.engine.core import EngineCore
from infra_lab.engine.programs.calls import Call
from infra_lab.errors import InfraLabError, InvalidRequestError, InvariantError
from infra_lab.sampling_params import SamplingParams
from infra_lab.scheduler.plan import StepResult
from infra_lab.scheduler.request import Request

FORCING_BIAS = 1e30
"""Float32 holds it, and no logit comes near."""


class ChoiceCall(Call):
    """Score one choice, which has at least one token, after a prompt; `logprob` is the sum over its tokens."""

    def __init__(self, prompt: list[int], choice: list[int]) -> None:
        super().__init__(prompt)
        self.choice = choice
        self.logprob = 0.0
        self.num_prompt_tokens += len(choice) - 1  # the last one is only predicted
        self._num_scored = 0
        self._arrival_s = 0.0
        self._request: Request | None = None

    def submit(self, core: EngineCore) -> None:
        """See `Call`."""
        room = core.scheduler.config.max_model_len
        if len(self.sequence.token_ids) + len(self.choice) > room:
            raise InvalidRequestError(
                f"a choice of {len(self.choice)} tokens after {len(self.sequence.token_ids)} of text does not fit in the "
                f"context of {room}; shorten the text, or raise max_model_len if the model allows"
            )
        self.request_id = self.request_id or core.new_request_id()
        self._arrival_s = core.clock.now()
        request = self._next_request()
        core.scheduler.add(request)
        self._request = request

    def abort(self, core: EngineCore) -> None:
        """See `Call`."""
        core.scheduler.abort(self.request_id)

    def take_result(self, core: EngineCore, request: Request, position: int, result: StepResult) -> None:
        """See `Call`."""
        if position in result.errors:
            self.fail(InfraLabError(f"{self.request_id}, a choice, ended before its time: {result.errors[position]}"))
            return
        if position not in result.logprobs:  # a chunk of the prompt
            return
        scored = result.logprobs[position]
        if scored.token_id != self.choice[self._num_scored]:
            raise InvariantError(
                f"{self.request_id}: sampled {scored.token_id}, forced was {self.choice[self._num_scored]}"
            )
        if not self.has_prompt:
            self.has_prompt, self.num_cached_tokens = True, request.num_cached
        self.logprob += scored.logprob
        self._num_scored += 1
        self.is_done = self._num_scored == len(self.choice)
        if not self.is_done:
            self._request = self._next_request()
            core.scheduler.branch(request, [self._request])

    def take_failure(self, message: str) -> None:
        """See `Call`."""
        if self._request is not None and self._request.is_finished and not self.is_done:
            self.fail(InfraLabError(f"{self.request_id}, a choice, ended before its time: {message}"))

    def _next_request(self) -> Request:
        """The request whose first token is the next one of the choice; it has room for the rest."""
        params = SamplingParams(
            temperature=0.0,
            max_tokens=len(self.choice) - self._num_scored,
            logprobs=0,
            logit_bias={self.choice[self._num_scored]: FORCING_BIAS},
        )
        token_ids = [*self.sequence.token_ids, *self.choice[: self._num_scored]]
        return Request(token_ids=token_ids, request_id=self.request_id, params=params, arrival_s=self._arrival_s)
