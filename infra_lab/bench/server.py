"""The server against bare Starlette that streams the same events, driven in turn by the same client.

One request, captured from our server, is what the bare app repeats: the same events, byte for byte. All processes talk over
127.0.0.1; each server is a process of its own, and the client counts and does nothing else.
"""

import asyncio
import json
import tempfile
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from infra_lab.bench.load.host_process import Host, direct_ttft_s, host
from infra_lab.bench.load.hosts import MODEL
from infra_lab.bench.load.lean_client import StreamCount, drive, post, span_s
from infra_lab.bench.measure import interleaved
from infra_lab.bench.report import BenchReport, BenchRow, at_least, at_most
from infra_lab.errors import InfraLabError

PATH = "/v1/completions"
PROMPT = "the quick brown fox jumps"
MIN_EVENTS_RATIO = 0.5
MIN_FAIRNESS = 0.5
MAX_GROWTH = 1.05
MAX_ADDED_MS = 5.0
MIN_HEADROOM = 1.5
CPU_TICK_S = 0.01
"""The system counts CPU time no finer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured."""

    streams: int = 64
    stream_tokens: int = 256
    rounds: int = 2
    """Requests of each stream, one after the other."""
    repeats: int = 5
    many_streams: int = 500
    leak_from: int = 2_000
    leak_to: int = 20_000
    ttft_requests: int = 300


FULL = Sizes()
QUICK = Sizes(repeats=2, rounds=1, leak_to=6_000, ttft_requests=100)


def run(*, quick: bool, say: Callable[[str], None]) -> BenchReport:
    """Measure all rows."""
    versions = {name: version(name) for name in ("uvicorn", "starlette", "fastapi")}
    return BenchReport("server", server_rows(QUICK if quick else FULL, say), versions=versions)


def server_rows(sizes: Sizes, say: Callable[[str], None]) -> list[BenchRow]:
    """Rows for events, many streams, memory and time to first token. Raises InfraLabError if a server fails."""
    with tempfile.TemporaryDirectory() as folder, host("ours") as ours, host("paced") as paced:
        events = Path(folder) / "events.sse"
        events.write_bytes(capture(paced, sizes.stream_tokens))
        path = str(events)
        with host("bare", path) as bare, host("blast", path) as blast, host("raw", path) as raw:
            say(f"{sizes.streams} streams of {sizes.stream_tokens} tokens, in turn from each server")
            rows = _event_rows(sizes, ours=ours, paced=paced, bare=bare, blast=blast, raw=raw)
            say("time to first token, one request at a time")
            rows.append(_ttft_row(sizes, ours=ours, bare=bare))
        say(f"{sizes.many_streams} streams at once")
        rows += _many_streams(sizes, ours)
    say(f"memory over {sizes.leak_to:,} short requests")
    with host("ours") as fresh:  # what a burst has left free would hide a leak
        rows.append(leak_row(sizes, fresh))
    return rows


def request(at: Host, max_tokens: int) -> bytes:
    """The one request of all measurements."""
    return post(at.port, PATH, _body(max_tokens))


def capture(at: Host, max_tokens: int) -> bytes:
    """Return a whole stream as the server sends it, without its framing."""
    content = json.dumps(_body(max_tokens)).encode()
    head = {"content-type": "application/json"}
    sent = urllib.request.Request(f"http://127.0.0.1:{at.port}{PATH}", content, head)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(sent, timeout=60) as response:
        stream: bytes = response.read()
    return stream


