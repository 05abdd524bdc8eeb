"""A process that compiles kernels on request, for one that cannot, or must not wait.

    caller                                  worker: python -m kernels.compile_worker
    compile(name, target, config) ──JSON──▶ compile_kernel
                                  ◀──JSON── everything of `Compiled`, or what went wrong

A notebook may be interpreting (Triton decides that when a kernel is defined), and a compiler that crashes or hangs must not
take the notebook along. The worker stays, because it takes seconds to import what it needs.
"""

import base64
import json
import os
import subprocess
import sys
from dataclasses import asdict
from threading import Lock
from typing import Any

from kernels.compile import Compiled
from kernels.spec import KernelConfig
from kernels.triton_api import KernelUnavailableError


class CompileError(RuntimeError):
    """The compiler refused the kernel; the message is its own."""


class CompileWorker:
    """Starts the process when it is first needed, and again if it has died. May be called from several threads."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = Lock()
        self._known: dict[str, Compiled] = {}

    def compile(self, name: str, target: int, config: KernelConfig) -> Compiled:
        """Return what `compile_kernel` makes of the kernel of that name; what was compiled before comes at once.

        Raises CompileError with the compiler's words, and KernelUnavailableError if the process ends without an answer.
        """
        request = json.dumps({"name": name, "target": target, **asdict(config)}, sort_keys=True)
        with self._lock:
            if request not in self._known:
                self._known[request] = _from_json(self._ask(request))
            return self._known[request]

    def close(self) -> None:
        """End the process; it may be called while another thread compiles, which then raises."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def _ask(self, request: str) -> dict[str, Any]:
        if self._process is None or self._process.poll() is not None:
            environment = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
            self._process = subprocess.Popen(
                [sys.executable, "-m", "kernels.compile_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                text=True,
            )
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(request + "\n")
            process.stdin.flush()
            answer = process.stdout.readline()
        except OSError:
            answer = ""
        if not answer:
            raise KernelUnavailableError(
                f"the compiler's process ended with status {process.wait()}; try again, or run "
                "`python -m kernels.compile` in a shell to see why"
            )
        content: dict[str, Any] = json.loads(answer)
        if "error" in content:
            raise CompileError(content["error"])
        return content


def _to_json(made: Compiled) -> dict[str, Any]:
    return {**asdict(made), "cubin": base64.b64encode(made.cubin).decode()}


def _from_json(content: dict[str, Any]) -> Compiled:
    return Compiled(**{**content, "cubin": base64.b64decode(content["cubin"])})


def main() -> None:
    """Answer each line of stdin with a line of stdout, until there are no more."""
    from kernels.compile import compile_kernel
    from kernels.registry import all_specs

    answers, sys.stdout = sys.stdout, sys.stderr  # a compiler that prints must not be taken for an answer
    for line in sys.stdin:
        wanted = json.loads(line)
        try:
            spec = all_specs()[wanted["name"]]
            config = KernelConfig(wanted["blocks"], wanted["num_warps"], wanted["num_stages"])
            content = _to_json(compile_kernel(spec, wanted["target"], config))
        except Exception as error:  # noqa: BLE001 - the compiler's errors are many, and all of them are answers
            content = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(content) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
