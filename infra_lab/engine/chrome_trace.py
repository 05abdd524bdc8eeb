"""The flight recorder as a Chrome trace: open the file in chrome://tracing or ui.perfetto.dev.

Three processes: the steps with their parts, one lane a request with its chunks, and counters. Format: Trace Event Format
(Google 2016), timestamps in microseconds.
"""

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from infra_lab.engine.recorder import StepRecord

_STEPS, _REQUESTS, _COUNTERS = 1, 2, 3
_ORDER = ("schedule", "prepare", "forward", "sample", "update", "output")


def write_chrome_trace(steps: Iterable[StepRecord], path: Path) -> None:
    """Write the trace; the file appears whole or not at all."""
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(json.dumps({"traceEvents": list(_events(steps)), "displayTimeUnit": "ms"}))
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _events(steps: Iterable[StepRecord]) -> Iterator[dict[str, Any]]:
    for process, name in ((_STEPS, "engine"), (_REQUESTS, "requests"), (_COUNTERS, "counters")):
        yield {"ph": "M", "name": "process_name", "pid": process, "tid": 0, "args": {"name": name}}
    lanes: dict[str, int] = {}
    for step in steps:
        yield from _step_events(step)
        for request_id in (chunk.request_id for chunk in step.chunks):
            if request_id not in lanes:
                lanes[request_id] = len(lanes) + 1
                yield {
                    "ph": "M",
                    "name": "thread_name",
                    "pid": _REQUESTS,
                    "tid": lanes[request_id],
                    "args": {"name": request_id},
                }
        yield from _request_events(step, lanes)


def _step_events(step: StepRecord) -> Iterator[dict[str, Any]]:
    start, duration = step.start_s * 1e6, step.duration_s * 1e6
    yield _slice(
        f"step {step.step}", _STEPS, 1, start, duration, tokens=step.num_tokens, running=step.num_running,
        copies=step.num_copies, preempted=list(step.preempted),
    )  # fmt: skip
    for part in _ORDER:
        length = step.timings_s.get(part, 0.0) * 1e6
        yield _slice(part, _STEPS, 2, start, length)
        start += length
    counters = {"used KV blocks": step.used_blocks, "running": step.num_running, "waiting": step.num_waiting}
    for name, value in counters.items():
        yield {"ph": "C", "name": name, "pid": _COUNTERS, "ts": step.start_s * 1e6, "args": {name: value}}


def _request_events(step: StepRecord, lanes: dict[str, int]) -> Iterator[dict[str, Any]]:
    start, duration = step.start_s * 1e6, step.duration_s * 1e6
    for chunk in step.chunks:
        name = "decode" if chunk.num_tokens == 1 else f"prefill {chunk.num_tokens}"
        yield _slice(name, _REQUESTS, lanes[chunk.request_id], start, duration, step=step.step, first=chunk.start)
    for request_id in step.preempted:
        if request_id in lanes:
            yield {"ph": "i", "s": "t", "name": "preempted", "pid": _REQUESTS, "tid": lanes[request_id], "ts": start}


def _slice(name: str, process: int, lane: int, start_us: float, duration_us: float, **args: Any) -> dict[str, Any]:
    return {
        "ph": "X", "name": name, "pid": process, "tid": lane, "ts": start_us, "dur": duration_us, "args": args
    }  # fmt: skip
