"""`infra-lab`: the lab from the shell.

Nothing heavy is imported before a command runs: `infra-lab --help` must not wait for torch.
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from infra_lab.bench.cli import bench_app
from infra_lab.compression.cli import distill, prune
from infra_lab.console import errors, readable_errors
from infra_lab.course import cli as course
from infra_lab.models.cli import fetch, fetch_if_absent, quantize
from infra_lab.server.cli import serve
from infra_lab.simulator.cli import simulate

if TYPE_CHECKING:
    from infra_lab.engine.llm import LLM
    from infra_lab.engine.outputs import RequestMetrics
    from infra_lab.sampling_params import SamplingParams

app = typer.Typer(
    add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__.split("\n")[0]
)
app.add_typer(course.exercises_app, name="exercises")
app.add_typer(course.lessons_app, name="lessons")
app.command()(course.grade)
app.command()(course.claims)
app.add_typer(bench_app, name="bench")
app.command()(serve)
for command in (fetch, quantize, distill, prune, simulate):
    app.command()(command)


def main() -> None:
    """Entry point of the `infra-lab` command."""
    app()


@app.command()
def doctor(json_output: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False) -> None:
    """Show this machine, measure it, and say what is missing."""
    from infra_lab.hardware.doctor import examine

    with readable_errors():
        report = examine()
        if json_output:
            sys.stdout.write(report.to_json() + "\n")
            return
        table = Table(show_header=False, box=None)
        for name, value in report.facts.items():
            table.add_row(f"[bold]{name}[/]", value)
        Console().print(table)
        for line in report.advice:
            Console().print("·", line, markup=False, highlight=False, soft_wrap=True)


@app.command()
def lab(
    port: Annotated[
        int | None, typer.Option(help="Serve on this port, or not at all; otherwise the next free one.")
    ] = None,
    browser: Annotated[bool, typer.Option(help="Open a browser window.")] = True,
) -> None:
    """Open the lessons in JupyterLab."""
    from infra_lab.course.folders import labs_path
    from infra_lab.course.jupyter import run_lab

    with readable_errors():
        code = run_lab(labs_path(), port=port, browser=browser)
    raise typer.Exit(code)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="What to ask, or, with --raw, the text to continue.")],
    model: Annotated[str, typer.Option(help="tiny, smollm2-135m, a Hugging Face folder, or a .gguf file.")] = "tiny",
    max_tokens: Annotated[int, typer.Option(help="At most this many new tokens.")] = 256,
    temperature: Annotated[float, typer.Option(help="0 takes the most probable token.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="0 keeps all tokens.")] = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same text.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this string; may be given several times.")] = None,
    n: Annotated[int, typer.Option(help="Number of samples; with more than one they are printed when finished.")] = 1,
    system: Annotated[str | None, typer.Option(help="A system message.")] = None,
    raw: Annotated[bool, typer.Option(help="Continue the text as it is, without the chat template.")] = False,
    device: str = "auto",
    dtype: str = "auto",
    quantization: Annotated[str | None, typer.Option(help="int8, rtn-int4-g32, ...")] = None,
    kv_dtype: Annotated[str, typer.Option(help="auto, int8 or fp8: what the KV cache is stored in.")] = "auto",
    max_model_len: int | None = None,
    trace: Annotated[Path | None, typer.Option(help="Write a Chrome trace of every step to this file.")] = None,
) -> None:
    """Answer a prompt, streaming, and say how fast it went against what the machine can do."""
    with readable_errors():
        from infra_lab import LLM, SamplingParams

        params = SamplingParams(
            max_tokens=max_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            seed=seed,
            stop=tuple(stop or ()),
            n=n,
        )
        fetch_if_absent(model)
        llm = LLM(
            model,
            device=device,
            dtype=dtype,
            quantization=quantization,
            kv_dtype=kv_dtype,
            max_model_len=max_model_len,
        )
        if raw or not llm.tokenizer.chat_template:
            token_ids = llm.encode(prompt)
        else:
            opening = [{"role": "system", "content": system}] if system else []
            token_ids = llm.chat_token_ids([*opening, {"role": "user", "content": prompt}])
        if n == 1:
            metrics = _stream(llm, token_ids, params)
        else:
            metrics = _print_samples(llm, token_ids, params)
        if trace is not None:
            from infra_lab.engine.chrome_trace import write_chrome_trace

            write_chrome_trace(llm.recorder.steps, trace)
            errors.print(f"trace: {trace} (open it in ui.perfetto.dev or chrome://tracing)", highlight=False)
        _print_speed(llm, metrics)


def _stream(llm: "LLM", token_ids: list[int], params: "SamplingParams") -> "RequestMetrics":
    for delta in llm.stream(token_ids, params):
        sys.stdout.write(delta.text)
        sys.stdout.flush()
    sys.stdout.write("\n")
    return delta.metrics


def _print_samples(llm: "LLM", token_ids: list[int], params: "SamplingParams") -> "RequestMetrics":
    output = llm.generate([token_ids], params)[0]
    for index, sample in enumerate(output.samples):
        sys.stdout.write(f"--- sample {index + 1} ---\n{sample.text}\n")
    return output.metrics


def _print_speed(llm: "LLM", metrics: "RequestMetrics") -> None:
    """One line: TTFT, tokens/s, and the bandwidth that it takes against the one measured."""
    parts = [f"{metrics.num_prompt_tokens} prompt tokens", f"{metrics.num_output_tokens} generated"]
    if metrics.ttft_s is not None:
        parts.append(f"TTFT {metrics.ttft_s * 1e3:.0f} ms")
    if metrics.tpot_s:
        from infra_lab.hardware.probes import cached_ceilings

        tokens_per_s = 1 / metrics.tpot_s
        achieved = llm.weight_bytes * tokens_per_s
        ceiling = cached_ceilings(str(llm.resolved.device)).read_bytes_per_s
        parts.append(f"{tokens_per_s:.1f} tokens/s")
        parts.append(
            f"{achieved / 1e9:.1f} GB/s of {ceiling / 1e9:.1f} measured ({achieved / ceiling:.0%}; "
            f"{llm.weight_bytes / 1e6:.0f} MB of weights a token)"
        )
    errors.print("[dim]" + " · ".join(parts) + "[/]", highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
