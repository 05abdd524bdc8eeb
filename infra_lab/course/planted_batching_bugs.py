"""Four ways in which batching goes wrong, planted on purpose: section 6.3 has the learner find them.

A   while a prompt is not whole, nobody decodes: no token is set aside for those who run
B   the wait of a batch begins anew with everybody who joins it
C   priorities do not age: who is less important waits for as long as anybody more important comes
D   those who come in get the whole budget, whatever the decodes have of it already

With each of them every request ends, with the same text. Only the steps and their times tell.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from infra_lab.errors import ConfigError
from infra_lab.scheduler.plan import StepPlan
from infra_lab.scheduler.policies import PriorityPolicy, Rank
from infra_lab.scheduler.request import Request
from infra_lab.scheduler.scheduler import Scheduler

_schedule, _open_batch, _admit_waiting = Scheduler.schedule, Scheduler._open_batch, Scheduler._admit_waiting


def _prompts_go_first(self: Scheduler, now_s: float = 0.0) -> StepPlan:
    plan = _schedule(self, now_s)
    is_cut = [start + num_tokens < len(request.token_ids) for request, start, num_tokens in plan.chunks]
    if any(is_cut):
        plan.chunks = [chunk for chunk in plan.chunks if chunk.request.num_output_tokens == 0]
    return plan


def _waits_for_the_last(self: Scheduler, now_s: float) -> None:
    _open_batch(self, now_s)
    rule, num_waiting = self.policy.batch_rule(len(self.waiting)), len(self.waiting)
    if rule is None or self.running or not 0 < num_waiting < rule.size:
        return
    due_s = max(request.arrival_s for request in self.waiting.first(num_waiting)) + rule.max_wait_s
    if now_s < due_s:
        self._batch_seats, self.held_until_s = 0, due_s


def _strict_classes(self: PriorityPolicy, request: Request) -> Rank:
    return (request.priority, request.arrival_s)


def _whole_budget(self: Scheduler, plan: StepPlan, budget: int) -> int:
    return _admit_waiting(self, plan, self.config.max_batched_tokens if budget else 0)


BATCHING_BUGS: dict[str, tuple[type, str, Callable[..., Any]] | None] = {
    "none": None,
    "A": (Scheduler, "schedule", _prompts_go_first),
    "B": (Scheduler, "_open_batch", _waits_for_the_last),
    "C": (PriorityPolicy, "rank", _strict_classes),
    "D": (Scheduler, "_admit_waiting", _whole_budget),
}
"""By name: whose method, which, and what stands there instead."""


@contextmanager
def planted_batching_bug(name: str) -> Iterator[None]:
    """Have every scheduler of the process work with one of the bugs in this block. Raises ConfigError for an unknown one."""
    if name not in BATCHING_BUGS:
        raise ConfigError(f"there is no bug {name!r}; there are {', '.join(BATCHING_BUGS)}")
    planted = BATCHING_BUGS[name]
    if planted is None:
        yield
        return
    owner, method, wrong = planted
    right = getattr(owner, method)
    try:
        setattr(owner, method, wrong)
        yield
    finally:
        setattr(owner, method, right)
