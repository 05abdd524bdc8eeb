"""`infra-lab lab`: JupyterLab on the lessons, with settings that suit them and nothing that calls home.

The settings are the defaults of `datasets/jupyter/labconfig`, put on Jupyter's configuration path; what a learner sets in
JupyterLab itself goes before them. The flags keep the *server* from asking for news, updates and extensions.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import IO

from infra_lab.data import data_path
from infra_lab.errors import ConfigError, MissingExtraError

START = "00_start_here.ipynb"

QUIET = (
    "--LabApp.news_url=None",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    "--LabApp.extension_manager=readonly",
)
"""Flags without which the server asks jupyterlab.github.io for news and pypi.org for versions and extensions."""


def lab_command(labs: Path, *, port: int | None = None, browser: bool = True, extra: Sequence[str] = ()) -> list[str]:
    """Build the command that serves the folder `labs` and opens its first notebook; `extra` goes to JupyterLab as it is.

    Without a port, Jupyter takes 8888 or the next free one; a port that is given is taken or refused, never another one.
    Raises ConfigError if `labs` is no folder and MissingExtraError if JupyterLab is not installed.
    """
    if not labs.is_dir():
        raise ConfigError(f"no folder {labs}: expected the folder with the lessons, `labs` in a clone of the project")
    if find_spec("jupyterlab") is None:
        raise MissingExtraError("the lessons open in JupyterLab, which is not installed: pip install 'infra-lab[lab]'")
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={labs.resolve()}", *QUIET]
    if (labs / START).is_file():
        command.append(f"--LabApp.default_url=/lab/tree/{START}")
    if port is not None:
        command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0"]
    if not browser:
        command.append("--no-browser")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")  # as in a container; Jupyter refuses to run as root without it
    return [*command, *extra]


def lab_environment(base: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Copy the environment, with our default settings last on Jupyter's configuration path, after a user's own folders."""
    folders = [base.get("JUPYTER_CONFIG_PATH", ""), str(data_path("jupyter"))]
    return {**base, "JUPYTER_CONFIG_PATH": os.pathsep.join(filter(None, folders))}


def start_lab(
    labs: Path,
    *,
    port: int | None = None,
    browser: bool = True,
    extra: Sequence[str] = (),
    environment: Mapping[str, str] | None = None,
    log: IO[bytes] | None = None,
) -> subprocess.Popen[bytes]:
    """Start JupyterLab as a child process; its output goes to the terminal or to `log`. Raises as `lab_command` does."""
    return subprocess.Popen(
        lab_command(labs, port=port, browser=browser, extra=extra),
        env=lab_environment(os.environ if environment is None else environment),
        stdout=log,
        stderr=log,
        stdin=None if log is None else subprocess.DEVNULL,
    )


def run_lab(labs: Path, *, port: int | None = None, browser: bool = True, extra: Sequence[str] = ()) -> int:
    """Serve until the learner stops JupyterLab; return its exit code.

    Ctrl-C belongs to JupyterLab, which asks before it shuts kernels down. Raises as `lab_command` does.
    """
    process = start_lab(labs, port=port, browser=browser, extra=extra)
    previous = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        return process.wait()
    finally:
        signal.signal(signal.SIGINT, previous)
