"""`infra-lab simulate`; the main command registers it."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from infra_lab.console import readable_errors
from infra_lab.models.cli import progress_bars

if TYPE_CHECKING:
    from infra_lab.simulator.report import SimulationReport


def simulate(
    config: Annotated[Path, typer.Argument(help="A YAML file; datasets/workloads has examples.")],
    json: Annotated[Path | None, typer.Option(help="Write the same figures to this file.")] = None,
) -> None:
    """Run a workload through the real scheduler on a virtual clock, and report latencies, goodput and memory."""
    with readable_errors():
        from infra_lab.simulator.config_file import read_simulation

        simulation = read_simulation(config)
        with progress_bars() as progress:
            report = simulation.run(lambda done, total: progress("requests", done, total))
        if json is not None:
            report.write_json(json)
    console = Console()
    console.print(_latencies(report))
    for line in _lines(report):
        console.print("·", line, markup=False, highlight=False, soft_wrap=True)


def _latencies(report: "SimulationReport") -> Table:
    table = Table(title="latency, ms")
    for column in ("", "mean", "p50", "p90", "p99", "max"):
        table.add_column(column, justify="right")
    rows = (("TTFT", report.ttft_s), ("TPOT", report.tpot_s), ("ITL", report.itl_s), ("end to end", report.e2e_s))
    for name, spread in rows:
        if spread is not None:
            table.add_row(name, *(f"{value * 1e3:,.1f}" for value in spread))
    return table


def _lines(report: "SimulationReport") -> list[str]:
    refused = "".join(f", {number} refused ({why})" for why, number in report.rejected.items())
    abandoned = f", {report.num_abandoned} turns abandoned" if report.num_abandoned else ""
    lines = [
        f"{report.num_served} of {report.num_requests} requests served in {report.duration_s:,.1f} s{refused}{abandoned}",
        f"{report.requests_per_s:,.2f} requests/s, {report.output_tokens_per_s:,.0f} tokens/s, busy {report.busy_share:.0%}",
        f"{report.cached_tokens / max(report.prompt_tokens, 1):.0%} of {report.prompt_tokens:,} prompt tokens from the "
        f"prefix cache, {report.num_preemptions} preemptions",
    ]
    if report.kv_use_mean is not None and report.kv_use_max is not None:
        lines.append(f"KV blocks in use: {report.kv_use_mean:.0%} on average, {report.kv_use_max:.0%} at most")
    if report.good_share is not None and report.goodput_per_s is not None:
        lines.append(
            f"goodput {report.goodput_per_s:,.2f} requests/s: {report.good_share:.1%} within the service level"
        )
    lines.append(
        f"simulated {report.num_steps:,} steps in {report.wall_s:.1f} s: {report.request_steps_per_s:,.0f} request-steps/s"
    )
    return lines
