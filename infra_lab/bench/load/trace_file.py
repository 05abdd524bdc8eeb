"""Arrivals and lengths that somebody recorded: a CSV or JSONL file with arrival_s, prompt_tokens, output_tokens."""

import csv
import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from infra_lab.errors import ConfigError
from infra_lab.simulator.workload import RequestShape


class TraceEntry(NamedTuple):
    """One recorded request."""

    arrival_s: float
    shape: RequestShape


def read_trace(path: Path) -> list[TraceEntry]:
    """Return the requests of a trace in the order of their arrival, the first at 0.

    `.jsonl` holds an object a line, anything else is CSV with a header; other columns are ignored. Raises ConfigError,
    naming the line, for what is not such a file.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the trace {path}: {error}") from error
    rows = _json_lines(path, text) if path.suffix == ".jsonl" else _csv_lines(text)
    entries = sorted(_entry(path, number, row) for number, row in rows)
    if not entries:
        raise ConfigError(
            f"the trace {path} holds no request; expected rows of arrival_s, prompt_tokens, output_tokens"
        )
    first_s = entries[0].arrival_s
    return [TraceEntry(entry.arrival_s - first_s, entry.shape) for entry in entries]


def _csv_lines(text: str) -> Iterable[tuple[int, Mapping[str, Any]]]:
    reader = csv.DictReader(text.splitlines())
    for row in reader:
        yield reader.line_num, row


def _json_lines(path: Path, text: str) -> Iterable[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise ConfigError(f"{path}, line {number}: not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ConfigError(f"{path}, line {number}: a {type(row).__name__}; expected an object")
        yield number, row


def _entry(path: Path, number: int, row: Mapping[str, Any]) -> TraceEntry:
    try:
        arrival_s = float(row["arrival_s"])
        shape = RequestShape(int(row["prompt_tokens"]), int(row["output_tokens"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{path}, line {number}: {type(error).__name__} {error}; expected numbers arrival_s, prompt_tokens, output_tokens"
        ) from error
    if not math.isfinite(arrival_s) or min(shape) < 1:
        raise ConfigError(
            f"{path}, line {number}: {arrival_s=:g}, {shape}; expected a finite time and at least 1 token each"
        )
    return TraceEntry(arrival_s, shape)
