"""Server-sent events: however the bytes are cut, the events are the same, and they are those of the standard."""

import json
from itertools import pairwise

import httpx
import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from infra_lab.bench.load import sse
from infra_lab.bench.load.sse import SSEError, SSEEvent, SSEParser

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n"), max_size=12)


@st.composite
def streams(draw: st.DrawFn) -> tuple[bytes, list[str]]:
    """The bytes of a stream, and the data of its events, made side by side: no parser is asked."""
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))  # one for all: CR and LF from two lines would be one end
    raw, expected = draw(st.sampled_from(["", "\ufeff"])), []
    for lines in draw(st.lists(st.lists(texts, max_size=3), max_size=5)):
        raw += draw(st.sampled_from(["", f": ping{end}", f":{end}", f"retry: 5{end}", f"unknown{end}"]))
        for line in lines:
            space = " " if line.startswith(" ") else draw(st.sampled_from(["", " "]))
            raw += f"data:{space}{line}{end}"
        raw += end
        if lines:
            expected.append("\n".join(lines))
    return raw.encode(), expected


def cut(raw: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(min(edge, len(raw)) for edge in cuts), len(raw)]
    return [raw[start:end] for start, end in pairwise(edges)]


def parse(chunks: list[bytes]) -> list[str]:
    parser = SSEParser()
    return [event.data for chunk in chunks for event in parser.feed(chunk)]


@settings(max_examples=300)
@given(stream=streams(), cuts=st.lists(st.integers(0, 200), max_size=12))
def test_any_chunking_gives_the_events_that_were_written(stream: tuple[bytes, list[str]], cuts: list[int]) -> None:
    raw, expected = stream
    assert parse([raw]) == expected
    assert parse(cut(raw, cuts)) == expected
    assert parse([raw[i : i + 1] for i in range(len(raw))]) == expected


def test_the_property_catches_a_parser_that_trusts_the_chunks() -> None:
    def naive(chunks: list[bytes]) -> list[str]:
        blocks = [block for chunk in chunks for block in chunk.decode(errors="replace").split("\n\n")]
        return [block[6:] for block in blocks if block.startswith("data: ")]

    raw = b'data: {"a": 1}\n\ndata: 2\n\n'
    assert naive([raw]) == parse([raw])
    find(st.lists(st.integers(0, 30), max_size=3), lambda cuts: naive(cut(raw, cuts)) != parse(cut(raw, cuts)))


@pytest.mark.parametrize(
    ("raw", "events"),
    [
        (b"data: YHOO\ndata: +2\ndata: 10\n\n", [SSEEvent("YHOO\n+2\n10")]),
        (b": test stream\n\ndata: first\nid: 1\n\ndata:second\nid\n\ndata:  third\n\n",
         [SSEEvent("first", id="1"), SSEEvent("second", id=""), SSEEvent(" third")]),
        (b"data\n\ndata\ndata\n\ndata:", [SSEEvent(""), SSEEvent("\n")]),
        (b"data:test\n\ndata: test\n\n", [SSEEvent("test"), SSEEvent("test")]),
        (b"event: add\ndata: 1\n\ndata: 2\n\n", [SSEEvent("1", "add"), SSEEvent("2")]),
        (b"event: add\n\ndata: 2\n\n", [SSEEvent("2")]),
        (b"data: never ended\n", []),
    ],
)  # fmt: skip
def test_the_examples_of_the_standard(raw: bytes, events: list[SSEEvent]) -> None:
    assert SSEParser().feed(raw) == events


def test_a_line_without_end_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_LINE_BYTES", 1000)
    parser = SSEParser()
    for _ in range(100):
        assert parser.feed(b"x" * 10) == []
    with pytest.raises(SSEError, match="longer than 1000 bytes"):
        parser.feed(b"x")


def test_characters_cut_in_two_stay_whole() -> None:
    raw = "data: " + json.dumps({"text": "naïve 👩‍🚀"}, ensure_ascii=False) + "\n\n"
    assert json.loads(parse([bytes([byte]) for byte in raw.encode()])[0])["text"] == "naïve 👩‍🚀"
    assert parse([raw.encode()]) == [
        line.removeprefix("data: ") for line in httpx.Response(200, text=raw).iter_lines() if line
    ]
