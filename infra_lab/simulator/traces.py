"""Traces that others have recorded and published, as `TracedRequest`s.

    Azure LLM inference trace (Splitwise, Patel 2024)      CSV: TIMESTAMP, ContextTokens, GeneratedTokens
    Mooncake (Qin 2024)                                    JSONL: timestamp in ms, input_length, output_length, hash_ids

A row that cannot be is refused with file, line and field. Times count from the first request; one that is earlier than the
row before it is refused too, unless `sort` is set: both publishers write them in order, so it is a sign of a damaged file.
"""

import csv
import json
import math
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from infra_lab.errors import ConfigError
from infra_lab.simulator.traced_request import Span, TracedRequest

MOONCAKE_BLOCK_TOKENS = 512
AZURE_FIELDS = ("TIMESTAMP", "ContextTokens", "GeneratedTokens")


class _Row(NamedTuple):
    """Where a value stands, for messages."""

    path: Path
    line: int

    def error(self, field: str, problem: str) -> ConfigError:
        return ConfigError(f"{self.path}, line {self.line}, {field}: {problem}")


class _Entry(NamedTuple):
    time_s: float
    spans: tuple[Span, ...]
    output_tokens: int


def read_azure_trace(path: Path, *, limit: int | None = None, sort: bool = False) -> list[TracedRequest]:
    """Read an Azure LLM inference trace (2023); prompts share nothing, for the trace does not say what they do.

    Rows with 0 generated tokens, of which the published files have some, get 1: the model did run.
    Raises ConfigError for what is not such a file.
    """
    reader = csv.reader(_read(path).splitlines())
    header = next(reader, [])
    missing = [name for name in AZURE_FIELDS if name not in header]
    if missing:
        raise _Row(path, 1).error(missing[0], f"no such column; the header is {header}")
    columns = [header.index(name) for name in AZURE_FIELDS]
    entries: list[_Entry] = []
    for cells in reader:
        row = _Row(path, reader.line_num)
        if not cells:
            continue
        if len(cells) != len(header):
            raise row.error(AZURE_FIELDS[0], f"{len(cells)} cells; the header has {len(header)}")
        stamp, context, generated = (cells[column] for column in columns)
        time_s = _timestamp_s(row, stamp)
        _check_order(row, AZURE_FIELDS[0], time_s, entries, sort)
        prompt = _whole(row, "ContextTokens", context, 1)
        output = max(1, _whole(row, "GeneratedTokens", generated, 0))
        entries.append(_Entry(time_s, (Span(len(entries), prompt),), output))
        if len(entries) == limit:
            break
    return _requests(path, entries)


def read_mooncake_trace(path: Path, *, limit: int | None = None, sort: bool = False) -> list[TracedRequest]:
    """Read a Mooncake trace: equal hash ids are equal blocks of 512 tokens, the last one of a prompt perhaps not full.

    Raises ConfigError for what is not such a file, also for a number of hash ids that does not match the length.
    """
    entries: list[_Entry] = []
    for row, fields in _json_lines(path):
        time_s = _number(row, "timestamp", fields) / 1000
        _check_order(row, "timestamp", time_s, entries, sort)
        prompt = _whole(row, "input_length", fields.get("input_length"), 1)
        output = max(1, _whole(row, "output_length", fields.get("output_length"), 0))
        entries.append(_Entry(time_s, _blocks(row, fields.get("hash_ids"), prompt), output))
        if len(entries) == limit:
            break
    return _requests(path, entries)


def _blocks(row: _Row, hash_ids: object, prompt_tokens: int) -> tuple[Span, ...]:
    if not isinstance(hash_ids, list):
        raise row.error("hash_ids", f"{hash_ids!r}; expected a list of whole numbers")
    num_blocks = -(-prompt_tokens // MOONCAKE_BLOCK_TOKENS)
    if len(hash_ids) != num_blocks:
        raise row.error(
            "hash_ids",
            f"{len(hash_ids)} blocks; {prompt_tokens} tokens are {num_blocks} of {MOONCAKE_BLOCK_TOKENS}",
        )
    numbers = [_whole(row, "hash_ids", number, 0) for number in hash_ids]
    last = prompt_tokens - MOONCAKE_BLOCK_TOKENS * (num_blocks - 1)
    return (*(Span(number, MOONCAKE_BLOCK_TOKENS) for number in numbers[:-1]), Span(numbers[-1], last))


def _json_lines(path: Path) -> Iterator[tuple[_Row, dict[str, Any]]]:
    for number, line in enumerate(_read(path).splitlines(), 1):
        if not line.strip():
            continue
        row = _Row(path, number)
        try:
            fields = json.loads(line)
        except ValueError as error:
            raise row.error("row", f"not JSON ({error})") from error
        if not isinstance(fields, dict):
            raise row.error("row", f"a {type(fields).__name__}; expected an object")
        yield row, fields


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the trace {path}: {error}") from error


def _timestamp_s(row: _Row, text: str) -> float:
    try:
        stamp = datetime.fromisoformat(text.strip())
    except ValueError as error:
        raise row.error("TIMESTAMP", f"{text!r}; expected a date and time as 2023-11-16 18:15:46.6805900") from error
    return (stamp.replace(tzinfo=None) - datetime(1970, 1, 1)).total_seconds()


def _number(row: _Row, field: str, fields: dict[str, Any]) -> float:
    value = fields.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise row.error(field, f"{value!r}; expected a finite number")
    if value < 0:
        raise row.error(field, f"{value}; it must not be negative")
    return float(value)


def _whole(row: _Row, field: str, value: object, low: int) -> int:
    try:
        number = int(value) if isinstance(value, str) else value
    except ValueError:
        number = None
    if not isinstance(number, int) or isinstance(number, bool):
        raise row.error(field, f"{value!r}; expected a whole number")
    if number < low:
        raise row.error(field, f"{number}; it must be at least {low}")
    return number


def _check_order(row: _Row, field: str, time_s: float, entries: list[_Entry], sort: bool) -> None:
    if entries and time_s < entries[-1].time_s and not sort:
        earlier_s = entries[-1].time_s - time_s
        raise row.error(field, f"{earlier_s:g} s before the row above; put the rows in order, or read with sort")


def _requests(path: Path, entries: list[_Entry]) -> list[TracedRequest]:
    if not entries:
        raise ConfigError(f"the trace {path} holds no request")
    entries.sort(key=lambda entry: entry.time_s)
    first_s = entries[0].time_s
    return [
        TracedRequest(arrival_s=time_s - first_s, spans=spans, output_tokens=output_tokens)
        for time_s, spans, output_tokens in entries
    ]
