"""The policies' bench serves one trace under all of them, and its rows say what they compare."""

import pytest

from infra_lab.bench import scheduler_policies
from infra_lab.bench.scheduler_policies import (
    AZURE,
    SEATS,
    SHAREGPT,
    RealEngine,
    SimulatedGPU,
    compare_policies,
    settings_of,
    throughputs,
)
from infra_lab.engine.llm import LLM
from infra_lab.scheduler.config import SchedulerConfig
from infra_lab.scheduler.policies import POLICIES, BatchingPolicy
from infra_lab.simulator.cost import LinearStepCost


def test_all_policies_serve_the_same_requests() -> None:
    comparison = compare_policies(SimulatedGPU(SHAREGPT), 60)
    assert list(comparison.reports) == list(POLICIES)
    served = [
        [(r.arrival_s, r.prompt_tokens, r.output_tokens) for r in report.served]
        for report in comparison.reports.values()
    ]
    assert len(served[0]) == 60
    assert served[1:] == served[:-1]
    assert all(report.num_preemptions == 0 for report in comparison.reports.values())
    chunked = comparison.reports["chunked-prefill"]
    others = ("priority", "prefix-aware")
    assert all(comparison.reports[name].ttft_s == chunked.ttft_s for name in others), "one class, no shared prefix"


def test_seats_are_the_same_and_the_longest_prompt_fits_beside_the_decodes() -> None:
    for machine in (SimulatedGPU(SHAREGPT), SimulatedGPU(AZURE)):
        for policy in POLICIES:
            settings = settings_of(policy, machine)
            config = SchedulerConfig(max_model_len=machine.trace.context, **settings)
            assert config.max_num_seqs == SEATS
            rule = settings["policy"].batch_rule(10_000)
            assert rule is None or rule.size == SEATS
            assert isinstance(settings["policy"], BatchingPolicy)
            if not settings["policy"].chunks_prompts:
                assert config.max_batched_tokens - SEATS >= machine.trace.context


def test_throughput_is_that_of_the_whole_trace() -> None:
    """Everybody there at once, under a budget that all prompts fit into: continuous is chunked prefill that cuts little."""
    machine = SimulatedGPU(SHAREGPT)
    speeds = throughputs(machine, 40, 1)
    assert speeds["continuous"] > speeds["static"]
    settings = {**settings_of("continuous", machine), "policy": "chunked-prefill"}
    report = machine.serve(machine.trace.at([0.0] * 40), settings, None)
    assert speeds["continuous"] == pytest.approx(report.output_tokens_per_s, rel=0.05)


def test_the_real_engine_serves_it_too() -> None:
    trace = SHAREGPT
    with LLM("tiny", device="cpu", max_model_len=trace.context, num_kv_blocks=trace.kv_blocks) as llm:
        machine = RealEngine(llm, LinearStepCost())
        requests = [request for request in trace.at([0.0] * 12) if request.output_tokens < 80][:3]
        report = machine.serve(requests, settings_of("static", machine), None)
    assert [r.output_tokens for r in report.served] == [r.output_tokens for r in requests]


def test_rows_name_the_trace_and_both_sides() -> None:
    machine = SimulatedGPU(AZURE)
    rows = [
        scheduler_policies._throughput_row(machine, {"continuous": 30.0, "static": 8.0}, 5),
        *scheduler_policies._comparison_rows(machine, compare_policies(machine, 5), 5),
    ]
    assert (rows[0].ratio, rows[0].is_reached) == (3.75, True)
    assert all("azure-conversation lengths cut to 4096" in row.note for row in rows[:2])
    assert [row.name.strip() for row in rows[2:]] == list(POLICIES)
    assert all("ITL p99" in row.note and "good" in row.note for row in rows[2:])
