"""A real JupyterLab for benches and browser tests: its own home, port and token, gone with its kernels at the end."""

import os
import secrets
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.parse import quote
from urllib.request import ProxyHandler, Request, build_opener

import psutil

from infra_lab.course.jupyter import start_lab
from infra_lab.errors import InfraLabError

START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class LabServer:
    """A running JupyterLab."""

    url: str
    """`http://127.0.0.1:PORT`"""
    token: str
    pid: int
    labs: Path
    log: Path

    def notebook_url(self, path: str, workspace: str) -> str:
        """Address of a notebook, relative to `labs`, in a workspace of its own: nothing opened earlier comes back."""
        return f"{self.url}/lab/workspaces/{workspace}/tree/{quote(path)}?token={self.token}"

    def processes(self) -> list[psutil.Process]:
        """The server and all processes below it: kernels, and what lessons start."""
        try:
            server = psutil.Process(self.pid)
            return [server, *server.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def log_tail(self, lines: int = 20) -> str:
        """The end of what the server printed."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])


def isolated_environment(home: Path, base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Copy the environment without proxies, and with every folder that Jupyter, IPython or the lab writes to below `home`."""
    kept = {name: value for name, value in base.items() if not name.lower().endswith("_proxy")}
    folders = {
        "HOME": "",
        "XDG_CACHE_HOME": ".cache",
        "XDG_CONFIG_HOME": ".config",
        "XDG_DATA_HOME": ".local/share",
        "XDG_STATE_HOME": ".local/state",
        "IPYTHONDIR": ".ipython",
        "JUPYTER_CONFIG_DIR": ".jupyter",
        "JUPYTER_DATA_DIR": ".local/share/jupyter",
        "JUPYTER_RUNTIME_DIR": ".local/share/jupyter/runtime",
        "JUPYTERLAB_SETTINGS_DIR": ".jupyter/lab/user-settings",
        "JUPYTERLAB_WORKSPACES_DIR": ".jupyter/lab/workspaces",
        "MPLCONFIGDIR": ".config/matplotlib",
    }
    progress = str(home / "progress.json")
    return {**kept, **{name: str(home / folder) for name, folder in folders.items()}, "INFRA_LAB_PROGRESS": progress}


@contextmanager
def lab_server(labs: Path, home: Path, *, environment: Mapping[str, str] | None = None) -> Iterator[LabServer]:
    """Serve `labs` on a free port until the block ends; then stop the server and everything below it.

    `environment` adds to the isolated one. Raises InfraLabError, with the end of the log, if the server doesn't come up.
    """
    home.mkdir(parents=True, exist_ok=True)
    port, token, log_path = _free_port(), secrets.token_hex(16), home / "jupyterlab.log"
    variables = {**isolated_environment(home), **(environment or {}), "JUPYTER_TOKEN": token}
    # With the application object in the page, a driver runs JupyterLab's own commands and reads its own cell models.
    extra = ("--ServerApp.ip=127.0.0.1", "--LabApp.expose_app_in_browser=True")
    with log_path.open("wb") as log:
        process = start_lab(labs, port=port, browser=False, extra=extra, environment=variables, log=log)
        server = LabServer(f"http://127.0.0.1:{port}", token, process.pid, labs, log_path)
        try:
            _wait_until_up(server, process)
            yield server
        finally:
            _stop(server, process)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _wait_until_up(server: LabServer, process: subprocess.Popen[bytes]) -> None:
    request = Request(f"{server.url}/api/status", headers={"Authorization": f"token {server.token}"})
    direct = build_opener(ProxyHandler({}))
    deadline = time.monotonic() + START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline:
        try:
            with direct.open(request, timeout=5):
                return
        except HTTPError as error:
            raise InfraLabError(f"another server than ours answers at {server.url}: {error}") from error
        except (URLError, OSError):
            time.sleep(0.1)
    state = "did not answer in time" if process.returncode is None else f"ended with code {process.returncode}"
    raise InfraLabError(f"JupyterLab {state}; the end of its log:\n{server.log_tail()}")


def _stop(server: LabServer, process: subprocess.Popen[bytes]) -> None:
    family = server.processes()
    process.terminate()  # Jupyter then shuts its kernels down
    _, alive = psutil.wait_procs(family, timeout=STOP_TIMEOUT_S)
    for stubborn in alive:
        try:
            stubborn.kill()
        except psutil.NoSuchProcess:
            continue
    process.wait()
