"""One sample on its way out: tokens become text, text is watched for stop strings, times are taken."""

from collections import deque

from infra_lab.engine.outputs import OutputDelta, RequestMetrics
from infra_lab.engine.stop_strings import StopChecker
from infra_lab.models.detokenizer import IncrementalDetokenizer
from infra_lab.models.tokenizer import Tokenizer
from infra_lab.scheduler.plan import TokenLogprobs
from infra_lab.scheduler.request import Request


class OutputStream:
    """Turns the tokens of one request, as they come, into deltas. Nothing is ever emitted that is later taken back."""

    def __init__(self, request: Request, public_id: str, tokenizer: Tokenizer) -> None:
        params = request.params
        self.request = request
        self.public_id = public_id
        self.follower: deque[OutputDelta] | None = None
        """Gets each delta too."""
        self.metrics = RequestMetrics(request.arrival_s, num_prompt_tokens=request.num_prompt_tokens)
        self._eos_token_ids = tokenizer.eos_token_ids
        self._detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=params.skip_special_tokens)
        self._stops = StopChecker(params.stop, params.include_stop)

    def push(self, logprobs: TokenLogprobs | None, now_s: float) -> OutputDelta:
        """Take the tokens that the request has got since the last time, at least one; logprobs are of the last of them.

        A delta with finish_reason "stop" ends the request if it runs still.
        """
        metrics, request = self.metrics, self.request
        if metrics.first_token_s is None:
            metrics.first_token_s = now_s
            metrics.num_cached_tokens = request.num_cached
        metrics.last_token_s = now_s
        metrics.num_preemptions = request.num_preemptions
        new_token_ids = request.token_ids[request.num_prompt_tokens + metrics.num_output_tokens :]
        text, finish_reason = "", request.finish_reason
        stop_reason: str | int | None = None
        ends_by_token = False
        for num_taken, token_id in enumerate(new_token_ids, start=1):
            metrics.num_output_tokens += 1
            ends_by_token = num_taken == len(new_token_ids) and request.finish_reason == "stop"
            piece = "" if ends_by_token and not request.params.include_stop else self._detokenizer.add(token_id)
            watched = self._stops.push(piece, armed=metrics.num_output_tokens >= request.params.min_tokens)
            text += watched.emit
            if watched.matched is not None:  # what a step accepted beyond it is not wanted
                return self._delta(text, new_token_ids[:num_taken], logprobs, "stop", watched.matched, None)
        if finish_reason is not None:
            text += self._drain()
            if ends_by_token and new_token_ids[-1] not in self._eos_token_ids:
                stop_reason = new_token_ids[-1]
        return self._delta(text, new_token_ids, logprobs, finish_reason, stop_reason, None)

    def end(self, error: str | None = None) -> OutputDelta:
        """Close a request that ended without a new token (aborted, failed)."""
        return self._delta(self._drain(), [], None, self.request.finish_reason, None, error)

    def _drain(self) -> str:
        watched = self._stops.push(self._detokenizer.flush())
        return watched.emit + ("" if watched.matched is not None else self._stops.flush())

    def _delta(
        self,
        text: str,
        token_ids: list[int],
        logprobs: TokenLogprobs | None,
        finish_reason: str | None,
        stop_reason: str | int | None,
        error: str | None,
    ) -> OutputDelta:
        delta = OutputDelta(
            self.public_id,
            self.request.sample_index,
            text,
            token_ids,
            [] if logprobs is None else [logprobs],
            finish_reason,
            stop_reason,
            error,
            self.metrics,
        )
        if self.follower is not None:
            self.follower.append(delta)
        return delta
