"""Timing that can be trusted on a noisy machine."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from infra_lab.errors import InfraLabError


def interleaved(functions: Sequence[Callable[[], float]], repeats: int) -> list[list[float]]:
    """Run the functions in turn, A B C A B C …, after one warm-up of each; return what each returned, by function.

    A machine that slows down half way then slows them all, and medians of one function compare with medians of another.
    """
    for function in functions:
        function()
    results: list[list[float]] = [[] for _ in functions]
    for _ in range(repeats):
        for function, kept in zip(functions, results, strict=True):
            kept.append(function())
    return results


def medians(functions: Sequence[Callable[[], float]], repeats: int) -> list[float]:
    """The median of each function's results, measured interleaved."""
    return [median(results) for results in interleaved(functions, repeats)]


def peak_memory_bytes() -> int:
    """The most memory that this process has had resident (VmHWM on Linux)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise InfraLabError("this system does not tell the peak memory of a process (no VmHWM in /proc/self/status)")


def in_fresh_process(code: str) -> dict[str, Any]:
    """Run Python code in a new interpreter; it prints one line of JSON last, which is returned."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise InfraLabError(f"a measurement in a fresh process failed:\n{done.stderr.strip()[-2000:]}")
    content: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return content


def time_to_first_output_s(command: Sequence[str]) -> float:
    """Seconds from starting a command to the first byte on its standard output."""
    begin = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        elapsed = time.perf_counter() - begin
        process.stdout.read()
    if process.returncode or not first:
        raise InfraLabError(f"{' '.join(command)} ended with code {process.returncode} and no output")
    return elapsed
