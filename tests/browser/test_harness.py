"""The harness finds what it is for: a sound notebook passes, and each mutant is reported for what it does."""

import socket
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

import psutil
import pytest

from infra_lab.bench.lab_page import open_notebook
from infra_lab.bench.lab_panel import find_panels
from infra_lab.bench.slider_latency import measure_changes
from infra_lab.errors import InfraLabError
from tests.browser.conftest import AuditedLab
from tests.browser.connections import watch
from tests.browser.lesson_check import SIZES, complaints_about
from tests.browser.sample_lab import CONNECT, CONNECT_FROM_SHELL, LOOK_UP, write_notebook

if TYPE_CHECKING:
    from pathlib import Path

    from playwright.sync_api import Browser


def test_a_sound_notebook_has_no_complaints(browser: "Browser", sample_lab: AuditedLab, pictures: "Path") -> None:
    with (
        watch(sample_lab.server.processes, sample_lab.log) as connections,
        open_notebook(browser, sample_lab.server, "sound.ipynb") as page,
    ):
        assert complaints_about(page, pictures=pictures) == []
        assert [cell.execution_count for cell in page.cells()] == [1, 2, 3]
    assert connections.foreign() == []
    assert connections.num_samples > 10
    assert connections.sampled == {"127.0.0.1"}, "the browser and the kernel's channels connect over loopback"
    assert any(line.startswith("start") for line in connections.audited), "the kernel has the hook"
    taken = {picture.name: picture.stat().st_size for picture in pictures.glob("sound-*.png")}
    assert len(taken) == len(SIZES)
    assert len({*taken.values()}) == len(SIZES), "light and dark, narrow and wide are different pictures"


def test_a_drop_down_list_is_worked_by_keyboard_too(browser: "Browser", sample_lab: AuditedLab) -> None:
    with open_notebook(browser, sample_lab.server, "dropdown.ipynb") as page:
        assert complaints_about(page) == []


@pytest.mark.parametrize(
    ("mutant", "complaint"),
    [
        ("failing_cell", "code cell 2: ZeroDivisionError: division by zero\ncode cell 3 did not run"),
        ("frozen_figure", "no control of 'panel 1' changes its figure"),
        ("failing_callback", "a widget failed in the kernel: ZeroDivisionError: division by zero"),
        ("frozen_tuner", "no control of 'Frozen' changes its figure"),
        ("no_panel", "no panel with a figure and a control"),
        ("figure_alone", "no panel with a figure and a control"),
        ("console_error", "console error: planted"),
        ("page_error", "uncaught error in the page: planted"),
        ("request_to_elsewhere", "a request left the machine: http://198.51.100.1/x"),
    ],
)
def test_a_mutant_is_reported(browser: "Browser", sample_lab: AuditedLab, mutant: str, complaint: str) -> None:
    with open_notebook(browser, sample_lab.server, f"{mutant}.ipynb") as page:
        assert complaint in "\n".join(complaints_about(page))


@pytest.fixture
def neighbour() -> Iterator[tuple[str, int]]:
    """A listener on an address of this machine that is not loopback; greets who connects and holds on for a moment."""
    addresses = [
        entry.address
        for entries in psutil.net_if_addrs().values()
        for entry in entries
        if entry.family == socket.AF_INET
    ]
    outward = next((address for address in addresses if not address.startswith("127.")), None)
    if outward is None:
        pytest.skip("this machine has no address but loopback")
    with socket.create_server((outward, 0)) as listener:

        def greet() -> None:
            connection, _ = listener.accept()
            with connection:
                threading.Event().wait(1.0)
                connection.sendall(b".")

        threading.Thread(target=greet, daemon=True).start()
        yield outward, listener.getsockname()[1]


