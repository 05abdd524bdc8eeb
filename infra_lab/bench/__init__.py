"""`infra-lab bench SUITE`: every speed as a ratio to a peer or to a physical limit, measured in the same run."""

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from infra_lab.errors import ConfigError, MissingExtraError

if TYPE_CHECKING:
    from infra_lab.bench.report import BenchReport


class Suite(NamedTuple):
    """What `infra-lab bench` knows of a suite before it runs."""

    module: str
    help: str


SUITES = {
    "engine": Suite("infra_lab.bench.engine", "The engine on a real model, beside transformers."),
    "fusion": Suite("infra_lab.bench.fusion", "A decoder layer fused by torch.compile, by ONNX Runtime and by hand."),
    "kernels": Suite(
        "infra_lab.bench.kernels", "Every Triton kernel beside torch and this GPU's ceilings; needs a GPU."
    ),
    "kv": Suite("infra_lab.bench.kv", "Paged KV memory beside contiguous reservations."),
    "quantization": Suite(
        "infra_lab.bench.quantization", "Fewer bits by every method: perplexity, KL, memory, tokens/s."
    ),
    "scheduler": Suite(
        "infra_lab.bench.scheduler", "A step of the scheduler, the prefix cache, and batching policies side by side."
    ),
    "server": Suite("infra_lab.bench.server", "The SSE server beside a bare one; streams, leaks, added latency."),
    "simulator": Suite(
        "infra_lab.bench.simulator", "The simulator's speed, its two levels, and how close it comes to the engine."
    ),
    "widgets": Suite("infra_lab.bench.widgets", "From a slider to the repaint, in a real browser."),
}


def run_suite(
    name: str, *, quick: bool = False, say: Callable[[str], None] = lambda line: None, **options: bool
) -> "BenchReport":
    """Run a suite; `say` is told what is being measured. options: what only this suite has, as `tune` of kernels.

    Raises ConfigError for an unknown suite, listing the known ones, and MissingExtraError if its peers are not installed.
    """
    if name not in SUITES:
        raise unknown_suite(name)
    try:
        module = import_module(SUITES[name].module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"suite {name!r} needs {error.name}, which is not installed: pip install 'infra-lab[bench]'"
        ) from error
    report: BenchReport = module.run(quick=quick, say=say, **options)
    return report


def unknown_suite(name: str) -> ConfigError:
    """The error for a name that is no suite."""
    return ConfigError(f"unknown suite {name!r}; known: {', '.join(SUITES)}")
