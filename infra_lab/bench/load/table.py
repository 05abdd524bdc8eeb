"""A load report for a terminal."""

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table

from infra_lab.bench.load.percentiles import Percentiles
from infra_lab.bench.load.report import LoadReport


def report_table(report: LoadReport) -> RenderableType:
    """Latencies as a table, and all else in lines around it."""
    lines = [f"[bold]{escape(report.model)}[/] at {escape(report.url)} ({report.endpoint})", escape(report.workload)]
    if report.is_partial:
        lines.append(f"[yellow]stopped early: {report.num_sent} of {report.num_planned} requests were sent[/]")
    return Group(*lines, _latencies(report), *_rates(report), *_failures(report), *_warnings(report))


def _latencies(report: LoadReport) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("ms", no_wrap=True)
    for column in ("p50", "p90", "p95", "p99", "max", "mean"):
        table.add_column(column, justify="right", no_wrap=True)
    rows: dict[str, Percentiles | None] = {
        "TTFT": report.ttft_s,
        "TPOT": report.tpot_s,
        "ITL": report.itl_s,
        "E2E": report.e2e_s,
    }
    for name, values in rows.items():
        if values is None:
            table.add_row(name, *["–"] * 6)
            continue
        cells = (values.p50, values.p90, values.p95, values.p99, values.max, values.mean)
        table.add_row(name, *(f"{cell * 1e3:,.1f}" for cell in cells))
    return table


def _rates(report: LoadReport) -> list[str]:
    cached = f", {report.cached_tokens / report.prompt_tokens:.0%} of them cached" if report.cached_tokens else ""
    lines = [
        f"{report.num_ok} of {report.num_sent} requests answered in {report.duration_s:.1f} s: "
        f"{report.requests_per_s:.2f} requests/s, {report.output_tokens_per_s:,.1f} output tokens/s",
        f"{report.prompt_tokens:,} prompt tokens{cached}; {report.output_tokens:,} output tokens",
    ]
    if report.asked_rate_per_s is not None and report.achieved_rate_per_s is not None:
        lines.append(
            f"asked {report.asked_rate_per_s:.2f} requests/s, sent {report.achieved_rate_per_s:.2f}; "
            f"at most {report.max_in_flight} in flight"
        )
    if report.goodput is not None:
        limits = ", ".join(f"{slo.latency} ≤ {slo.limit_s * 1e3:g} ms" for slo in report.goodput.slos)
        lines.append(
            f"[bold]goodput {report.goodput.per_s:.2f} requests/s[/]: {report.goodput.share:.0%} of requests kept {limits}"
        )
    return lines


def _failures(report: LoadReport) -> list[str]:
    return [
        f"[red]{count} × {escape(kind)}[/]: {escape(report.error_details[kind])}"
        for kind, count in report.errors.items()
    ]


def _warnings(report: LoadReport) -> list[str]:
    return [f"[yellow]! {escape(warning)}[/]" for warning in report.warnings]
