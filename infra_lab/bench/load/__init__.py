"""Open-loop load on any OpenAI-compatible server.

    report = await run_load(Target(url="http://127.0.0.1:8000"), synthetic_workload(Arrivals(rate_per_s=4), num_requests=100))
    report.ttft_s.p99, report.goodput, report.records

Needs httpx: pip install 'infra-lab[server]'.
"""

from infra_lab.errors import MissingExtraError

try:
    from infra_lab.bench.load.run import LoadRun, run_load
except ModuleNotFoundError as error:
    raise MissingExtraError(f"the load generator needs {error.name}: pip install 'infra-lab[server]'") from error
from infra_lab.bench.load.arrivals import Arrivals
from infra_lab.bench.load.percentiles import Percentiles
from infra_lab.bench.load.record import RequestRecord
from infra_lab.bench.load.report import LoadReport
from infra_lab.bench.load.slo import Slo, parse_slo
from infra_lab.bench.load.target import Target, TargetError
from infra_lab.bench.load.workload import (
    Lengths,
    PlannedRequest,
    SharedPrefix,
    Workload,
    synthetic_workload,
    trace_workload,
)

__all__ = [
    "Arrivals",
    "Lengths",
    "LoadReport",
    "LoadRun",
    "Percentiles",
    "PlannedRequest",
    "RequestRecord",
    "SharedPrefix",
    "Slo",
    "Target",
    "TargetError",
    "Workload",
    "parse_slo",
    "run_load",
    "synthetic_workload",
    "trace_workload",
]
