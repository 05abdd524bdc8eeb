"""Which browser is taken, and what is said when there is none."""

from pathlib import Path

import pytest

from infra_lab.bench import chromium
from infra_lab.bench.chromium import chromium_path
from infra_lab.bench.lab_page import is_local
from infra_lab.errors import MissingExtraError
from tests.browser.connections import is_loopback


def program(folder: Path, name: str) -> str:
    file = folder / name
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)
    return str(file)


def test_the_named_browser_goes_before_those_on_the_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, theirs = program(tmp_path, "my-browser"), program(tmp_path, "google-chrome")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("INFRA_LAB_CHROMIUM", raising=False)
    assert chromium_path() == theirs
    monkeypatch.setenv("INFRA_LAB_CHROMIUM", mine)
    assert chromium_path() == mine


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("INFRA_LAB_CHROMIUM", "/no/such/browser")
    with pytest.raises(MissingExtraError, match=r"INFRA_LAB_CHROMIUM names '/no/such/browser'"):
        chromium_path()
    monkeypatch.delenv("INFRA_LAB_CHROMIUM")
    with pytest.raises(MissingExtraError, match="apt install chromium"):
        chromium_path()
    monkeypatch.setattr(chromium, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'infra-lab\[test\]'"):
        chromium_path()


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8888/lab", True),
        ("ws://localhost:8888/api", True),
        ("http://[::1]:8888/", True),
        ("blob:http://127.0.0.1:8888/1", True),
        ("data:image/png;base64,AA", True),
        ("https://cdn.jsdelivr.net/npm/plotly.js", False),
        ("http://127.0.0.1.example.org/", False),
        ("http://192.0.2.7/", False),
        ("file:///etc/hosts", False),
    ],
)
def test_which_addresses_stay_on_this_machine(url: str, expected: bool) -> None:
    assert is_local(url) == expected


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.9.1", True),
        ("::1", True),
        ("::ffff:127.0.0.1", True),
        ("localhost", True),
        ("192.0.2.7", False),
        ("::ffff:192.0.2.7", False),
        ("fe80::1%eth0", False),
        ("pypi.example", False),
    ],
)
def test_which_hosts_are_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) == expected
