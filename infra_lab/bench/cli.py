"""`infra-lab bench`: a command for each suite, and `serve`, which puts load on a server."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from infra_lab.bench import SUITES, run_suite, unknown_suite
from infra_lab.bench.serve import bench_serve
from infra_lab.console import errors, readable_errors


class _Suites(TyperGroup):
    """Says which suites there are when asked for another one."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            with readable_errors():
                raise unknown_suite(args[0])
        return super().resolve_command(ctx, args)


bench_app = typer.Typer(
    cls=_Suites,
    no_args_is_help=True,
    help="Measure a part of the lab against a peer or a physical limit, in the same run.",
)


_Json = Annotated[Path | None, typer.Option("--json", help="Write the same figures to this file.")]
_Quick = Annotated[bool, typer.Option(help="Fewer repetitions: a look, not a measurement.")]
_Tune = Annotated[
    bool,
    typer.Option(
        "--tune",
        help="First measure all configs of each kernel and keep the fastest for later launches: some ten minutes.",
    ),
]


def _run(name: str, json_file: Path | None, quick: bool, **options: bool) -> None:
    with readable_errors():
        report = run_suite(
            name, quick=quick, say=lambda line: errors.print(f"[dim]{line}[/]", highlight=False), **options
        )
        Console().print(report.table())
        if json_file is not None:
            report.write_json(json_file)


def _suite(name: str) -> Callable[[Path | None, bool], None]:
    def command(json_file: _Json = None, quick: _Quick = False) -> None:
        _run(name, json_file, quick)

    return command


def _kernels(json_file: _Json = None, quick: _Quick = False, tune: _Tune = False) -> None:
    _run("kernels", json_file, quick, tune=tune)


for _name, _about in SUITES.items():
    bench_app.command(_name, help=_about.help)(_kernels if _name == "kernels" else _suite(_name))
bench_app.command("serve")(bench_serve)
