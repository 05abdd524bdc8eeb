"""The run: an open loop. Requests go out when they are due, whatever has become of those before them.

A closed loop (so many users, each waits for its answer) slows down with the server and never shows a queue that grows;
real users do not wait for each other.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from time import perf_counter

from infra_lab.bench.load.client import LoadClient
from infra_lab.bench.load.prompts import TokenScale, write_prompt
from infra_lab.bench.load.record import RequestRecord
from infra_lab.bench.load.report import LoadReport
from infra_lab.bench.load.slo import Slo
from infra_lab.bench.load.target import Target
from infra_lab.bench.load.workload import Workload

OnRecord = Callable[[RequestRecord], None]


async def run_load(
    target: Target, workload: Workload, *, slos: Sequence[Slo] = (), on_record: OnRecord | None = None
) -> LoadReport:
    """Put a workload on a server and measure what every request lives through.

    on_record: is given each record when its request is over, on the event loop. Raises TargetError before the first
    request if there is no such server; what fails later is counted in the report.
    """
    return await LoadRun(target, workload, slos=slos, on_record=on_record).run()


class LoadRun:
    """A run that can be looked at (`report`) and ended (`stop`) while it goes on. Runs once."""

    def __init__(
        self, target: Target, workload: Workload, *, slos: Sequence[Slo] = (), on_record: OnRecord | None = None
    ) -> None:
        self.target, self.workload, self.slos = target, workload, tuple(slos)
        self.records: list[RequestRecord] = []
        """Of the requests that were due so far."""
        self.max_in_flight = 0
        self.is_stopped = False
        self._on_record = on_record or (lambda record: None)
        self._scale = TokenScale()
        self._start_s = 0.0
        self._launcher: asyncio.Task[None] | None = None
        self._tasks: dict[asyncio.Task[None], RequestRecord] = {}

    @property
    def num_in_flight(self) -> int:
        """Requests that were launched and are not over."""
        return len(self._tasks)

    async def run(self) -> LoadReport:
        """Run to the end, or until `stop`. Cancelled, it gives up all requests and raises. Raises TargetError."""
        async with LoadClient(self.target) as client:
            await self._prepare(client)
            prompts = [write_prompt(request, self._scale, self.workload.seed) for request in self.workload.requests]
            self._start_s = perf_counter()
            self._launcher = asyncio.create_task(self._launch_all(client, prompts))
            if self.is_stopped:
                self._launcher.cancel()
            try:
                await asyncio.wait([self._launcher])
                while self._tasks:
                    await asyncio.wait(self._tasks)
            except asyncio.CancelledError:
                self.stop()
                await asyncio.wait([self._launcher, *self._tasks])
                raise
        if not self._launcher.cancelled():
            self._launcher.result()
        return self.report()

    def stop(self) -> None:
        """Send no more, and give up what is in flight; to be called on the event loop."""
        self.is_stopped = True
        for task in (self._launcher, *self._tasks):
            if task is not None:
                task.cancel()

    def report(self) -> LoadReport:
        """What is known so far. Requests in flight count as sent, and as nothing else."""
        return LoadReport.of(
            self.target,
            self.workload,
            self.records,
            slos=self.slos,
            scale=self._scale,
            max_in_flight=self.max_in_flight,
            now_s=self._now_s(),
            is_partial=self.is_stopped,
        )

    async def _prepare(self, client: LoadClient) -> None:
        if self.target.model is None:
            self.target = client.target = replace(self.target, model=await client.first_model())
        self._scale = await client.token_scale()

    def _now_s(self) -> float:
        return perf_counter() - self._start_s

    async def _launch_all(self, client: LoadClient, prompts: list[str]) -> None:
        for request, prompt in zip(self.workload.requests, prompts, strict=True):
            await asyncio.sleep(max(0.0, request.arrival_s - self._now_s()))  # also when late: answers must be read
            record = RequestRecord(request.index, request.arrival_s, *request.shape)
            self.records.append(record)
            task = asyncio.create_task(client.send(record, prompt, self._now_s))
            self._tasks[task] = record
            self.max_in_flight = max(self.max_in_flight, self.num_in_flight)
            task.add_done_callback(self._over)

    def _over(self, task: asyncio.Task[None]) -> None:
        record = self._tasks.pop(task)
        if task.cancelled():
            record.error, record.error_detail = "stopped", "the run was stopped before its end"
        elif (error := task.exception()) is not None:  # nothing that a server should be able to cause
            record.error, record.error_detail = type(error).__name__, str(error)
        if record.ended_s is None:
            record.ended_s = self._now_s()
        self._on_record(record)
