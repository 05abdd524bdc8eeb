"""Runs a module in a process where kernels are compiled: the tests' own may have been told to interpret them."""

import json
import os
import subprocess
import sys
from typing import Any


def compiling(*arguments: str) -> str:
    """Return what `python ARGUMENTS` prints there; it must succeed."""
    environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, *arguments], env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def reports_of(module: str, *arguments: str) -> list[dict[str, Any]]:
    """Return the lines of JSON that a module prints."""
    return [json.loads(line) for line in compiling("-m", module, *arguments).splitlines()]
