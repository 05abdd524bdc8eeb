"""What a run has shown: distributions, rates, failures, and whether the measurement itself can be trusted."""

import json
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

from infra_lab.bench.load.doubts import doubts
from infra_lab.bench.load.percentiles import Percentiles
from infra_lab.bench.load.prompts import TokenScale
from infra_lab.bench.load.record import RequestRecord
from infra_lab.bench.load.slo import Goodput, Slo, goodput
from infra_lab.bench.load.target import Target
from infra_lab.bench.load.workload import Workload


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadReport:
    """Times in seconds, rates a second. Latencies are those of requests that were answered to the end."""

    url: str
    model: str
    endpoint: str
    workload: str
    seed: int
    num_planned: int
    num_sent: int
    num_ok: int
    errors: dict[str, int]
    """Failed requests by kind."""
    error_details: dict[str, str]
    """What the first of each kind said."""
    is_partial: bool
    duration_s: float
    """From the first arrival to the last end."""
    asked_rate_per_s: float | None
    """Of the arrivals as they were due; None for fewer than two, or all at once."""
    achieved_rate_per_s: float | None
    """Of the same requests as they went out."""
    launch_lag_s: Percentiles | None
    """How late the generator itself was."""
    queued_s: Percentiles | None
    """How long requests waited in the client for a place among the connections."""
    max_in_flight: int
    ttft_s: Percentiles | None
    tpot_s: Percentiles | None
    itl_s: Percentiles | None
    e2e_s: Percentiles | None
    requests_per_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    output_tokens_per_s: float
    goodput: Goodput | None
    warnings: list[str]
    """Why a figure may not be what it seems."""
    measured_at: str
    records: list[RequestRecord] = field(repr=False)

    @classmethod
    def of(
        cls,
        target: Target,
        workload: Workload,
        records: Sequence[RequestRecord],
        *,
        slos: Sequence[Slo] = (),
        scale: TokenScale,
        max_in_flight: int,
        now_s: float,
        is_partial: bool = False,
    ) -> Self:
        """Sum up the records of a run that has lasted `now_s` seconds."""
        ok = [record for record in records if record.is_ok]
        failed = [record for record in records if record.error is not None]
        ended = [record.ended_s for record in records if record.ended_s is not None]
        duration_s = max(ended, default=0.0) if len(ended) == len(records) else now_s
        sent = [record for record in records if record.sent_s is not None]
        output_tokens = sum(record.output_tokens for record in ok)
        per_s = 1 / duration_s if duration_s > 0 else 0.0
        return cls(
            url=target.base_url,
            model=target.model or "",
            endpoint=target.endpoint,
            workload=workload.description,
            seed=workload.seed,
            num_planned=len(workload.requests),
            num_sent=len(records),
            num_ok=len(ok),
            errors=dict(Counter(record.error for record in failed if record.error).most_common()),
            error_details={record.error: record.error_detail for record in reversed(failed) if record.error},
            is_partial=is_partial,
            duration_s=duration_s,
            asked_rate_per_s=_rate([record.scheduled_s for record in sent]),
            achieved_rate_per_s=_rate([record.sent_s for record in sent if record.sent_s is not None]),
            launch_lag_s=Percentiles.of([record.launch_lag_s for record in records if record.launch_lag_s is not None]),
            queued_s=Percentiles.of([record.queued_s for record in records if record.queued_s is not None]),
            max_in_flight=max_in_flight,
            ttft_s=Percentiles.of([record.ttft_s for record in ok if record.ttft_s is not None]),
            tpot_s=Percentiles.of([record.tpot_s for record in ok if record.tpot_s is not None]),
            itl_s=Percentiles.of([gap for record in ok for gap in record.itl_s]),
            e2e_s=Percentiles.of([record.e2e_s for record in ok if record.e2e_s is not None]),
            requests_per_s=len(ok) * per_s,
            prompt_tokens=sum(record.prompt_tokens or 0 for record in ok),
            cached_tokens=sum(record.cached_tokens for record in ok),
            output_tokens=output_tokens,
            output_tokens_per_s=output_tokens * per_s,
            goodput=goodput(records, slos, duration_s) if slos else None,
            warnings=doubts(target, records, scale),
            measured_at=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            records=list(records),
        )

    def to_json(self, *, with_records: bool = False) -> dict[str, Any]:
        """All figures; with every request's times on demand."""
        content = asdict(self)
        if not with_records:
            del content["records"]
        return content

    def write_json(self, path: Path, *, with_records: bool = False) -> None:
        """Write the figures; the file appears whole or not at all."""
        partial = path.with_name(path.name + ".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            content = json.dumps(self.to_json(with_records=with_records), indent=2, ensure_ascii=False, allow_nan=False)
            partial.write_text(content + "\n")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def _rate(times_s: Sequence[float]) -> float | None:
    span_s = max(times_s) - min(times_s) if times_s else 0.0
    return (len(times_s) - 1) / span_s if span_s > 0 else None