def _body(max_tokens: int) -> dict[str, Any]:
    return {
        "model": MODEL,
        "prompt": PROMPT,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def _drive(at: Host, max_tokens: int, num_requests: int, concurrency: int) -> list[StreamCount]:
    return asyncio.run(drive(at.port, request(at, max_tokens), num_requests=num_requests, concurrency=concurrency))


def _all_ok(counts: list[StreamCount]) -> list[StreamCount]:
    num_failed = sum(not count.is_ok for count in counts)
    if num_failed:
        raise InfraLabError(f"{num_failed} of {len(counts)} streams failed; a rate over the others would mean nothing")
    return counts


def _event_rows(sizes: Sizes, *, ours: Host, paced: Host, bare: Host, blast: Host, raw: Host) -> list[BenchRow]:
    bytes_an_event: list[float] = []
    cpu_us: dict[int, list[float]] = {paced.pid: [], bare.pid: []}
    tokens_per_s: list[float] = []
    tokens_an_event: list[float] = []

    def events_per_s(at: Host) -> float:
        before_s = at.cpu_s()
        counts = _all_ok(_drive(at, sizes.stream_tokens, sizes.streams * sizes.rounds, sizes.streams))
        events = sum(count.events for count in counts)
        bytes_an_event.append(sum(count.num_bytes for count in counts) / events)
        if at.pid in cpu_us:
            cpu_us[at.pid].append(max(at.cpu_s() - before_s, CPU_TICK_S) / events * 1e6)
        elif at is ours:
            tokens = sum(count.tokens for count in counts)
            tokens_per_s.append(tokens / span_s(counts))
            tokens_an_event.append(tokens / events)
        return events / span_s(counts)

    hosts = (paced, bare, blast, raw, ours)
    rates = interleaved([lambda at=at: events_per_s(at) for at in hosts], sizes.repeats)  # type: ignore[misc]
    paced_rate, bare_rate, blast_rate, raw_rate, _ = (median(values) for values in rates)
    note = (
        f"{sizes.streams} streams of {sizes.stream_tokens} tokens, an event of {bytes_an_event[0]:.0f} bytes each; our model "
        "has a token when the last one is sent; the engine's scheduling and detokenizing is in ours, none in the bare app's; "
        "hoped for: 0.7"
    )
    in_one_go = (
        "the bare app has all events and never waits, so the kernel joins them: no server of a model can do this"
    )
    merged = f"a model faster than the wire: the server merges {median(tokens_an_event):.0f} tokens into an event"
    ceiling = "a protocol that only writes, so at least this; below the limit, the client would be what is measured"
    return [
        at_least("SSE events/s", paced_rate, "/s", "bare Starlette", bare_rate, MIN_EVENTS_RATIO, note),
        at_least("  against one go", paced_rate, "/s", "Starlette, no turns", blast_rate, None, in_one_go),
        at_most(
            "server CPU an event",
            median(cpu_us[paced.pid][1:]),
            "µs",
            "bare Starlette",
            median(cpu_us[bare.pid][1:]),
            None,
            "user and system time of the process: the ratio that a busy machine distorts least",
        ),
        at_least("tokens/s, merged", median(tokens_per_s[1:]), "/s", "an event a token", paced_rate, None, merged),
        at_least(
            "client's ceiling",
            raw_rate,
            "events/s",
            "faster of the first two",
            max(paced_rate, bare_rate),
            MIN_HEADROOM,
            ceiling,
        ),
    ]


def _ttft_row(sizes: Sizes, *, ours: Host, bare: Host) -> BenchRow:
    direct_ms = median(direct_ttft_s(PROMPT, sizes.ttft_requests)) * 1e3
    ours_ms, bare_ms = (
        median(count.ttft_s for count in _all_ok(_drive(at, 1, sizes.ttft_requests, 1))) * 1e3 for at in (ours, bare)
    )
    note = (
        f"p50 of {sizes.ttft_requests} requests: {ours_ms:.2f} ms over HTTP, {direct_ms:.2f} ms from the engine alone in such "
        f"a process, {bare_ms:.2f} ms from the bare app; the client's time is in it"
    )
    return at_most("TTFT added", ours_ms - direct_ms, "ms", "asked for", MAX_ADDED_MS, 1.0, note)


def _many_streams(sizes: Sizes, ours: Host) -> list[BenchRow]:
    number = sizes.many_streams
    counts = _drive(ours, sizes.stream_tokens, number, number)
    ok = [count for count in counts if count.is_ok]
    rows = [at_least(f"{number} streams at once", len(ok), "complete", "sent", number, 1.0)]
    if ok:
        speeds = [count.tokens_per_s for count in ok]
        rows.append(
            at_least("  slowest of them", min(speeds), "tokens/s", "their median", median(speeds), MIN_FAIRNESS)
        )
    return rows


def leak_row(sizes: Sizes, ours: Host) -> BenchRow:
    """Whether the memory of a server has stopped growing. Raises InfraLabError if a request fails."""

    def after(num_requests: int) -> float:
        _all_ok(_drive(ours, 4, num_requests, 32))
        return ours.rss_bytes() / 1e6

    before_mb = after(sizes.leak_from)
    after_mb = after(sizes.leak_to - sizes.leak_from)
    name = f"RSS after {sizes.leak_to:,}"
    note = f"short requests, 32 at a time; grown by {after_mb - before_mb:+.1f} MB"
    return at_most(name, after_mb, "MB", f"after {sizes.leak_from:,}", before_mb, MAX_GROWTH, note)
