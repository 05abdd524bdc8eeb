"""What a device waits for: the engine's own work between two steps, and how much of it overlap hides."""

from dataclasses import dataclass

from infra_lab.widgets.figures.overlap_timeline import overlap_timeline
from infra_lab.widgets.knobs import knob
from infra_lab.widgets.live_tuner import LiveTuner
from infra_lab.widgets.overlap_run import HAND_OUT, NOTE, PLAN, OverlapRun, run_steps

PLAIN, OVERLAPPED = "one after the other", "overlap"


@dataclass(frozen=True)
class Overlapping:
    """What is set before a run."""

    requests: int = knob(64, choices=(1, 4, 16, 64, 256), label="Requests", help="Each gets one token a step")
    device_ms: float = knob(
        2.0, choices=(0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0), label="The device takes", unit="ms", help="For a step"
    )


def run_both(knobs: Overlapping) -> dict[str, OverlapRun]:
    """Measure the host beside the simulated device, both ways."""
    return {
        way: run_steps(knobs.requests, knobs.device_ms / 1e3, overlap=way == OVERLAPPED) for way in (PLAIN, OVERLAPPED)
    }


def in_words(runs: dict[str, OverlapRun]) -> str:
    """Say what the figure shows."""
    plain, overlapped = runs[PLAIN], runs[OVERLAPPED]
    parts = ", ".join(f"{what} {1e3 * overlapped.host_s(what):.2f} ms" for what in (PLAN, NOTE, HAND_OUT))
    return (
        f"One after the other, the device computes {plain.busy_share:.0%} of the time; with overlap "
        f"{overlapped.busy_share:.0%}, and a step takes {1e3 * overlapped.step_s:.2f} ms instead of "
        f"{1e3 * plain.step_s:.2f}. The host, a step: {parts}."
    )


def overlap_panel(*, title: str = "What does the GPU wait for?") -> LiveTuner[Overlapping, dict[str, OverlapRun]]:
    """Return the panel."""
    return LiveTuner(Overlapping, run_both, overlap_timeline, summarize=in_words, title=title)
