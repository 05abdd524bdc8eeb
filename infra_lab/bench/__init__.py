"""`infra-lab bench SUITE`: every speed as a ratio to a peer or to a physical limit, measured in the same run."""

from collections.abc import Callable
from importlib import import_module

from infra_lab.bench.report import BenchReport
from infra_lab.errors import ConfigError, MissingExtraError

SUITES = {
    "engine": "infra_lab.bench.engine",
    "kv": "infra_lab.bench.kv",
    "scheduler": "infra_lab.bench.scheduler",
    "widgets": "infra_lab.bench.widgets",
}


def run_suite(name: str, *, quick: bool = False, say: Callable[[str], None] = lambda line: None) -> BenchReport:
    """Run a suite; `say` is told what is being measured.

    Raises ConfigError for an unknown suite, listing the known ones, and MissingExtraError if its peers are not installed.
    """
    if name not in SUITES:
        raise ConfigError(f"unknown suite {name!r}; known: {', '.join(SUITES)}")
    try:
        module = import_module(SUITES[name])
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"suite {name!r} needs {error.name}, which is not installed: pip install 'infra-lab[bench]'"
        ) from error
    report: BenchReport = module.run(quick=quick, say=say)
    return report
