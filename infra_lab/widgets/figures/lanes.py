"""Which request did what in which step: the records of the flight recorder as arrays of lanes × steps."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from infra_lab.engine.recorder import StepRecord

IDLE, PREFILL, DECODE, WAITING = 0, 1, 2, 3
"""What a cell says. WAITING: preempted, and not admitted again yet."""


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened to one request in one step, in words."""

    step: int
    lane: int
    text: str


@dataclass(frozen=True, slots=True)
class Lanes:
    """All steps of a run, a lane for each request in the order in which they first ran."""

    names: list[str]
    """Request ids, by lane."""
    steps: npt.NDArray[np.int32]
    """[S] step numbers."""
    kinds: npt.NDArray[np.int8]
    """[lanes, S] one of IDLE, PREFILL, DECODE, WAITING."""
    start: npt.NDArray[np.int32]
    """[lanes, S] position of the first token computed."""
    tokens: npt.NDArray[np.int32]
    """[lanes, S] tokens computed."""
    cached: list[Mark]
    preempted: list[Mark]
    finished: list[Mark]


def is_decode(num_tokens: int, token_id: int | None) -> bool:
    """Whether a chunk is a decode: one token computed, the next one sampled."""
    return num_tokens == 1 and token_id is not None


def lanes_of(records: Sequence[StepRecord]) -> Lanes:
    """Arrange records, oldest first, in lanes. O(chunks + lanes × steps)."""
    lane_of: dict[str, int] = {}
    for record in records:
        for chunk in record.chunks:
            lane_of.setdefault(chunk.request_id, len(lane_of))
    shape = (len(lane_of), len(records))
    kinds, start, tokens = np.zeros(shape, np.int8), np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    cached, preempted, finished = [], [], []
    waits_since: dict[int, int] = {}
    for x, record in enumerate(records):
        for chunk in record.chunks:
            lane = lane_of[chunk.request_id]
            kinds[lane, x] = DECODE if is_decode(chunk.num_tokens, chunk.token_id) else PREFILL
            start[lane, x], tokens[lane, x] = chunk.start, chunk.num_tokens
            if lane in waits_since:
                kinds[lane, waits_since.pop(lane) : x] = WAITING
        for admission in record.admitted:
            if admission.num_cached_tokens:
                text = f"{admission.num_cached_tokens} tokens from the prefix cache"
                cached.append(Mark(record.step, lane_of[admission.request_id], text))
        for name in record.preempted:
            if name in lane_of:
                preempted.append(Mark(record.step, lane_of[name], "preempted: its blocks are freed, its tokens kept"))
                waits_since[lane_of[name]] = x
        for ending in record.finished:
            if ending.request_id in lane_of:
                finished.append(Mark(record.step, lane_of[ending.request_id], f"finished: {ending.reason}"))
                waits_since.pop(lane_of[ending.request_id], None)
    for lane, since in waits_since.items():
        kinds[lane, since:] = WAITING
    steps = np.array([record.step for record in records], np.int32)
    return Lanes(list(lane_of), steps, kinds, start, tokens, cached, preempted, finished)
