"""The buffer between the engine and one client: it loses nothing, keeps the order, and knows when to send."""

from hypothesis import given
from hypothesis import strategies as st

from infra_lab.engine.outputs import OutputDelta, RequestMetrics
from infra_lab.scheduler.plan import TokenLogprobs
from infra_lab.server.mailbox import Chunking, Mailbox, Piece

METRICS = RequestMetrics(0.0)


def delta(text: str = "x", reason: str | None = None, logprobs: int = 0) -> OutputDelta:
    entries = [TokenLogprobs(1, -1.0, 1, [(1, -1.0)])] * logprobs
    return OutputDelta("r", 0, text, [1], entries, reason, None, None, METRICS)


puts = st.tuples(st.integers(0, 2), st.text(max_size=3), st.floats(0, 0.1), st.booleans())


@given(st.lists(puts, max_size=40), st.none() | st.integers(1, 5), st.none() | st.floats(0.001, 0.2))
def test_nothing_is_lost_doubled_or_late(
    steps: list[tuple[int, str, float, bool]], tokens: int | None, age: float | None
) -> None:
    mailbox, now_s = Mailbox(Chunking(tokens, age)), 0.0
    expected, received = {0: "", 1: "", 2: ""}, {0: "", 1: "", 2: ""}
    waiting: dict[int, tuple[int, float]] = {}
    for index, text, pause_s, looks in steps:
        now_s += pause_s
        mailbox.put(index, delta(text), now_s)
        expected[index] += text
        count, since_s = waiting.get(index, (0, now_s))
        waiting[index] = count + 1, since_s
        if not looks:
            continue
        pieces = mailbox.take(now_s)
        due = {
            i
            for i, (count, since_s) in waiting.items()
            if (tokens is not None and count >= tokens) or (age is not None and now_s >= since_s + age)
        }
        assert {piece.index for piece in pieces} == due
        for piece in pieces:
            received[piece.index] += piece.text
            assert len(piece.token_ids) == waiting.pop(piece.index)[0]
    for piece in mailbox.take(now_s, everything=True):
        received[piece.index] += piece.text
    assert received == expected
    assert mailbox.num_bytes == 0
    assert not mailbox.has_ready(now_s + 1e9)


def test_an_ending_goes_out_at_once() -> None:
    mailbox = Mailbox(Chunking(tokens=100))
    assert not mailbox.put(0, delta(), 0.0)
    assert mailbox.put(0, delta("y", "stop"), 0.0)
    [piece] = mailbox.take(0.0)
    assert (piece.text, piece.finish_reason, piece.token_ids) == ("xy", "stop", [1, 1])


def test_age_counts_from_the_oldest_token() -> None:
    mailbox = Mailbox(Chunking(tokens=None, max_age_s=1.0))
    assert mailbox.put(0, delta(), 10.0), "who waits must learn when to look"
    assert not mailbox.put(0, delta(), 10.9)
    assert mailbox.due_s() == 11.0
    assert mailbox.take(10.9) == []
    assert [piece.text for piece in mailbox.take(11.0)] == ["xx"]
    assert mailbox.due_s() is None


def test_size_counts_text_tokens_and_logprobs() -> None:
    piece = Piece(0)
    assert piece.add(delta("x" * 50)) > 50
    assert piece.add(delta("", logprobs=1)) > piece.add(delta("")) + 100