@pytest.mark.parametrize(
    ("code", "is_audited"), [(CONNECT, True), (CONNECT_FROM_SHELL, False)], ids=["python", "another program"]
)
def test_a_kernel_that_connects_elsewhere_is_caught(
    browser: "Browser", sample_lab: AuditedLab, neighbour: tuple[str, int], code: str, is_audited: bool
) -> None:
    write_notebook(sample_lab.server.labs / "connects.ipynb", code.format(*neighbour))
    with (
        watch(sample_lab.server.processes, sample_lab.log) as connections,
        open_notebook(browser, sample_lab.server, "connects.ipynb") as page,
    ):
        assert complaints_about(page, has_panel=False) == []
    complaints = connections.foreign()
    assert f"connection to {neighbour[0]}" in complaints
    assert any(line.startswith(f"socket.connect\t{neighbour[0]}") for line in complaints) == is_audited


def test_a_kernel_that_only_looks_up_a_name_is_caught(browser: "Browser", sample_lab: AuditedLab) -> None:
    write_notebook(sample_lab.server.labs / "looks_up.ipynb", LOOK_UP)
    with (
        watch(sample_lab.server.processes, sample_lab.log) as connections,
        open_notebook(browser, sample_lab.server, "looks_up.ipynb") as page,
    ):
        assert complaints_about(page, has_panel=False) == []
    assert any(line.startswith("socket.getaddrinfo\tpypi.example") for line in connections.foreign())


def test_each_change_of_a_slider_is_timed(browser: "Browser", sample_lab: AuditedLab) -> None:
    with open_notebook(browser, sample_lab.server, "sound.ipynb") as page:
        page.run_all()
        (panel,) = find_panels(page)
        changes = measure_changes(panel, 12)  # more than the slider has values: it turns at its ends
        assert page.problems == []
    assert len(changes) == 12
    assert all(0 < change.first_ms <= change.settled_ms and change.kernel_ms > 0 for change in changes)


def test_a_change_is_one_message_to_the_kernel(browser: "Browser", sample_lab: AuditedLab) -> None:
    """plotly answered each change with two reports of its own, which kept the kernel busy and raised there."""
    with open_notebook(browser, sample_lab.server, "live_tuner.ipynb") as page:
        page.run_all()
        (panel,) = find_panels(page)
        assert len(measure_changes(panel, 1)) == 1
        page.page.evaluate(
            """() => {
                window.sent = [];
                window.labPanel.sessionContext.session.kernel.anyMessage.connect((_, { msg, direction }) => {
                    if (direction === "send" && msg.header.msg_type === "comm_msg") window.sent.push(msg.content.data);
                });
            }"""
        )
        for key in ("ArrowLeft", "ArrowRight", "ArrowRight"):
            page.page.keyboard.press(key)
            page.page.wait_for_timeout(500)
        sent = page.page.evaluate("() => window.sent")
        assert page.problems == []
    assert [list(data["state"]) for data in sent] == [["value"]] * 3


def test_a_figure_that_does_not_follow_is_not_timed(
    browser: "Browser", sample_lab: AuditedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra_lab.bench.slider_latency.PATIENCE_MS", 800)
    with open_notebook(browser, sample_lab.server, "frozen_figure.ipynb") as page:
        page.run_all()
        (panel,) = find_panels(page)
        assert measure_changes(panel, 3) == []


def test_a_figure_that_stops_to_follow_is_an_error(
    browser: "Browser", sample_lab: AuditedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra_lab.bench.slider_latency.PATIENCE_MS", 800)
    with open_notebook(browser, sample_lab.server, "figure_that_stops.ipynb") as page:
        page.run_all()
        (panel,) = find_panels(page)
        with pytest.raises(InfraLabError, match=r"moves of the first slider left the figures as they were"):
            measure_changes(panel, 3)


def test_a_notebook_that_is_not_there_is_an_error(
    browser: "Browser", sample_lab: AuditedLab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra_lab.bench.lab_page.OPEN_TIMEOUT_S", 5.0)
    with (
        pytest.raises(InfraLabError, match=r"not_there\.ipynb: [\s\S]*\nIs the notebook there"),
        open_notebook(browser, sample_lab.server, "not_there.ipynb"),
    ):
        pass
