"""The checks of this folder catch what they are for: each bug planted here must be seen by the check that it belongs to."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from infra_lab.engine.outputs import OutputDelta
from infra_lab.models.detokenizer import IncrementalDetokenizer
from infra_lab.server import tool_calls
from infra_lab.server.admission import Admission
from infra_lab.server.generation import Generation
from infra_lab.server.mailbox import Mailbox, Piece
from infra_lab.server.routes import completions
from tests.server import live as live_module
from tests.server import test_fuzz, test_mailbox, test_openai_client, test_tool_calls
from tests.server.live import Live, serving, simulated


@contextmanager
def planted(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, replacement: Any) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setattr(live_module, "WAIT_S", 1.0)
        patch.setattr(owner, name, replacement)
        yield


def is_caught(check: Callable[..., None], *arguments: Any) -> None:
    with pytest.raises((AssertionError, BaseExceptionGroup, KeyError, httpx.HTTPError)):
        check(*arguments)


def with_server(check: Callable[[Live], None]) -> None:
    with serving(simulated()) as live:
        check(live)


def test_a_disconnect_that_nobody_watches_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with planted(monkeypatch, Generation, "watch", lambda self, receive: None):
        is_caught(with_server, test_openai_client.test_leaving_a_stream_early_frees_its_blocks)


def test_a_place_that_is_not_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with planted(monkeypatch, Admission, "leave", lambda self, num_sequences, service_s: None):
        is_caught(with_server, test_openai_client.test_three_samples_in_one_stream)


def test_a_merge_that_forgets_what_it_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def replace(self: Piece, delta: OutputDelta) -> int:
        self.parts = [delta.text]
        self.token_ids = delta.token_ids
        return 0

    with planted(monkeypatch, Piece, "add", replace):
        is_caught(test_mailbox.test_an_ending_goes_out_at_once)


def test_a_mailbox_that_sends_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    with planted(monkeypatch, Mailbox, "_is_old", lambda self, piece, now_s: True):
        is_caught(test_mailbox.test_age_counts_from_the_oldest_token)


def test_text_cut_at_bytes_instead_of_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    def add(self: IncrementalDetokenizer, token_id: int) -> str:
        return bytes([token_id]).decode(errors="replace") if token_id < 256 else ""

    with planted(monkeypatch, IncrementalDetokenizer, "add", add):
        is_caught(test_openai_client.test_no_event_has_half_a_character)


def test_a_tag_that_is_not_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with planted(monkeypatch, tool_calls, "_length_of_beginning", lambda text, tag: 0):
        is_caught(test_tool_calls.test_however_the_text_is_cut_the_result_is_the_same)


def test_a_route_that_crashes(monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(fields: completions.CompletionRequest) -> None:
        raise ZeroDivisionError

    with planted(monkeypatch, completions, "_check_supported", crash):
        is_caught(with_server, test_fuzz.test_every_route_with_what_its_description_allows_and_forbids)
