"""`infra-lab lab`: the command, the environment, and what a real server makes of our settings."""

import json
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

import pytest

from infra_lab.bench.lab_server import LabServer, lab_server
from infra_lab.course import jupyter
from infra_lab.course.jupyter import QUIET, lab_command, lab_environment, start_lab
from infra_lab.data import data_path
from infra_lab.errors import ConfigError, MissingExtraError

SETTINGS: dict[str, dict[str, Any]] = json.loads(
    data_path("jupyter/labconfig/default_setting_overrides.json").read_text()
)


@pytest.fixture
def labs(tmp_path: Path) -> Path:
    folder = tmp_path / "labs"
    folder.mkdir()
    (folder / "00_start_here.ipynb").write_text('{"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}')
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabServer]:
    folder = tmp_path_factory.mktemp("server")
    (folder / "labs").mkdir()
    (folder / "labs" / "00_start_here.ipynb").write_text("{}")
    with lab_server(folder / "labs", folder / "home") as running:
        yield running


def get(server: LabServer, path: str) -> tuple[str, str]:
    """Return the address that answered, after redirections, and its text."""
    request = Request(server.url + path, headers={"Authorization": f"token {server.token}"})
    with build_opener(ProxyHandler({})).open(request, timeout=20) as answer:
        return answer.url.removeprefix(server.url), answer.read().decode()


def test_the_command_serves_the_folder_and_opens_the_first_notebook(labs: Path) -> None:
    command = lab_command(labs)
    assert command[:3] == [sys.executable, "-m", "jupyterlab"]
    assert f"--ServerApp.root_dir={labs}" in command
    assert "--LabApp.default_url=/lab/tree/00_start_here.ipynb" in command
    assert {*QUIET} <= {*command}
    assert not any("port" in option or "browser" in option for option in command)
    assert ("--allow-root" in command) == (os.geteuid() == 0)


def test_a_port_that_is_asked_for_is_taken_or_refused(labs: Path) -> None:
    command = lab_command(labs, port=9999, browser=False, extra=["--debug"])
    assert "--ServerApp.port=9999" in command
    assert "--ServerApp.port_retries=0" in command
    assert "--no-browser" in command
    assert command[-1] == "--debug"


def test_a_port_in_use_ends_the_server(labs: Path, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken, (tmp_path / "log").open("w+b") as log:
        port = taken.getsockname()[1]
        process = start_lab(labs, port=port, browser=False, extra=["--ServerApp.ip=127.0.0.1"], log=log)
        assert process.wait(60) != 0
    assert f"port {port} is" in (tmp_path / "log").read_text()


def test_a_folder_without_the_first_notebook_opens_as_a_folder(tmp_path: Path) -> None:
    assert not any("default_url" in option for option in lab_command(tmp_path))


def test_only_root_gets_the_flag_for_root(labs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert "--allow-root" not in lab_command(labs)


def test_mistakes_say_what_to_do(labs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"no folder .*nowhere: expected the folder with the lessons"):
        lab_command(labs / "nowhere")
    monkeypatch.setattr(jupyter, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'infra-lab\[lab\]'"):
        lab_command(labs)


def test_a_users_own_configuration_goes_first() -> None:
    ours = str(data_path("jupyter"))
    assert lab_environment({"A": "b"}) == {"A": "b", "JUPYTER_CONFIG_PATH": ours}
    assert lab_environment({"JUPYTER_CONFIG_PATH": "/mine"})["JUPYTER_CONFIG_PATH"] == f"/mine{os.pathsep}{ours}"
    assert "JUPYTER_CONFIG_PATH" not in os.environ or ours not in os.environ["JUPYTER_CONFIG_PATH"]


@pytest.mark.parametrize("plugin", SETTINGS)
def test_jupyterlab_takes_our_defaults(server: LabServer, plugin: str) -> None:
    answer = json.loads(get(server, f"/lab/api/settings/{plugin}")[1])
    properties = answer["schema"]["properties"]
    assert {name: properties[name]["default"] for name in SETTINGS[plugin]} == SETTINGS[plugin]
    for name, value in SETTINGS[plugin].items():
        allowed = properties[name].get("enum") or [choice["const"] for choice in properties[name].get("oneOf", [])]
        assert not allowed or value in allowed, f"{name}: JupyterLab would ignore {value!r}"
    assert answer["settings"] == {}, "defaults, not the user's own settings"


def test_a_setting_of_the_users_own_beats_ours(labs: Path, tmp_path: Path) -> None:
    plugin = "@jupyterlab/notebook-extension:tracker"
    own = tmp_path / "home/.jupyter/lab/user-settings/@jupyterlab/notebook-extension/tracker.jupyterlab-settings"
    own.parent.mkdir(parents=True)
    own.write_text('{"windowingMode": "none"}')
    with lab_server(labs, tmp_path / "home") as running:
        answer = json.loads(get(running, f"/lab/api/settings/{plugin}")[1])
    assert answer["settings"] == {"windowingMode": "none"}


def test_the_server_opens_the_first_notebook_and_asks_nobody_for_news(server: LabServer) -> None:
    assert get(server, "/")[0] == "/lab/tree/00_start_here.ipynb"
    assert json.loads(get(server, "/lab/api/news")[1]) == {"news": []}
    assert json.loads(get(server, "/lab/api/update")[1]) == {"notification": None}
    page = get(server, "/lab")[1]
    assert '"news": {"disabled": true}' in page
    assert "Extension Manager is 'readonly'" in server.log.read_text()
