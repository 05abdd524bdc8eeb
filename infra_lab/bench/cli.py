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


def _suite(name: str) -> Callable[[Path | None, bool], None]:
    def command(
        json_file: Annotated[Path | None, typer.Option("--json", help="Write the same figures to this file.")] = None,
        quick: Annotated[bool, typer.Option(help="Fewer repetitions: a look, not a measurement.")] = False,
    ) -> None:
        with readable_errors():
            report = run_suite(name, quick=quick, say=lambda line: errors.print(f"[dim]{line}[/]", highlight=False))
            Console().print(report.table())
            if json_file is not None:
                report.write_json(json_file)

    return command


for _name, _about in SUITES.items():
    bench_app.command(_name, help=_about.help)(_suite(_name))
bench_app.command("serve")(bench_serve)
