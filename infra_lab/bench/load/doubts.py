"""Reasons not to believe a measurement: a generator that was late, a load that was not open, tokens that nobody counted."""

from collections.abc import Sequence
from statistics import quantiles

from infra_lab.bench.load.prompts import TokenScale
from infra_lab.bench.load.record import RequestRecord
from infra_lab.bench.load.target import Target

MAX_LAG_S = 0.02
"""A request in a hundred may go out so late; a busy client adds what it is late to every latency."""
MIN_QUEUED_S = 0.001
"""Waiting for a connection for less is no waiting."""
MIN_SHARE = 0.9
"""Of asked tokens, or of tokens that came in an event of their own."""


def doubts(target: Target, records: Sequence[RequestRecord], scale: TokenScale) -> list[str]:
    """Return what a reader of the report has to know, a sentence each."""
    ok = [record for record in records if record.is_ok]
    found = [*_about_the_generator(target, records)]
    if not ok:
        return found
    uncounted = sum(record.counted_output_tokens is None for record in ok)
    if uncounted:
        found.append(f"the server gave no usage for {uncounted} requests: their events are counted as tokens")
    if not scale.is_measured:
        found.append("the server does not count prompt tokens: a word was taken for a token")
    got, asked = sum(r.output_tokens for r in ok), sum(r.planned_output_tokens for r in ok)
    if got < MIN_SHARE * asked:
        found.append(
            f"outputs have {got / asked:.0%} of the tokens asked for: the server ends them itself (it may not know "
            "ignore_eos, or its context is shorter)"
        )
    counted = [record for record in ok if record.prompt_tokens is not None]
    got, asked = sum(r.prompt_tokens or 0 for r in counted), sum(r.planned_prompt_tokens for r in counted)
    if counted and abs(got - asked) > (1 - MIN_SHARE) * asked:
        found.append(f"prompts have {got / asked:.0%} of the tokens asked for, by the server's count")
    pieces, tokens = sum(len(r.token_times_s) for r in ok), sum(r.output_tokens for r in ok)
    if pieces < MIN_SHARE * tokens:
        found.append(f"{tokens / pieces:.1f} tokens came in an event, on average: ITL is between events, not tokens")
    return found


def _about_the_generator(target: Target, records: Sequence[RequestRecord]) -> list[str]:
    found = []
    lags = [record.launch_lag_s for record in records if record.launch_lag_s is not None]
    late_s = quantiles(lags, n=100)[-1] if len(lags) > 1 else max(lags, default=0.0)
    if late_s > MAX_LAG_S:
        found.append(
            f"the generator itself was late: {late_s * 1e3:.0f} ms at p99, which is in every latency; lower the rate, or "
            "give it a faster or an idle machine"
        )
    queued = [record for record in records if (record.queued_s or 0.0) > MIN_QUEUED_S]
    if queued:
        found.append(
            f"{len(queued)} requests waited for one of {target.max_connections} connections; the waiting is in their "
            "latency, and the server saw less load than was asked for: raise the bound"
        )
    return found
