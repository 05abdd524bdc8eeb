"""One config of a kernel, compiled: what the explorer draws and says of it."""

from typing import Any, NamedTuple

from infra_lab.widgets.figures.kernel_resources import kernel_resources
from infra_lab.widgets.figures.kernel_roofline import kernel_roofline
from infra_lab.widgets.figures.stack import stack
from kernels.chips import Chip
from kernels.compile import Compiled
from kernels.predict import BOUND_WORDS, Prediction
from kernels.work import Work


class Look(NamedTuple):
    """What was compiled, and what is to be expected of it."""

    compiled: Compiled
    work: Work
    chip: Chip
    prediction: Prediction


def draw(look: Look) -> Any:
    """Return the bars of what it takes of a multiprocessor, and below them the roofline."""
    return stack(kernel_resources(look.compiled), kernel_roofline(look.work, look.prediction, look.chip))


def in_words(look: Look) -> str:
    """Say how fast it should be, what limits it, and which of the GPU's special instructions it uses."""
    made = look.compiled
    blocks = made.blocks_per_multiprocessor
    held = f"{blocks} at once on a multiprocessor ({made.occupancy:.0%} of its warps)" if blocks else "it does not fit"
    spilled = f"{made.spill_bytes} bytes spilled" if made.spill_bytes else "nothing spilled"
    products = ", ".join(sorted(made.tensor_core_instructions)) or "none"
    copies = ", ".join(sorted(made.copy_instructions)) or "none"
    return (
        f"{expected(look)} {made.registers} registers a thread, {spilled}, {made.shared_bytes / 1024:.1f} KiB of shared "
        f"memory: {held}. Matrix instructions: {products}. Asynchronous copies: {copies}."
    )


def expected(look: Look) -> str:
    """Say the predicted time of the spec's shape, how much of the roofline that is, and what binds it; or why nothing."""
    on = f"{look.work.shape} on {look.chip.name}"
    seconds, share, bound = look.prediction.seconds, look.prediction.share, look.prediction.bound
    if seconds is None or share is None or bound is None:
        return f"{on}: no prediction. {look.prediction.why}"
    return f"{on}: predicted {_time(seconds)}, {share:.0%} of the roofline; {BOUND_WORDS[bound]}."


def _time(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-4 else f"{seconds * 1e6:.3g} µs"
