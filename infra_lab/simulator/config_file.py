"""A simulation as a YAML file: what comes, what serves it, what a step costs, and what is good enough.

    workload:                      one of
      arrivals, lengths              independent requests
      arrivals, sessions             conversations, each arrival the start of one
      trace                          a published trace (azure or mooncake)
    engine:                        scheduler limits and policy, KV blocks
    cluster:                       (optional) many replicas, by the request-level model
    cost:                          linear, roofline or table
    slo:                           (optional) what counts for goodput

`datasets/workloads` has an example of each kind. Fields are those of the classes that they become.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from infra_lab.data import data_path
from infra_lab.errors import ConfigError, MissingExtraError
from infra_lab.models.config import ModelConfig
from infra_lab.models.hf_config import config_from_folder
from infra_lab.paged_kv.block_manager import PrefixIndexName
from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.scheduler.policies import POLICIES
from infra_lab.simulator.arrivals import ARRIVALS
from infra_lab.simulator.cost import LinearStepCost, StepCost
from infra_lab.simulator.cost_roofline import RooflineStepCost
from infra_lab.simulator.cost_table import TableStepCost
from infra_lab.simulator.fields import build, mapping_of, refuse_unknown
from infra_lab.simulator.lengths import LengthModel, LognormalLength, published_lengths
from infra_lab.simulator.replay import Progress, simulate
from infra_lab.simulator.report import ServiceLevel, SimulationReport
from infra_lab.simulator.request_level import Routing, simulate_cluster
from infra_lab.simulator.traced_request import TracedRequest
from infra_lab.simulator.traces import read_azure_trace, read_mooncake_trace
from infra_lab.simulator.workload import RequestShape
from infra_lab.simulator.workloads import SessionModel, independent_requests
from kernels.chips import CHIPS


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How much of a workload there is."""

    num_requests: int | None = None
    """Or sessions."""
    duration_s: float | None = None
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthSettings:
    """Lengths by their centres; see `lengths`."""

    prompt: LognormalLength
    output: LognormalLength


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceFile:
    """A published trace."""

    format: Literal["azure", "mooncake"]
    path: str
    """Absolute, or from the folder of the configuration."""
    limit: int | None = None
    """Only the first requests."""
    sort: bool = False

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit is {self.limit}; it must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What one replica is."""

    scheduler: SchedulerConfig
    num_kv_blocks: int
    block_size: int = 16
    enable_prefix_cache: bool = True
    prefix_index: PrefixIndexName = "hash"

    def __post_init__(self) -> None:
        for name in ("num_kv_blocks", "block_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """Many replicas of the engine, by the request-level model."""

    num_replicas: int
    routing: Routing = "least-loaded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """All that a file says, ready to run."""

    requests: Sequence[TracedRequest]
    engine: Engine
    cost: StepCost
    cluster: Cluster | None
    slo: ServiceLevel | None
    seed: int

    def run(self, progress: Progress | None = None) -> SimulationReport:
        """Simulate it. Raises ConfigError where the request-level model cannot."""
        if self.cluster is not None:
            return self._run_cluster(self.cluster, progress)
        return simulate(
            self.requests,
            self.engine.scheduler,
            self.cost,
            num_kv_blocks=self.engine.num_kv_blocks,
            block_size=self.engine.block_size,
            enable_prefix_cache=self.engine.enable_prefix_cache,
            prefix_index=self.engine.prefix_index,
            slo=self.slo,
            progress=progress,
        )

    def _run_cluster(self, cluster: Cluster, progress: Progress | None) -> SimulationReport:
        if not isinstance(self.cost, LinearStepCost):
            raise ConfigError(
                "cost.kind: a cluster is simulated with the linear cost only; calibrate one, or drop cluster"
            )
        if any(request.follows is not None for request in self.requests):
            raise ConfigError("workload.sessions: a cluster takes independent requests only; drop sessions or cluster")
        return simulate_cluster(
            [request.arrival_s for request in self.requests],
            [RequestShape(request.prompt_tokens, request.output_tokens) for request in self.requests],
            self.engine.scheduler,
            self.cost,
            num_replicas=cluster.num_replicas,
            kv_tokens=self.engine.num_kv_blocks * self.engine.block_size,
            routing=cluster.routing,
            slo=self.slo,
            seed=self.seed,
            progress=progress,
        )


def read_simulation(path: Path) -> Simulation:
    """Read a configuration. Raises ConfigError, naming the field, and MissingExtraError without PyYAML."""
    content = mapping_of(_yaml(path), str(path))
    refuse_unknown(content, ("workload", "engine", "cluster", "cost", "slo"), str(path))
    for name in ("workload", "engine", "cost"):
        if name not in content:
            raise ConfigError(f"{path}: the section {name!r} is missing")
    engine = _engine(content["engine"])
    workload = mapping_of(content["workload"], "workload")
    return Simulation(
        requests=_requests(workload, engine.scheduler.max_model_len, path.parent),
        engine=engine,
        cost=_cost(content["cost"], path.parent),
        cluster=build(Cluster, content["cluster"], "cluster") if "cluster" in content else None,
        slo=build(ServiceLevel, content["slo"], "slo") if "slo" in content else None,
        seed=workload.get("seed", 0),
    )


def _yaml(path: Path) -> object:
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise MissingExtraError("a simulation's configuration needs PyYAML: pip install pyyaml") from error
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error


def _engine(value: object) -> Engine:
    section = mapping_of(value, "engine")
    scheduler = mapping_of(section.pop("scheduler", None), "engine.scheduler")
    policy = scheduler.pop("policy", "chunked-prefill")
    if isinstance(policy, dict):
        name = policy.pop("name", None)
        if name not in POLICIES:
            raise ConfigError(f"engine.scheduler.policy.name is {name!r}; known: {', '.join(POLICIES)}")
        policy = build(POLICIES[name], policy, "engine.scheduler.policy")
    elif policy not in POLICIES:
        raise ConfigError(f"engine.scheduler.policy is {policy!r}; known: {', '.join(POLICIES)}")
    config = build(SchedulerConfig, scheduler, "engine.scheduler", policy=policy)
    return build(Engine, section, "engine", scheduler=config)


def _requests(workload: dict[str, Any], max_model_len: int, folder: Path) -> Sequence[TracedRequest]:
    kinds = [name for name in ("lengths", "sessions", "trace") if name in workload]
    if len(kinds) != 1:
        raise ConfigError(f"workload has {kinds or 'none'} of lengths, sessions, trace; expected just one of them")
    if "trace" in workload:
        refuse_unknown(workload, ("trace",), "workload")
        return _trace(build(TraceFile, workload["trace"], "workload.trace"), folder)
    refuse_unknown(workload, ("arrivals", kinds[0], "num_requests", "duration_s", "seed"), "workload")
    extent = {name: workload[name] for name in ("num_requests", "duration_s", "seed") if name in workload}
    size = build(Extent, extent, "workload")
    times_s = _times_s(workload.get("arrivals"), size)
    if "sessions" in workload:
        sessions = mapping_of(workload["sessions"], "workload.sessions")
        sessions.setdefault("max_total", max_model_len)
        return build(SessionModel, sessions, "workload.sessions").draw(times_s, seed=size.seed + 1)
    shapes = _lengths(workload["lengths"], max_model_len).draw(len(times_s), seed=size.seed + 1)
    return independent_requests(times_s, shapes)


def _times_s(value: object, size: Extent) -> list[float]:
    arrivals = mapping_of(value, "workload.arrivals")
    kind = arrivals.pop("kind", None)
    if kind not in ARRIVALS:
        raise ConfigError(f"workload.arrivals.kind is {kind!r}; known: {', '.join(ARRIVALS)}")
    process = build(ARRIVALS[kind], arrivals, "workload.arrivals")
    try:
        return process.times_s(num_requests=size.num_requests, duration_s=size.duration_s, seed=size.seed)
    except ConfigError as error:
        raise ConfigError(f"workload: {error}") from None


def _lengths(value: object, max_model_len: int) -> LengthModel:
    if isinstance(value, str):
        return published_lengths(value, max_total=max_model_len)
    settings = build(LengthSettings, value, "workload.lengths")
    return LengthModel(prompt=settings.prompt, output=settings.output, max_total=max_model_len)


def _trace(trace: TraceFile, folder: Path) -> list[TracedRequest]:
    read = read_azure_trace if trace.format == "azure" else read_mooncake_trace
    return read(folder / trace.path, limit=trace.limit, sort=trace.sort)


def _cost(value: object, folder: Path) -> StepCost:
    section = mapping_of(value, "cost")
    kind = section.pop("kind", None)
    if kind == "linear":
        return build(LinearStepCost, section, "cost")
    if kind == "table":
        return build(TableStepCost, section, "cost")
    if kind == "roofline":
        chip = section.pop("chip", None)
        if chip not in CHIPS:
            raise ConfigError(f"cost.chip is {chip!r}; known: {', '.join(CHIPS)}")
        model = _model(section.pop("model", None), folder)
        return build(RooflineStepCost, section, "cost", chip=CHIPS[chip], model=model)
    raise ConfigError(f"cost.kind is {kind!r}; known: linear, roofline, table")


def _model(value: object, folder: Path) -> ModelConfig:
    if isinstance(value, str):
        return config_from_folder(data_path("tiny") if value == "tiny" else folder / value)
    return build(ModelConfig, value, "cost.model")
