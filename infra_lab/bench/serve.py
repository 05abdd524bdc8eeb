"""`infra-lab bench serve`: how an OpenAI-compatible server holds up under a load that does not wait for it."""

import asyncio
import json
import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from infra_lab.console import errors, readable_errors
from infra_lab.errors import ConfigError

if TYPE_CHECKING:
    from infra_lab.bench.load import LoadReport, LoadRun, Workload

_PROGRESS_S = 0.5


def bench_serve(
    url: Annotated[str, typer.Option(help="The server, e.g. http://127.0.0.1:8000.")],
    model: Annotated[str | None, typer.Option(help="The first that the server lists, if not given.")] = None,
    endpoint: Annotated[str, typer.Option(help="completions or chat.")] = "completions",
    rate: Annotated[float, typer.Option(help="Requests a second; inf: all at once.")] = 1.0,
    num_requests: Annotated[int | None, typer.Option("--requests", "-n", help="How many to send.")] = None,
    duration: Annotated[float | None, typer.Option(help="Send for so many seconds.")] = None,
    arrivals: Annotated[str, typer.Option(help="poisson, gamma or constant.")] = "poisson",
    burstiness: Annotated[float, typer.Option(help="Of gamma arrivals; 1: Poisson, less: bursts.")] = 1.0,
    trace: Annotated[
        Path | None, typer.Option(help="CSV or JSONL of arrival_s, prompt_tokens, output_tokens; instead of a rate.")
    ] = None,
    speed: Annotated[float, typer.Option(help="Replay a trace so many times as fast.")] = 1.0,
    prompt_tokens: Annotated[int, typer.Option(help="Of a prompt; the median if lengths vary.")] = 256,
    output_tokens: Annotated[int, typer.Option(help="Of an answer, likewise.")] = 128,
    sigma: Annotated[float, typer.Option(help="Log-normal spread of both lengths; 0: none, 0.7: conversations.")] = 0.0,
    max_total: Annotated[int, typer.Option(help="The model's context; longer requests are cut to it.")] = 4096,
    shared_prefix: Annotated[float, typer.Option(help="Share of a prompt that others begin with too, 0 to 1.")] = 0.0,
    num_prefixes: Annotated[int, typer.Option(help="How many different shared beginnings there are.")] = 1,
    seed: Annotated[int, typer.Option(help="The same seed sends the same requests at the same times.")] = 0,
    slo: Annotated[
        list[str] | None, typer.Option(help="Milliseconds a request may take: ttft:500, tpot:50, itl:…, e2e:…; repeat.")
    ] = None,
    max_connections: Annotated[
        int, typer.Option(help="Requests in flight, at most; more wait, and that counts.")
    ] = 1024,
    timeout: Annotated[float, typer.Option(help="Seconds after which a request has failed.")] = 600.0,
    ignore_eos: Annotated[bool, typer.Option(help="Have outputs be as long as asked.")] = True,
    extra_body: Annotated[str | None, typer.Option(help="JSON object of further fields for every request.")] = None,
    api_key_env: Annotated[str, typer.Option(help="Environment variable that holds the API key.")] = "OPENAI_API_KEY",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures to this file.")] = None,
    records: Annotated[bool, typer.Option(help="Write every request's times too.")] = False,
) -> None:
    """Load a server, whatever it is, with requests that arrive on their own schedule. Ctrl-C prints what there is."""
    with readable_errors():
        from infra_lab.bench.load import Arrivals, Lengths, LoadRun, SharedPrefix, Target, parse_slo
        from infra_lab.bench.load.table import report_table
        from infra_lab.bench.load.workload import synthetic_workload, trace_workload

        target = Target(
            url=url,
            model=model,
            endpoint=endpoint,  # type: ignore[arg-type]  # it is checked there
            api_key=os.environ.get(api_key_env) or None,
            timeout_s=timeout,
            max_connections=max_connections,
            ignore_eos=ignore_eos,
            extra_body=_json_object(extra_body),
        )
        shared = SharedPrefix(share=shared_prefix, num_prefixes=num_prefixes)
        workload: Workload
        if trace is not None:
            workload = trace_workload(
                trace, speed=speed, num_requests=num_requests, duration_s=duration, shared_prefix=shared, seed=seed
            )
        else:
            workload = synthetic_workload(
                Arrivals(rate_per_s=rate, kind=arrivals, burstiness=burstiness),  # type: ignore[arg-type]
                num_requests=100 if num_requests is None and duration is None else num_requests,
                duration_s=duration,
                lengths=Lengths(
                    prompt_tokens=prompt_tokens, output_tokens=output_tokens, sigma=sigma, max_total=max_total
                ),
                shared_prefix=shared,
                seed=seed,
            )
        run = LoadRun(target, workload, slos=[parse_slo(text) for text in slo or ()])
        report = asyncio.run(_watched(run))
        Console().print(report_table(report), highlight=False)
        if json_file is not None:
            report.write_json(json_file, with_records=records)
    if report.num_ok == 0:
        raise typer.Exit(1)


async def _watched(run: "LoadRun") -> "LoadReport":
    """Run with a line of progress. The first Ctrl-C ends the run and keeps its figures; the second one ends all."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        loop.remove_signal_handler(signal.SIGINT)
        run.stop()

    with suppress(NotImplementedError):  # Windows has no such handlers: there Ctrl-C just ends the run
        loop.add_signal_handler(signal.SIGINT, stop)
    with errors.status("asking the server for its model and its tokens") as status:

        async def show() -> None:
            while True:
                await asyncio.sleep(_PROGRESS_S)
                num_failed = sum(record.error is not None for record in run.records)
                status.update(
                    f"{len(run.records)} of {len(run.workload.requests)} sent, {run.num_in_flight} in flight, "
                    f"{num_failed} failed"
                )

        showing = asyncio.create_task(show())
        try:
            return await run.run()
        finally:
            showing.cancel()
            with suppress(NotImplementedError):
                loop.remove_signal_handler(signal.SIGINT)


def _json_object(text: str | None) -> dict[str, Any]:
    try:
        content = json.loads(text or "{}")
    except ValueError as error:
        raise ConfigError(f"--extra-body is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--extra-body is a {type(content).__name__}; expected an object of further fields")
    return content
