"""Draw the README's picture from a real run: what the scheduler did in each step, one lane a request.

    python tools/draw_timeline.py [--out docs/timeline.svg]

Eight requests of mixed lengths share a token budget of 96 a step and a KV cache that is too small for all of them.
"""

import argparse
from html import escape
from pathlib import Path

from infra_lab import LLM, SamplingParams
from infra_lab.engine.recorder import StepRecord

CELL, LANE, LEFT, TOP = 11, 22, 118, 62
PREFILL, DECODE, CACHED, PREEMPTED = "#0072B2", "#E69F00", "#56B4E9", "#D55E00"  # Okabe-Ito: safe for colour-blind eyes
SYSTEM = "You are a helpful assistant. Answer in one short sentence, and give an example in Python where it helps. "


def run() -> list[StepRecord]:
    """Serve the requests on the bundled model and return what the flight recorder saw."""
    llm = LLM(
        "tiny", dtype="float32", device="cpu", block_size=16, num_kv_blocks=24, max_num_seqs=6, max_batched_tokens=96
    )
    questions = [
        "What is json?",
        "Why?",
        "List the built-in functions. " * 5,
        "def f(x):",
        "How do I sort?",
        "len",
        "re",
        "os",
    ]
    lengths = [40, 14, 30, 52, 22, 34, 18, 26]
    llm.generate([SYSTEM], SamplingParams(max_tokens=1))
    llm.recorder.clear()
    params = [SamplingParams(max_tokens=n, temperature=0.0, ignore_eos=True) for n in lengths]
    llm.generate([SYSTEM + question for question in questions], params)
    return llm.recorder.steps


def draw(steps: list[StepRecord]) -> str:
    """Return the picture as SVG."""
    lanes = sorted(
        {chunk.request_id for step in steps for chunk in step.chunks}, key=lambda name: int(name.split("-")[1])
    )
    width, height = LEFT + CELL * len(steps) + 20, TOP + LANE * len(lanes) + 128
    shapes: list[str] = []
    for x, step in enumerate(steps):
        for chunk in step.chunks:
            y = TOP + LANE * lanes.index(chunk.request_id)
            is_decode = chunk.num_tokens == 1 and chunk.token_id is not None
            tip = f"step {step.step}: {chunk.num_tokens} token(s) from position {chunk.start}"
            shapes.append(_box(LEFT + CELL * x, y, CELL - 1, LANE - 6, DECODE if is_decode else PREFILL, tip))
        for admission in step.admitted:
            if admission.num_cached_tokens:
                y = TOP + LANE * lanes.index(admission.request_id)
                tip = f"{admission.num_cached_tokens} tokens from the prefix cache"
                shapes.append(_box(LEFT + CELL * x, y + LANE - 10, CELL - 1, 4, CACHED, tip))
        for request_id in step.preempted:
            y = TOP + LANE * lanes.index(request_id)
            shapes.append(
                _box(LEFT + CELL * x, y, CELL - 1, LANE - 6, PREEMPTED, "preempted: blocks freed, tokens kept")
            )
    labels = [_text(LEFT - 10, TOP + LANE * i + 12, f"request {i + 1}", "end") for i in range(len(lanes))]
    base = TOP + LANE * len(lanes) + 84
    for x, step in enumerate(steps):
        used = step.used_blocks / step.total_blocks * 60
        shapes.append(
            _box(LEFT + CELL * x, base - used, CELL - 1, used, "#009E73", f"{step.used_blocks} blocks in use")
        )
    labels.append(_text(LEFT - 10, base - 26, "KV blocks", "end"))
    labels.append(_text(LEFT - 10, base - 10, f"(of {steps[0].total_blocks})", "end"))
    labels.append(
        _text(LEFT, base + 24, f"{len(steps)} steps of the engine, each under one budget of 96 tokens  →", "start")
    )
    legend = [
        ("prefill chunk", PREFILL),
        ("decode", DECODE),
        ("from the prefix cache", CACHED),
        ("preempted", PREEMPTED),
    ]
    x = LEFT
    for name, colour in legend:
        shapes.append(_box(x, 32, 12, 12, colour, name))
        labels.append(_text(x + 18, 42, name, "start"))
        x += 34 + 7 * len(name)
    title = "One scheduler, eight requests: recorded from the real engine"
    labels.append(f'<text x="{LEFT}" y="20" font-size="15" font-weight="600">{title}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif" '
        f'font-size="12" fill="#222"><rect width="{width}" height="{height}" rx="8" fill="#fff"/>'
        + "".join(shapes + labels)
        + "</svg>\n"
    )


def _box(x: float, y: float, width: float, height: float, colour: str, tip: str) -> str:
    place = f'x="{x:.0f}" y="{y:.1f}" width="{width:.0f}" height="{height:.1f}"'
    return f'<rect {place} rx="1.5" fill="{colour}"><title>{escape(tip)}</title></rect>'


def _text(x: float, y: float, text: str, anchor: str) -> str:
    return f'<text x="{x:.0f}" y="{y:.0f}" text-anchor="{anchor}">{escape(text)}</text>'


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "docs" / "timeline.svg")
    arguments.parse_args().out.write_text(draw(run()))
